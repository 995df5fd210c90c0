"""What a migration from legacy mode takes away, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.kube.selectors import parse_selector
from support.objects import cluster, control_plane, deployment, injected_namespace, meta, namespace
from support.planning import codes, refs, settled

NAMED: dict[str, Any] = {
    "prometheus": "none",
    "scrapers": parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus"),
}


def strict(mode: str = "STRICT", **labels: str) -> dict[str, Any]:
    """A PeerAuthentication for port 15091 of the workloads with these labels."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": meta("metrics"),
        "spec": {"selector": {"matchLabels": labels}, "portLevelMtls": {"15091": {"mode": mode}}},
    }


def legacy(name: str) -> list[dict[str, Any]]:
    """A workload with the Sidecar of legacy mode."""
    listener = {
        "port": {"number": 15091, "name": "https-metrics", "protocol": "HTTP"},
        "defaultEndpoint": "127.0.0.1:15020",
    }
    sidecar = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": meta(name),
        "spec": {"workloadSelector": {"labels": {"app": name}}, "ingress": [listener]},
    }
    announced = {"prometheus.istio.io/secure-port": "15091"}
    return [deployment(name, labels={"tier": "back"}, annotations=announced), sidecar]


def test_a_policy_that_others_still_need_stays() -> None:
    """Without it, the workload that is not planned for would serve its metrics in plain HTTP."""
    objects = cluster(
        control_plane(), injected_namespace(), legacy("one"), legacy("two"), strict(tier="back")
    )
    plan = settled(objects, selector=parse_selector("app=one"), **NAMED)
    assert [each for each in refs(plan) if each[0] == "removal"] == [("removal", "delete", "Sidecar/one")]


def test_policy_is_removed_with_the_last_workload() -> None:
    """Both workloads move: nothing of legacy mode is left."""
    objects = cluster(
        control_plane(), injected_namespace(), legacy("one"), legacy("two"), strict(tier="back")
    )
    plan = settled(objects, **NAMED)
    assert {each[2] for each in refs(plan) if each[0] == "removal"} == {
        "Sidecar/one",
        "Sidecar/two",
        "PeerAuthentication/metrics",
    }


@pytest.mark.parametrize("mode", ["PERMISSIVE", "DISABLE"])
def test_a_mode_that_legacy_does_not_use_stays(mode: str) -> None:
    """It lets a native listener on 15091 have its connections where the mesh is STRICT."""
    native = {"proxy.istio.io/config": "proxyMetadata: {ENVOY_SECURE_METRICS_PORT: '15091'}"}
    objects = cluster(
        control_plane(), injected_namespace(), deployment(annotations=native), strict(mode, app="httpbin")
    )
    plan = settled(objects, **NAMED)
    assert "PeerAuthentication/metrics" not in {each[2] for each in refs(plan)}


def test_a_sidecar_in_the_root_namespace_is_refused_under_permissive() -> None:
    """Istio ignores policies for single workloads there: the port would never be mutual TLS alone."""
    root = namespace("istio-system", {"istio-injection": "enabled"})
    plan = settled(cluster(control_plane("1.29.0"), root, deployment("kiali", "istio-system")), **NAMED)
    assert plan.changes == ()
    assert "legacy-never-strict" in codes(plan)
