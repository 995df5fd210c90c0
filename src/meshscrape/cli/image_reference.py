"""Check references to images before they reach a plan or a Job."""

from __future__ import annotations

import re

from meshscrape.errors import InputError

# The grammar is that of github.com/distribution/reference, which the kubelet uses (reference.go: "Grammar"):
# reference := name [":" tag] ["@" digest], name := [domain "/"] path-component ("/" path-component)*.
_LABEL = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[_.]|__|-+)[a-z0-9]+)*"
_NAME = rf"(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"\w[\w.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[+._-][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"({_NAME})(?::{_TAG})?(?:@{_DIGEST})?", re.ASCII)
_LONGEST_NAME = 255


def check_image(reference: str, option: str) -> None:
    """Raise InputError at `option` if `reference` is not the reference of an image."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or len(match[1]) > _LONGEST_NAME:
        raise InputError(
            f"{reference[:200]!a} is not the reference of an image",
            where=option,
            remedy="write it as REGISTRY/NAME:TAG, in lower case but for the tag",
        )
