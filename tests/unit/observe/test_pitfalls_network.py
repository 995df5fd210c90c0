"""NetworkPolicies between scrapers and workloads."""

from __future__ import annotations

from typing import Any

from support.objects import (
    SECURE,
    Object,
    control_plane,
    deployment,
    meta,
    namespace,
    only,
    pitfalls,
    proxy_config,
)
from support.scraping_objects import kubernetes_pods, prometheus, secure_job

SECURED = deployment(annotations=proxy_config(SECURE))
MESH = [*control_plane(), namespace("default", istio_injection="enabled"), SECURED]
SCRAPER = [namespace("istio-system"), *prometheus(secure_job())]


def policy(name: str, space: str, app: str, **spec: Any) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(name, space),
        "spec": {"podSelector": {"matchLabels": {"app": app}}, **spec},
    }


def test_the_scrapers_own_pod_needs_no_policy_for_itself() -> None:
    """A NetworkPolicy never keeps a pod from itself: the policy for Prometheus' own port is no pitfall."""
    own = policy("prometheus", "istio-system", "prometheus", ingress=[{"ports": [{"port": 9090}]}])
    found = pitfalls("network-policy-blocks", MESH, SCRAPER, own)
    assert found == []


def test_every_scraper_that_reads_a_workload_must_be_admitted() -> None:
    """A policy that admits another namespace's pods blocks the scraper that has the job."""
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}}]
    ports = [{"port": 15092}]
    blocked = policy("web", "default", "httpbin", ingress=[{"from": peers, "ports": ports}])
    pitfall = only(pitfalls("network-policy-blocks", MESH, SCRAPER, blocked))
    assert (pitfall.severity, pitfall.ref and pitfall.ref.name) == ("error", "httpbin")
    assert "15092" in pitfall.text and "istio-system/prometheus" in pitfall.text


def test_egress_of_the_scraper_counts() -> None:
    """A policy for the scraper's own connections can block them as well."""
    rules = [{"ports": [{"port": 15020}, {"port": 15090}]}]
    egress = policy("prometheus", "istio-system", "prometheus", policyTypes=["Egress"], egress=rules)
    assert (
        "NetworkPolicy.networking.k8s.io istio-system/prometheus"
        in only(pitfalls("network-policy-blocks", MESH, SCRAPER, egress)).text
    )
    rules.append({"ports": [{"port": 15092}]})
    assert pitfalls("network-policy-blocks", MESH, SCRAPER, egress) == []


def test_before_anything_is_secured_it_is_only_a_note() -> None:
    """Known before the plan: the secure ports are not admitted, though nothing opens them yet."""
    plain = [*control_plane(), namespace("default", istio_injection="enabled"), deployment()]
    ports = [{"port": 15020}, {"port": 15090}]
    admits = policy("web", "default", "httpbin", ingress=[{"ports": ports}])
    pitfall = only(pitfalls("network-policy-blocks", plain, prometheus(kubernetes_pods()), admits))
    assert pitfall.severity == "info"
