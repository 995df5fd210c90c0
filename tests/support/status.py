"""A MeshStatus document as plain data, for tests of what reads it."""

from __future__ import annotations

from typing import Any

PROMETHEUS = "istio-system/prometheus"
ALLOW = "spiffe:spiffe://cluster.local/ns/istio-system/sa/prometheus"


def workload(namespace: str, name: str, **changes: Any) -> dict[str, Any]:
    """A workload with credentials alone; `changes` replace fields of its entry."""
    return {
        "name": name,
        "namespace": namespace,
        "pod": f"{name}-0",
        "kind": "credentials",
        "spiffeId": f"spiffe://cluster.local/ns/{namespace}/sa/{name}",
        "address": "127.9.1.9",
        "addresses": ["127.9.1.9"],
        "insideAddress": "127.9.2.9",
        "hardened": False,
        "ports": {"secure": {}, "plaintext": {}, "application": []},
        "credentials": f"/run/{name}",
        "token": f"/run/{name}.token",
        "scrapers": [],
        **changes,
    }


def sidecar(**changes: Any) -> dict[str, Any]:
    """productpage: both secure ports, not hardened, one STRICT application port with metrics."""
    ports = {
        "secure": {"envoy": 15091, "merged": 15092},
        "plaintext": {"envoy": 15090, "merged": 15020, "health": 15021},
        "application": [{"name": "http", "port": 9080, "mtls": "STRICT", "metrics": "/metrics"}],
    }
    base: dict[str, Any] = {
        "kind": "sidecar",
        "address": "127.9.1.1",
        "addresses": ["127.9.1.1"],
        "insideAddress": "127.9.2.1",
        "scrapers": [ALLOW],
        "ports": ports,
    }
    return workload("default", "productpage") | base | changes


def status(*workloads: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The document of a mesh with these workloads and its Prometheus."""
    return {
        "apiVersion": "meshscrape.io/v1",
        "kind": "MeshStatus",
        "trustDomain": "cluster.local",
        "ca": {"address": "127.9.0.1:15012", "rootCertificate": "/run/root.pem"},
        "prometheus": {"url": "http://127.9.0.1:9090", "workload": PROMETHEUS},
        "workloads": [*workloads, workload("istio-system", "prometheus")],
        **changes,
    }
