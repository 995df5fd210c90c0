"""Plans of whole clusters: each settles in every mode, whichever Prometheus is asked for."""

from __future__ import annotations

import pytest

from support.examples import CLUSTERS, WAYS
from support.objects import cluster
from support.planning import settled


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CLUSTERS)
def test_every_cluster_settles(name: str, way: str) -> None:
    """In order, valid, done after one application, and reverted to the input."""
    settled(cluster(*CLUSTERS[name]()), **WAYS[way])
