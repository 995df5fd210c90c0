"""Tell from an object's status what is missing until its change has taken effect. Pure.

The rules for workloads are those of `kubectl rollout status` (kubernetes/kubectl, pkg/polymorphichelpers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.cluster.stopping import one_line
from meshscrape.kube.objects import Manifest, Object, as_list, dig

# The reasons for which a container of a starting pod waits.
_STARTING = ("ContainerCreating", "PodInitializing")
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Pending:
    """What a rollout still waits for, in plain words; `failed` when waiting longer does not help."""

    text: str
    failed: bool = False


def pending(manifest: Manifest) -> Pending | None:
    """Return what is missing until the object is as its specification says; None when nothing is."""
    data = manifest.data
    generation = _seen_generation(data)
    if generation is not None and generation < int(dig(data, "metadata", "generation", default=0) or 0):
        return Pending("its controller has not seen the change yet")
    judge = _JUDGES.get(manifest.ref.kind)
    return judge(data) if judge else None


def is_rolled_out(kind: str) -> bool:
    """Return whether objects of this kind make pods that are replaced step by step."""
    return kind in _JUDGES


def stuck_pods(pods: Iterable[Object]) -> list[str]:
    """Return why containers of pods wait, if it is no step of a usual start; one text for each reason.

    Such reasons are `ImagePullBackOff` and `CrashLoopBackOff`; the text has the kubelet's own message.
    """
    reasons: dict[str, str] = {}
    for pod in pods:
        statuses = [
            *as_list(dig(pod, "status", "initContainerStatuses")),
            *as_list(dig(pod, "status", "containerStatuses")),
        ]
        for status in statuses:
            reason = str(dig(status, "state", "waiting", "reason", default=""))
            if reason and reason not in _STARTING:
                place = f"{dig(pod, 'metadata', 'name')}, container {dig(status, 'name')}"
                told = one_line(str(dig(status, "state", "waiting", "message", default="")), _LONGEST)
                reasons.setdefault(reason, f"{reason} in pod {place}" + (f": {told}" if told else ""))
    return list(reasons.values())


def _seen_generation(data: Object) -> int | None:
    """Return the oldest generation that the status describes; None when it does not tell."""
    told = [dig(data, "status", "observedGeneration")]
    told += [dig(condition, "observedGeneration") for condition in as_list(dig(data, "status", "conditions"))]
    numbers = [number for number in told if isinstance(number, int)]
    return min(numbers) if numbers else None


def _deployment(data: Object) -> Pending | None:
    for condition in as_list(dig(data, "status", "conditions")):
        if dig(condition, "reason") == "ProgressDeadlineExceeded":
            return Pending("its rollout exceeded its progress deadline", failed=True)
    wanted, updated = _count(data, "spec", "replicas", default=1), _count(data, "status", "updatedReplicas")
    if updated < wanted:
        return Pending(f"{updated} of {wanted} pods are new")
    old = _count(data, "status", "replicas") - updated
    if old > 0:
        return Pending(f"{old} old pod{'s are' if old != 1 else ' is'} still there")
    available = _count(data, "status", "availableReplicas")
    return Pending(f"{available} of {updated} new pods are available") if available < updated else None


def _stateful_set(data: Object) -> Pending | None:
    if dig(data, "spec", "updateStrategy", "type") == "OnDelete":
        return None
    wanted, ready = _count(data, "spec", "replicas", default=1), _count(data, "status", "readyReplicas")
    if ready < wanted:
        return Pending(f"{ready} of {wanted} pods are ready")
    kept = _count(data, "spec", "updateStrategy", "rollingUpdate", "partition")
    updated = _count(data, "status", "updatedReplicas")
    current, new = dig(data, "status", "currentRevision"), dig(data, "status", "updateRevision")
    if updated < wanted - kept and current != new:
        return Pending(f"{updated} of {wanted - kept} pods are new")
    return None


def _daemon_set(data: Object) -> Pending | None:
    if dig(data, "spec", "updateStrategy", "type") == "OnDelete":
        return None
    wanted = _count(data, "status", "desiredNumberScheduled")
    updated, available = (
        _count(data, "status", "updatedNumberScheduled"),
        _count(data, "status", "numberAvailable"),
    )
    if updated < wanted:
        return Pending(f"{updated} of {wanted} pods are new")
    return Pending(f"{available} of {wanted} pods are available") if available < wanted else None


def _count(data: Object, *path: str, default: int = 0) -> int:
    value: Any = dig(data, *path, default=default)
    return value if isinstance(value, int) else default


_JUDGES: Mapping[str, Callable[[Object], Pending | None]] = {
    "Deployment": _deployment,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
}
# The kinds whose pods are replaced step by step.
ROLLED_OUT = tuple(_JUDGES)
