"""Plans of whole clusters: each settles in every mode, whichever Prometheus is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.istio.allow_list import parse_scrapers
from support.examples import CLUSTERS
from support.objects import cluster
from support.planning import settled

ALLOW = parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus")
WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "bootstrap": {"mode": "bootstrap", "network_policy": True},
    "legacy": {"mode": "legacy", "prometheus": "operator", "network_policy": True},
    "native": {"mode": "native", "prometheus": "addon", "inject": True},
    "everything": {"inject": True, "envoy_port": 15091, "scrapers": ALLOW, "network_policy": True},
    "a version is said": {"istio_version": "1.31.0", "prometheus": "none", "inject": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CLUSTERS)
def test_every_cluster_settles(name: str, way: str) -> None:
    """In order, valid, done after one application, and reverted to the input."""
    settled(cluster(*CLUSTERS[name]()), **WAYS[way])
