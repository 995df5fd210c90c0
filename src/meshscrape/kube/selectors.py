"""Label selectors as kubectl spells them: `app=httpbin,tier!=db,env in (a,b),!legacy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.ports import shorten

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)?"
_EQUALS = re.compile(rf"({_NAME})\s*(==?|!=)\s*({_VALUE})")
_SET = re.compile(rf"({_NAME})\s+(in|notin)\s+\(([^()]*)\)")
_EXISTS = re.compile(rf"(!?)\s*({_NAME})")
_COMMA = re.compile(r",(?![^()]*\))")


def parse_selector(text: str, where: str = "--selector") -> Mapping[str, Any]:
    """The LabelSelector that `text` spells. Raises InputError at `where`."""
    expressions = [_requirement(part.strip(), where) for part in _COMMA.split(text)]
    return {"matchExpressions": expressions}


def _requirement(text: str, where: str) -> dict[str, Any]:
    if found := _EQUALS.fullmatch(text):
        operator = "NotIn" if found[2] == "!=" else "In"
        return {"key": found[1], "operator": operator, "values": [found[3]]}
    if found := _SET.fullmatch(text):
        values = [part.strip() for part in found[3].split(",")]
        if all(re.fullmatch(_VALUE, value) for value in values):
            return {"key": found[1], "operator": "In" if found[2] == "in" else "NotIn", "values": values}
    if found := _EXISTS.fullmatch(text):
        return {"key": found[2], "operator": "DoesNotExist" if found[1] else "Exists"}
    raise InputError(
        f"{shorten(text)} is not a label selector", where=where, remedy="write it as for kubectl: app=httpbin"
    )
