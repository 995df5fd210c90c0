"""Remember the values that a run overwrites in objects of others, in an annotation of the object itself.

Managed fields tell who wrote a field, and not what it was before. Most fields are new; a few had another
value (`sidecar.istio.io/inject: "false"` on Istio's own Prometheus), and the way back needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.istio.names import MANAGED_BY, OVERWRITTEN
from meshscrape.kube import objects
from meshscrape.kube.objects import LAST_APPLIED, Object, as_mapping, dig, labels
from meshscrape.plan.edited_objects import Mutable, clone
from meshscrape.plan.model import MANAGER
from meshscrape.plan.patches import pointer


@dataclass(frozen=True, slots=True)
class Overwritten:
    """What fields of one object were before: recorded by a run, else what kubectl last applied."""

    recorded: Mapping[str, Any] = field(default_factory=dict)
    applied: Mapping[str, Any] = field(default_factory=dict)

    def value(self, path: tuple[str, ...], today: object) -> object:
        """Return the earlier value of a field that is `today` now; None if nothing tells it."""
        if (name := pointer(path)) in self.recorded:
            return clone(self.recorded[name])
        before = dig(self.applied, *path)
        return None if before == today or isinstance(before, Mapping | list) else before


def overwritten_in(data: Object) -> Overwritten:
    """Return what an object remembers of the values that were overwritten."""
    notes = objects.annotations(data)
    return Overwritten(_parsed(notes.get(OVERWRITTEN)), _parsed(notes.get(LAST_APPLIED)))


def _parsed(text: str | None) -> Mapping[str, Any]:
    try:
        return as_mapping(json.loads(text or "{}"))
    except (ValueError, RecursionError):
        return {}


def with_record(before: Object, after: Object) -> Object:
    """Return the changed object with a record of the values that the change overwrites, if there are any.

    What an earlier run has recorded stays: it is older.
    """
    overwritten = dict(_overwritten(before, after, ()))
    if not overwritten or labels(before).get(MANAGED_BY) == MANAGER:
        return after
    known = {**overwritten, **_parsed(objects.annotations(before).get(OVERWRITTEN))}
    written: Mutable = clone(after)
    notes = {**objects.annotations(written), OVERWRITTEN: json.dumps(known, sort_keys=True)}
    written["metadata"] = {**as_mapping(written.get("metadata")), "annotations": notes}
    return written


def _overwritten(before: Object, after: Object, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the changed values. Texts of several lines are left out: they are merged, not overwritten."""
    for key, old in before.items():
        new, place = after.get(key), (*path, key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _overwritten(old, new, place)
        elif new is not None and old != new and isinstance(old, str | int | bool) and "\n" not in str(old):
            yield pointer(place), old


def forget(data: Mutable) -> None:
    """Take the record out of an object."""
    notes = dig(data, "metadata", "annotations")
    if isinstance(notes, dict) and notes.pop(OVERWRITTEN, None) is not None and not notes:
        del data["metadata"]["annotations"]
