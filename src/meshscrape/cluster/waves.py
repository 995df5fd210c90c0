"""Divide a phase into waves: changes without a restart, canary workloads, then each namespace. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory, Object, Ref, dig
from meshscrape.observe.observation import Observation
from meshscrape.plan.model import Change

_WINDOW = re.compile(r"([0-2][0-9]):([0-5][0-9])-([0-2][0-9]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day in UTC within which waves may begin; it may pass midnight."""

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str, where: str = "--window") -> Window:
        """Return the window that `HH:MM-HH:MM` spells. Raise InputError for other text."""
        match = _WINDOW.fullmatch(text)
        try:
            parts = [int(part) for part in match.groups()] if match else []
            window = cls(time(parts[0], parts[1]), time(parts[2], parts[3]))
        except (ValueError, IndexError):
            raise InputError(
                f"{text!r} is not a time of day", where=where, remedy="write it as 22:00-05:30, in UTC"
            ) from None
        if window.begin == window.end:
            raise InputError(
                "a window that ends when it begins is never open",
                where=where,
                remedy="omit it, or give another end",
            )
        return window

    def seconds_until(self, now: datetime) -> float:
        """Return how long to wait at `now` (in UTC) until the window is open; 0 if it is."""
        clock = now.time()
        inside = (
            self.begin <= clock < self.end
            if self.begin <= self.end
            else clock >= self.begin or clock < self.end
        )
        if inside:
            return 0.0
        opens = datetime.combine(now.date(), self.begin, now.tzinfo)
        return ((opens if opens > now else opens + timedelta(days=1)) - now).total_seconds()

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M} UTC"


def waves_of(changes: Sequence[Change], canaries: Collection[str]) -> list[list[Change]]:
    """Return the changes of a phase in waves, each to take effect before the next one.

    The first wave has the changes that restart nothing. Workloads in `canaries` (`NAMESPACE/NAME`) follow,
    then one namespace after the other. Deletions come last, because others may still need what they delete.
    """
    deletions = [change for change in changes if change.action == "delete"]
    quiet = [change for change in changes if change.action != "delete" and not change.restarts]
    restarting = [change for change in changes if change.action != "delete" and change.restarts]
    first: list[Change] = []
    by_space: dict[str, list[Change]] = {}
    for change in restarting:
        chosen = f"{change.ref.namespace}/{change.ref.name}" in canaries
        (first if chosen else by_space.setdefault(change.ref.namespace, [])).append(change)
    return [
        wave for wave in (quiet, first, *(by_space[space] for space in sorted(by_space)), deletions) if wave
    ]


def interrupted(changes: Iterable[Change], inventory: Inventory) -> dict[Ref, str]:
    """Return the workloads that serve nothing for a while when they restart, and why.

    A Deployment of one replica that rolls is not among them: its new pod is ready before the old one ends.
    """
    reasons: dict[Ref, str] = {}
    for change in changes:
        manifest = inventory.get(change.ref)
        if change.restarts and manifest is not None and (reason := _interruption(manifest.data)):
            reasons[change.ref] = reason
    return reasons


def _interruption(data: Object) -> str:
    kind = data.get("kind")
    if kind == "Deployment" and dig(data, "spec", "strategy", "type") == "Recreate":
        return "Recreate: all its pods end before the first new one starts"
    if kind in ("StatefulSet", "DaemonSet") and dig(data, "spec", "updateStrategy", "type") == "OnDelete":
        return "OnDelete: its pods change only when you delete them"
    if kind == "StatefulSet" and dig(data, "spec", "replicas", default=1) == 1:
        return "a single pod, which ends before its successor starts"
    return ""


def unproven(changes: Iterable[Change], observation: Observation, inventory: Inventory) -> set[Ref]:
    """Return the objects of the changes whose workloads have no ready pod: no scrape proves them."""
    without: set[Ref | None] = set()
    for workload in observation.workloads:
        if any(map(_is_ready, (pod.data for pod in workload.pods))):
            continue
        without |= {workload.ref, workload.gateway_ref}
        gateway = inventory.get(workload.gateway_ref) if workload.gateway_ref else None
        name = dig(gateway.data, "spec", "infrastructure", "parametersRef", "name") if gateway else None
        if name:
            without.add(Ref("", "ConfigMap", workload.namespace, str(name)))
    return {change.ref for change in changes if change.ref in without}


def _is_ready(pod: Object) -> bool:
    conditions = dig(pod, "status", "conditions", default=[])
    return any(
        dig(condition, "type") == "Ready" and dig(condition, "status") == "True" for condition in conditions
    )
