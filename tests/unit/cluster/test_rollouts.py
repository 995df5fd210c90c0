"""When a change of an object has taken effect, by its status."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.cluster.rollouts import pending, stuck_pods
from meshscrape.kube.objects import Manifest, Ref


def gap(kind: str, spec: dict[str, Any], status: dict[str, Any], generation: int = 2) -> str | None:
    """Return what is missing, None when nothing is."""
    data = {"metadata": {"generation": generation}, "spec": spec, "status": status}
    found = pending(Manifest(Ref("apps", kind, "shop", "web"), data))
    return found.text if found else None


DONE: dict[str, dict[str, Any]] = {
    "Deployment": {
        "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2,
        "availableReplicas": 2,
    },
    "StatefulSet": {
        "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2,
        "currentRevision": "a", "updateRevision": "b",
    },
    "DaemonSet": {
        "observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
        "numberAvailable": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", DONE)
def test_nothing_is_missing_after_a_rollout(kind: str) -> None:
    assert gap(kind, {"replicas": 2}, DONE[kind]) is None


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *[(kind, "observedGeneration", 1) for kind in DONE],
        ("Deployment", "updatedReplicas", 1),
        ("Deployment", "replicas", 3),
        ("Deployment", "availableReplicas", 1),
        ("StatefulSet", "readyReplicas", 1),
        ("StatefulSet", "updatedReplicas", 1),
        ("DaemonSet", "updatedNumberScheduled", 1),
        ("DaemonSet", "numberAvailable", 1),
    ],
)
def test_each_count_must_be_reached(kind: str, field: str, value: int) -> None:
    assert gap(kind, {"replicas": 2}, {**DONE[kind], field: value}) is not None


def test_a_rollout_past_its_deadline_has_failed() -> None:
    status = {
        "observedGeneration": 2,
        "conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}],
    }
    data = {"metadata": {"generation": 2}, "spec": {}, "status": status}
    found = pending(Manifest(Ref("apps", "Deployment", "shop", "web"), data))
    assert found is not None
    assert found.failed


def test_an_object_with_conditions_waits_until_all_are_about_the_change() -> None:
    conditions = [
        {"type": "Available", "observedGeneration": 2},
        {"type": "Reconciled", "observedGeneration": 1},
    ]
    assert gap("Prometheus", {}, {"conditions": conditions}) is not None
    assert gap("Prometheus", {}, {"conditions": conditions[:1]}) is None


def test_an_object_without_a_status_has_taken_effect() -> None:
    assert gap("ConfigMap", {}, {}) is None


def waiting(name: str, reason: str, message: str = "") -> dict[str, Any]:
    """Return a pod with one container that waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"metadata": {"name": name}, "status": {"containerStatuses": [{"name": "app", "state": state}]}}


def test_tells_why_pods_are_stuck_once_for_each_reason() -> None:
    """The reasons of a usual start are no reasons, and the kubelet's text becomes one line."""
    pods = [
        waiting("a", "ContainerCreating"),
        waiting("b", "ImagePullBackOff", 'Back-off pulling\nimage "x"'),
        waiting("c", "ImagePullBackOff"),
        waiting("d", "CrashLoopBackOff"),
        {},
    ]
    assert stuck_pods(pods) == [
        'ImagePullBackOff in pod b, container app: Back-off pulling image "x"',
        "CrashLoopBackOff in pod d, container app",
    ]
