"""vmagent and the OpenTelemetry Collector read the cluster with the configuration that is made for them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance import samples, scraper, shop
from conformance.cluster import programs
from conformance.kube import Kube, until

SPACE = "scrapers"
Row = Callable[..., None]


@pytest.fixture(scope="module")
def target(kube: Kube) -> Iterator[str]:
    """Provide httpbin with a secure port, and return its address."""
    with kube.namespace(SPACE, **shop.INJECTED):
        account, service, deployment = samples.httpbin()
        ports = samples.proxy_metadata(ENVOY_SECURE_MERGED_METRICS_PORT="15092")
        deployment = samples.annotate(deployment, **{"proxy.istio.io/config": ports})
        kube.apply([account, service, deployment], "-n", SPACE)
        kube.rollout(SPACE, "deployment/httpbin")
        yield kube.address(SPACE, "app=httpbin")


def test_vmagent_scrapes_cluster(kube: Kube, meshscrape: Path, target: str, row: Row) -> None:
    """vmagent finds the pod and reads it over mutual TLS; no scrape fails."""
    if kube.capabilities.local_images and shutil.which("vmagent") is None:
        pytest.skip("vmagent is not installed (Debian: apt-get install victoria-metrics)")
    text = scraper.configuration(meshscrape, scraper.VMAGENT, SPACE)
    agent = scraper.start(kube, scraper.pod(SPACE, "vmagent", scraper.VMAGENT), text)
    (found,) = agent.wait_for_up({target})
    assert found["scrapeUrl"] == f"https://{target}:15092/stats/prometheus"
    until(
        lambda: _number(agent.text("/metrics"), 'scrapes_total{status_code="200"}') > 3, "three more scrapes"
    )
    metrics = agent.text("/metrics")
    assert _number(metrics, "scrapes_failed_total") == 0
    version = re.search(r'^vm_app_version\{.*short_version="(.+)"', metrics, re.MULTILINE)
    row(
        "vmagent with `prometheus-config --kubernetes --for vmagent`",
        "target up over HTTPS, no scrape failed",
        vmagent=version[1] if version else "without a version (Debian's build has none)",
    )


def _number(metrics: str, name: str) -> int:
    found = re.search(rf"^vm_promscrape_{re.escape(name)} (\d+)$", metrics, re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.mark.whole
def test_collector_scrapes_cluster(kube: Kube, meshscrape: Path, target: str, row: Row) -> None:
    """The Collector's receivers find the pod and read it over mutual TLS."""
    receivers = scraper.configuration(meshscrape, scraper.COLLECTOR, SPACE)
    text = scraper.collecting(receivers, "0.0.0.0:9090")
    collector = scraper.start(kube, scraper.pod(SPACE, "collector", scraper.COLLECTOR), text)
    up = until(lambda: scraper.up(collector.text("/metrics")), "the Collector has scraped")
    assert up == {f"{target}:15092": True}
    assert "istio_agent_scrapes_total" in collector.text("/metrics")
    row(
        "OpenTelemetry Collector with `prometheus-config --kubernetes --for otel`",
        "target up over HTTPS, its metrics exported",
        Collector=programs.BY_NAME["collector"].version,
    )
