"""Tell who wrote a field: recorded originals, or the API server's record of managers (`managedFields`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from meshscrape.kube.objects import Object, Ref, as_list, as_mapping, dig
from meshscrape.plan.model import MANAGER

# A step into a list of items that a field tells apart: ("name", "istio-proxy").
Step = str | tuple[str, str]
FieldPath = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the time before meshscrape.

    `originals` are objects as they were then, recorded by `render`. They show what was there already; today's
    objects are what changes.
    """

    originals: Mapping[Ref, Object] = field(default_factory=dict)

    def original(self, ref: Ref) -> Object | None:
        """Return the recorded original of an object, None without a record."""
        return self.originals.get(ref)


def wrote(data: Object, path: FieldPath) -> bool | None:
    """Return whether meshscrape wrote a field of an object; None if the object has no record of managers.

    A field that another manager changed after meshscrape counts as written by meshscrape: what the other
    added stays, because only meshscrape's part of it is taken back.
    """
    entries = [as_mapping(entry) for entry in as_list(dig(data, "metadata", "managedFields"))]
    if not entries:
        return None
    ours = [entry for entry in entries if entry.get("manager") == MANAGER]
    if any(_covers(entry.get("fieldsV1"), path) for entry in ours):
        return True
    last = max((_time(entry) for entry in ours), default="")
    others = [entry for entry in entries if _covers(entry.get("fieldsV1"), path)]
    return bool(last) and any(_time(entry) >= last for entry in others)


def _time(entry: Object) -> str:
    """Return when a manager wrote last. Times are RFC 3339 in UTC, so they can be compared as text."""
    return str(entry.get("time") or "")


def _covers(fields: object, path: FieldPath) -> bool:
    """Return whether a set of fields (fieldsV1) contains a path, or an atomic field around it."""
    for depth, step in enumerate(path):
        if not isinstance(fields, Mapping):
            return False
        if depth and not fields:
            return True
        child = next(_children(fields, step), None)
        if child is None:
            return False
        fields = child
    return True


def _children(fields: Mapping[str, object], step: Step) -> Iterator[object]:
    if isinstance(step, str):
        if f"f:{step}" in fields:
            yield fields[f"f:{step}"]
        return
    for key, value in fields.items():
        if key.startswith("k:") and _key_fields(key[2:]).get(step[0]) == step[1]:
            yield value


def _key_fields(text: str) -> Mapping[str, object]:
    """Return the fields that identify a list item; none for a text that no API server writes."""
    try:
        return as_mapping(json.loads(text))
    except (ValueError, RecursionError):
        return {}
