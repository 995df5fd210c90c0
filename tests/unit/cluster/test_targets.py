"""The targets of a cluster's pods, as the scrape proxy routes and announces them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshscrape.cluster.targets import proxied_targets
from meshscrape.kube.pod_targets import TargetMesh
from meshscrape.prometheus.target_files import http_sd
from meshscrape.prometheus.targets import MERGED_JOB

MESH = TargetMesh("cluster.local")


def _pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "uid": "1",
            "annotations": {"prometheus.istio.io/secure-port": "15092"},
        },
        "spec": {
            "serviceAccountName": "web",
            "containers": [{"name": "istio-proxy", "image": "proxyv2:1.31.0"}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
            "containerStatuses": [{"name": "istio-proxy", "ready": True}],
            **status,
        },
    }


def test_every_address_of_a_pod_is_a_target_and_the_main_one_is_announced() -> None:
    """Prometheus's own discovery may know a pod by either family; HTTP SD must not give it twice."""
    targets = proxied_targets(_pod(), MESH)[MERGED_JOB]
    assert [each.authority for each in targets] == ["10.0.0.7:15092", "[fd00::7]:15092"]
    assert {str(each.spiffe_id) for each in targets} == {"spiffe://cluster.local/ns/shop/sa/web"}
    assert [group["targets"] for group in http_sd(targets)] == [["10.0.0.7:15092"]]


COMING = (
    _pod(phase="Pending"),
    _pod(containerStatuses=[{"name": "istio-proxy", "ready": False}]),
)


@pytest.mark.parametrize("pod", COMING, ids=["pending", "not-ready"])
def test_a_pod_that_is_coming_has_targets_that_are_not_announced(pod: dict[str, Any]) -> None:
    """Their routes are there before Prometheus's own discovery knows that the pod is ready."""
    targets = proxied_targets(pod, MESH)[MERGED_JOB]
    announced = proxied_targets(_pod(), MESH)[MERGED_JOB]
    assert [replace(target, ready=True) for target in targets] == list(announced)
    assert not any(target.ready for target in targets)
    assert http_sd(targets) == []


def test_a_pod_that_must_not_be_scraped_has_no_target() -> None:
    """It has finished or ends, and its address may be another pod's; or it has no address of its own yet."""
    ending = _pod()
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    unaddressed = _pod(phase="Pending", podIP="", podIPs=[])
    nodes = _pod(phase="Pending")
    nodes["spec"]["hostNetwork"] = True
    for pod in (ending, unaddressed, nodes, _pod(phase="Succeeded"), _pod(phase="Failed")):
        assert proxied_targets(pod, MESH) == {}
