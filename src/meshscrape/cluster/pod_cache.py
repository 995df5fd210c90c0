"""Keep the targets of a cluster's pods, and no other part of the pods. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from meshscrape.errors import InputError
from meshscrape.kube.objects import dig
from meshscrape.prometheus.targets import Target

Pod = Mapping[str, Any]
# The targets of a pod by job; empty for a pod that is not to be scraped now.
PodTargets = Mapping[str, tuple[Target, ...]]


class PodCache:
    """The targets of every pod by UID. A pod's name may come back with another UID; both are kept apart."""

    def __init__(self, targets_of: Callable[[Pod], PodTargets]) -> None:
        self._targets_of = targets_of
        self._pods: dict[str, PodTargets] = {}
        self._listed: set[str] | None = None

    def begin(self) -> None:
        """Begin a new list: pods that it does not name are gone when it ends."""
        self._listed = set()

    def put(self, pods: Iterable[Pod]) -> bool:
        """Store the present state of pods; return whether a target changed."""
        changed = False
        for pod in pods:
            uid = uid_of(pod)
            if not uid:
                continue
            if self._listed is not None:
                self._listed.add(uid)
            changed |= self._keep(uid, self._of(pod))
        return changed

    def _of(self, pod: Pod) -> PodTargets:
        try:
            return self._targets_of(pod)
        except InputError:
            # An API server stores no pod with such names. If it did, the other pods must keep their targets.
            return {}

    def end(self) -> bool:
        """End the list; return whether the pods that it did not name had targets."""
        gone = [uid for uid in self._pods if self._listed is not None and uid not in self._listed]
        self._listed = None
        for uid in gone:
            del self._pods[uid]
        return bool(gone)

    def remove(self, pod: Pod) -> bool:
        """Forget a deleted pod; return whether it had targets."""
        return self._keep(uid_of(pod), {})

    def targets(self, jobs: Iterable[str]) -> dict[str, tuple[Target, ...]]:
        """Return all targets by job, in the order in which their pods came."""
        by_job: dict[str, list[Target]] = {job: [] for job in jobs}
        for targets in self._pods.values():
            for job, own in targets.items():
                by_job[job].extend(own)
        return {job: tuple(own) for job, own in by_job.items()}

    def __len__(self) -> int:
        return len(self._pods)

    def _keep(self, uid: str, targets: PodTargets) -> bool:
        known = self._pods.get(uid, {})
        if known == targets:
            # Keep the same objects, so that a comparison by identity shows no change.
            return False
        if targets:
            self._pods[uid] = targets
        else:
            del self._pods[uid]
        return True


def uid_of(pod: Pod) -> str:
    """Return the pod's UID; empty when the object has none."""
    return str(dig(pod, "metadata", "uid", default=""))
