"""Label selectors as kubectl spells them (`app=httpbin,tier!=db,env in (a,b),!legacy`), and an index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from meshscrape.errors import InputError
from meshscrape.istio.ports import shorten
from meshscrape.kube.objects import as_list, as_mapping, dig, selects

T = TypeVar("T")

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)?"
_EQUALS = re.compile(rf"({_NAME})\s*(==?|!=)\s*({_VALUE})")
_SET = re.compile(rf"({_NAME})\s+(in|notin)\s+\(([^()]*)\)")
_EXISTS = re.compile(rf"(!?)\s*({_NAME})")
_COMMA = re.compile(r",(?![^()]*\))")


def parse_selector(text: str, where: str = "--selector") -> Mapping[str, Any]:
    """Return the LabelSelector that `text` spells. Raise InputError at `where`."""
    expressions = [_requirement(part.strip(), where) for part in _COMMA.split(text)]
    return {"matchExpressions": expressions}


def _requirement(text: str, where: str) -> dict[str, Any]:
    if match := _EQUALS.fullmatch(text):
        operator = "NotIn" if match[2] == "!=" else "In"
        return {"key": match[1], "operator": operator, "values": [match[3]]}
    if match := _SET.fullmatch(text):
        values = [part.strip() for part in match[3].split(",")]
        if all(re.fullmatch(_VALUE, value) for value in values):
            return {"key": match[1], "operator": "In" if match[2] == "in" else "NotIn", "values": values}
    if match := _EXISTS.fullmatch(text):
        return {"key": match[2], "operator": "DoesNotExist" if match[1] else "Exists"}
    raise InputError(
        f"{shorten(text)} is not a label selector",
        where=where,
        remedy="write it as kubectl takes it, for example app=httpbin",
    )


def selector_text(selector: Mapping[str, Any]) -> str:
    """Return the text of a LabelSelector as a request's `labelSelector` has it."""
    parts = [f"{key}={value}" for key, value in as_mapping(selector.get("matchLabels")).items()]
    for each in as_list(selector.get("matchExpressions")):
        key, values = dig(each, "key"), ",".join(map(str, as_list(dig(each, "values"))))
        forms = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": f"{key}"}
        parts.append(forms.get(str(dig(each, "operator")), f"!{key}"))
    return ",".join(parts)


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Return whether `labels` has everything that `selector` asks for; an empty selector matches all."""
    return selects({"matchLabels": selector}, labels)


class LabelIndex(Generic[T]):
    """An index of things that select a namespace's pods by labels; a lookup does not try each of them."""

    def __init__(self) -> None:
        self._by_label: dict[tuple[str, str, str], list[tuple[Mapping[str, object], T]]] = {}
        self._wide: dict[str, list[tuple[Mapping[str, object], T]]] = {}

    def add(self, namespace: str, selector: Mapping[str, object], thing: T) -> None:
        """Add `thing` under `selector` (matchLabels and matchExpressions); an empty one selects every pod."""
        entry = (selector, thing)
        for key, value in as_mapping(selector.get("matchLabels")).items():
            # One label is enough to find the entry; `matching` tries the whole selector.
            self._by_label.setdefault((namespace, key, str(value)), []).append(entry)
            return
        self._wide.setdefault(namespace, []).append(entry)

    def matching(self, namespace: str, labels: Mapping[str, str]) -> list[T]:
        """Return the things that select a pod with `labels`, in no particular order."""
        entries = list(self._wide.get(namespace, ()))
        for key, value in labels.items():
            entries += self._by_label.get((namespace, key, str(value)), ())
        return [thing for selector, thing in entries if selects(selector, labels)]
