"""The objects while a plan is made: the current state of each, and its changes by phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MANAGED_BY
from meshscrape.kube.objects import Inventory, Object, Ref, labels, ref_of
from meshscrape.plan.model import MANAGER, PHASES, Action, Change, Note, Phase, Refused

# Kinds that others refer to come first. Deletions are in the reverse order.
_RANKS = {
    "Namespace": 0, "ServiceAccount": 1, "ClusterRole": 1, "ClusterRoleBinding": 2, "ConfigMap": 1,
    "PeerAuthentication": 2, "AuthorizationPolicy": 2, "NetworkPolicy": 2, "ServiceEntry": 2, "Sidecar": 3,
    "VirtualService": 3, "Gateway": 4, "IstioGateway": 4, "Deployment": 5, "StatefulSet": 5, "DaemonSet": 5,
    "CronJob": 5,
}  # fmt: skip

# `shards` is the Prometheus Operator's.
_SCALE = ("replicas", "shards")

Mutable = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Entry:
    before: Object | None
    after: Object | None
    reasons: tuple[str, ...] = ()
    restarts: tuple[str, ...] = ()


class EditedObjects:
    """Collect changes by phase; each is recorded with the object before and after."""

    def __init__(self, inventory: Inventory, phases: Sequence[Phase] = PHASES) -> None:
        """Begin with the objects of `inventory`; `phases` are in the order to apply them."""
        self._inventory = inventory
        self._phases = phases
        self._state: dict[Ref, Object | None] = {}
        self._entries: dict[tuple[Phase, Ref], _Entry] = {}
        self._notes: dict[Note, None] = {}
        self.phase: Phase = phases[0]
        # The number of edits that changed something: a cheap test whether a step changes anything.
        self.edits = 0

    @property
    def notes(self) -> tuple[Note, ...]:
        """Return the notes so far, each once."""
        return tuple(self._notes)

    def note(self, ref: Ref | None, code: str, text: str, remedy: str) -> None:
        """Record a note for the user."""
        self._notes[Note(ref, code, text, remedy)] = None

    def refuse(self, ref: Ref | None, refused: Refused) -> None:
        """Record that an object is left alone and why."""
        self._notes[Note(ref, refused.code, refused.reason, refused.remedy, refused=True)] = None

    def whole(self, act: Callable[[], Refused | None]) -> Refused | None:
        """Make all changes of `act`, or none if it refuses. Calls can be nested.

        An InputError (a mistake in the user's text, such as an annotation) counts as a refusal.
        """
        state, entries = dict(self._state), dict(self._entries)
        try:
            refused = act()
        except InputError as error:
            place = f"{error.place}: " if error.where else ""
            refused = Refused("unreadable", f"{place}{error.what}", error.remedy or "correct it")
        except BaseException:
            self._state, self._entries = state, entries
            raise
        if refused is not None:
            self._state, self._entries = state, entries
        return refused

    def get(self, ref: Ref) -> Object | None:
        """Return the object with the changes so far; the caller must not modify it."""
        if ref in self._state:
            return self._state[ref]
        manifest = self._inventory.get(ref)
        return manifest.data if manifest else None

    def edit(
        self, ref: Ref, change: Callable[[Mutable], None], reason: str, restarts: tuple[str, ...] = ()
    ) -> bool:
        """Apply `change` to a copy of an existing object; return whether that made a difference.

        The order of keys does not count, and neither do fields that `change` leaves unset and that the API
        server fills in.
        """
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
        """Create an object of our own or update it; keep fields that others added, and its scale.

        If an object of the same name is not ours, leave it alone, add a note and return False.
        """
        ref = ref_of(wanted)
        before = self.get(ref)
        if before is None:
            self._record(ref, None, clone(wanted), reason, restarts)
            return True
        if labels(before).get(MANAGED_BY) != MANAGER:
            self.refuse(
                ref,
                Refused(
                    "name-taken",
                    "an object of this name exists, and meshscrape did not create it",
                    f"rename it, or label it {MANAGED_BY}={MANAGER} so that meshscrape manages it",
                ),
            )
            return False
        wanted = _scaled_as(before, wanted)
        if not covers(before, wanted):
            after = _brought_up_to_date(before, wanted)
            self._record(ref, before, after, reason, restarts)
        return True

    def delete(self, ref: Ref, reason: str) -> None:
        """Remove an existing object."""
        before = self.get(ref)
        if before is not None:
            self._record(ref, before, None, reason, ())

    def _record(
        self, ref: Ref, before: Object | None, after: Object | None, reason: str, restarts: tuple[str, ...]
    ) -> None:
        known = self._entries.get((self.phase, ref), _Entry(before, after))
        self._entries[self.phase, ref] = _Entry(
            known.before,
            after,
            tuple(dict.fromkeys((*known.reasons, reason))),
            tuple(dict.fromkeys((*known.restarts, *restarts))),
        )
        self._state[ref] = after
        self.edits += 1

    def changes(self) -> tuple[Change, ...]:
        """Return all changes in the order to apply them."""
        made = [
            Change(
                _action(entry),
                ref,
                entry.before,
                entry.after,
                "; ".join(entry.reasons),
                entry.restarts,
                phase,
            )
            for (phase, ref), entry in self._entries.items()
            if entry.before != entry.after
        ]
        return tuple(sorted(made, key=self._order))

    def _order(self, change: Change) -> tuple[int, bool, int, Ref]:
        rank = _RANKS.get(change.ref.kind, 3)
        removed = change.action == "delete"
        return self._phases.index(change.phase), removed, -rank if removed else rank, change.ref


def clone(value: Any) -> Any:
    """Return a copy without shared parts: the reader of dumps shares equal parts in memory."""
    if isinstance(value, Mapping):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clone(item) for item in value]
    return value


def covers(present: Any, wanted: Any) -> bool:
    """Return whether `present` contains all of `wanted`; API servers and others add their own fields.

    The apiVersion may differ, because a cluster returns the version that it stores.
    """
    if isinstance(wanted, Mapping):
        return isinstance(present, Mapping) and all(
            key == "apiVersion" or (key in present and covers(present[key], value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(present, list) and len(present) == len(wanted) and all(map(covers, present, wanted))
    return bool(present == wanted)


def _scaled_as(present: Object, wanted: Object) -> Object:
    """Return `wanted` with the scale of `present`: how many pods run is another's choice."""
    spec = present.get("spec")
    scale = {key: spec[key] for key in _SCALE if key in spec} if isinstance(spec, Mapping) else {}
    return {**wanted, "spec": {**wanted["spec"], **scale}} if scale and "spec" in wanted else wanted


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
