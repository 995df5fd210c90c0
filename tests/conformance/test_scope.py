"""Settings by Istio's own defaults: no template changes, and pods have them after their next restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conformance import shop
from conformance.kube import Kube
from conformance.migration import Migration
from conformance.watch import Watch

Row = Callable[..., None]


@pytest.mark.whole
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scope", ["namespace", "mesh"])
def test_defaults_reach_pods_at_their_restart(
    kube: Kube, meshscrape: Path, tmp_path: Path, scope: str, row: Row
) -> None:
    """A ProxyConfig object opens and closes the ports of a namespace or of the mesh; no scrape is lost."""
    with shop.shop(kube, strict=scope == "mesh"), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        chosen = ("-n", shop.NAMESPACE) if scope == "namespace" else ()
        migration = Migration(kube, meshscrape, tmp_path, ("--scope", scope, *chosen))
        watch = Watch(kube, prometheus)

        def restart(phase: str) -> None:
            if phase.endswith(("listeners", "hardening")):
                told = migration.plan().stdout
                assert "get these settings when they are next recreated" in told, told
                names = kube("-n", shop.NAMESPACE, "get", "deployment", "-o", "name").split()
                kube("-n", shop.NAMESPACE, "rollout", "restart", *names)
                migration.settle((shop.NAMESPACE,))
            watch.look(phase)

        try:
            phases = migration.migrate((shop.NAMESPACE, "istio-system"), restart)
            last = migration.plan()
            assert last.returncode == 0, last.stdout
            addresses = set(shop.addresses(kube).values())
            urls = {target["scrapeUrl"] for target in prometheus.of(addresses)}
            assert urls == {f"https://{address}:15092/stats/prometheus" for address in addresses}
            row(
                f"plan --scope {scope}",
                f"{len(phases)} phases applied, then restarted: {len(urls)} targets up over HTTPS, "
                f"{watch.down} scrapes lost; planned again: nothing to do",
                Prometheus=prometheus.version(),
            )
        finally:
            migration.restore()
