"""Upstream's own manifests and injected pods, each observed and planned in every mode."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.istio.allow_list import parse_scrapers
from support.objects import cluster, control_plane
from support.planning import SAMPLES, codes, refs, sample, settled
from support.upstream import needs_upstream

pytestmark = needs_upstream

FILES = sorted(str(path.relative_to(SAMPLES)) for path in SAMPLES.rglob("*.yaml")) if SAMPLES.is_dir() else []
ALLOW = parse_scrapers("spiffe:spiffe://cluster.local/ns/istio-system/sa/prometheus")


@pytest.mark.parametrize(
    ("mode", "version"),
    [("auto", None), ("auto", "1.31.0"), ("auto", "1.29.0"), ("bootstrap", None), ("legacy", None)],
)
@pytest.mark.parametrize("name", FILES)
def test_every_sample_settles(name: str, version: str | None, mode: Any) -> None:
    """Planned, applied in memory, planned again: nothing to do; reverted: the input."""
    settled(sample(name), mode=mode, istio_version=version, inject=True, scrapers=ALLOW, network_policy=True)


@pytest.mark.parametrize("prometheus", ["existing", "addon", "operator", "none"])
def test_all_samples_together(prometheus: Any) -> None:
    """Everything in one mesh: applications, gateways, the add-on with its jobs."""
    names = [name for name in FILES if not name.startswith("injected")]
    inventory = sample(*names).changed(list(cluster(control_plane())), ())
    plan = settled(inventory, inject=True, prometheus=prometheus, network_policy=True)
    assert len({name for _, _, name in refs(plan) if name.startswith("Deployment/")}) >= 7


@pytest.mark.parametrize("name", ["hello.yaml", "user-volume.yaml", "gateway.yaml"])
def test_templates_that_hold_the_proxy_already_are_reported(name: str) -> None:
    """`istioctl kube-inject` wrote them: an annotation would have no effect."""
    plan = settled(sample(f"injected/{name}"), istio_version="1.31.0", prometheus="none")
    assert plan.changes == ()
    assert "manually-injected" in codes(plan)


@pytest.mark.parametrize("name", ["native-sidecar.yaml", "prometheus-scrape.yaml"])
def test_standalone_pods_are_reported(name: str) -> None:
    """Bare pods are never changed, nor deleted."""
    plan = settled(sample(f"injected/{name}"), istio_version="1.31.0", prometheus="none")
    assert plan.changes == ()
    assert "standalone" in codes(plan)
