"""Objects while a plan is made: the current state of each, and what has been changed in which phase."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MANAGED_BY
from meshscrape.kube.objects import Inventory, Object, Ref, labels, ref_of
from meshscrape.plan.model import MANAGER, PHASES, Action, Change, Note, Phase

# What others refer to comes first. Deletions go the other way round.
_RANKS = {
    "Namespace": 0, "ServiceAccount": 1, "ClusterRole": 1, "ClusterRoleBinding": 2, "ConfigMap": 1,
    "PeerAuthentication": 2, "AuthorizationPolicy": 2, "NetworkPolicy": 2, "ServiceEntry": 2, "Sidecar": 3,
    "VirtualService": 3, "Gateway": 4, "IstioGateway": 4, "Deployment": 5, "StatefulSet": 5, "DaemonSet": 5,
    "CronJob": 5,
}  # fmt: skip

Mutable = dict[str, Any]


@dataclass(slots=True)
class _Entry:
    before: Object | None
    after: Object | None
    reasons: list[str] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)


class EditedObjects:
    """Collects changes phase by phase; each is recorded with the object before and after."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._state: dict[Ref, Object | None] = {}
        self._entries: dict[tuple[Phase, Ref], _Entry] = {}
        self._notes: dict[Note, None] = {}
        self._undo: list[Callable[[], None]] = []
        self.phase: Phase = PHASES[0]

    @property
    def notes(self) -> tuple[Note, ...]:
        """What has been noted so far, each once."""
        return tuple(self._notes)

    def note(self, ref: Ref | None, text: str, remedy: str, *, refused: bool = False) -> None:
        """Record something that a person must know."""
        self._notes[Note(ref, text, remedy, refused)] = None

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """All changes made within, or none of them when an InputError ends it."""
        self._undo.clear()
        try:
            yield
        except InputError:
            for undo in reversed(self._undo):
                undo()
            raise

    def get(self, ref: Ref) -> Object | None:
        """The object as the changes so far leave it; not to be modified."""
        if ref in self._state:
            return self._state[ref]
        manifest = self._inventory.get(ref)
        return manifest.data if manifest else None

    def edit(
        self, ref: Ref, change: Callable[[Mutable], None], reason: str, restarts: tuple[str, ...] = ()
    ) -> bool:
        """Let `change` modify a copy of an object that is there; whether that made a difference."""
        before = self.get(ref)
        if before is None:
            return False
        after: Mutable = clone(before)
        change(after)
        if after == before:
            return False
        self._record(ref, before, after, reason, restarts)
        return True

    def ensure(self, wanted: Object, reason: str, restarts: tuple[str, ...] = ()) -> bool:
        """Create an object of our own, or bring it up to date; fields that others added to it stay.

        An object of the same name that is not ours is left alone, with a note; False then.
        """
        ref = ref_of(wanted)
        before = self.get(ref)
        if before is None:
            self._record(ref, None, clone(wanted), reason, restarts)
            return True
        if labels(before).get(MANAGED_BY) != MANAGER:
            self.note(
                ref,
                "an object of this name is there, and meshscrape did not make it",
                f"rename it, or label it {MANAGED_BY}={MANAGER} to hand it over",
                refused=True,
            )
            return False
        if not covers(before, wanted):
            after = _brought_up_to_date(before, wanted)
            self._record(ref, before, after, reason, restarts)
        return True

    def delete(self, ref: Ref, reason: str) -> None:
        """Remove an object that is there."""
        before = self.get(ref)
        if before is not None:
            self._record(ref, before, None, reason, ())

    def _record(
        self, ref: Ref, before: Object | None, after: Object | None, reason: str, restarts: tuple[str, ...]
    ) -> None:
        key = (self.phase, ref)
        self._undo.append(partial(self._restore, key, self._entries.get(key), ref in self._state, before))
        known = self._entries.get(key)
        # A new entry each time: the old one is what an undo puts back.
        entry = (
            _Entry(before, after)
            if known is None
            else _Entry(known.before, after, [*known.reasons], [*known.restarts])
        )
        self._entries[key] = entry
        self._state[ref] = after
        if reason not in entry.reasons:
            entry.reasons.append(reason)
        entry.restarts.extend(text for text in restarts if text not in entry.restarts)

    def _restore(
        self, key: tuple[Phase, Ref], entry: _Entry | None, was_changed: bool, state: Object | None
    ) -> None:
        if entry is None:
            del self._entries[key]
        else:
            self._entries[key] = entry
        if was_changed:
            self._state[key[1]] = state
        else:
            del self._state[key[1]]

    def changes(self) -> tuple[Change, ...]:
        """All changes in the order in which they are to be applied."""
        found = [
            Change(
                _action(entry), ref, entry.before, entry.after, "; ".join(entry.reasons),
                tuple(entry.restarts), phase,
            )
            for (phase, ref), entry in self._entries.items()
            if entry.before != entry.after
        ]  # fmt: skip
        return tuple(sorted(found, key=_order))


def clone(value: Any) -> Any:
    """A copy in which no two places share an object: readers of dumps share equal parts in memory."""
    if isinstance(value, Mapping):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clone(item) for item in value]
    return value


def covers(found: Any, wanted: Any) -> bool:
    """Whether `found` says all that `wanted` says; API servers and others add fields of their own.

    The apiVersion may differ: a cluster gives back the one that it stores.
    """
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key == "apiVersion" or (key in found and covers(found[key], value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(covers, found, wanted))
    return bool(found == wanted)


def _brought_up_to_date(before: Object, wanted: Object) -> Mutable:
    after: Mutable = clone(before)
    for key, value in wanted.items():
        if key == "metadata":
            for name in ("labels", "annotations"):
                if name in value:
                    after["metadata"][name] = {**(after["metadata"].get(name) or {}), **value[name]}
        elif key != "apiVersion":
            after[key] = clone(value)
    return after


def _action(entry: _Entry) -> Action:
    if entry.before is None:
        return "create"
    return "delete" if entry.after is None else "update"


def _order(change: Change) -> tuple[int, bool, int, Ref]:
    rank = _RANKS.get(change.ref.kind, 3)
    removed = change.action == "delete"
    return PHASES.index(change.phase), removed, -rank if removed else rank, change.ref
