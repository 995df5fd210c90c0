"""Certificates of istiod and of meshscrape's CA are renewed while Prometheus scrapes: no scrape is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance import authorities, prober, samples, scraper, shop
from conformance.kube import Kube, Object, until
from conformance.prober import Prober, secure
from conformance.prometheus import Prometheus

SPACE = "rotation"
LIFETIME = "30s"  # renewed at half of it
RENEWALS = 3  # of every certificate, the scraper's too
Row = Callable[..., None]
Issue = Callable[[Object], Object]


@pytest.mark.whole
@pytest.mark.parametrize("authority", ["istiod", "meshscrape"])
def test_renewed_certificates_lose_no_scrape(kube: Kube, meshscrape: Path, authority: str, row: Row) -> None:
    """Every proxy and the scraper itself renew their certificates several times; each scrape succeeds."""
    with kube.namespace(SPACE, **shop.INJECTED):
        if authority == "istiod":
            agents = "pilot-agent and `meshscrape agent`"
            prometheus = _start(kube, meshscrape, lambda pod: pod)
            kube.apply(authorities.agent(SPACE, "spiffe:spiffe://cluster.local/*", LIFETIME))
            kube("-n", SPACE, "wait", "--for=condition=Ready", "pod/agent", "--timeout=300s")
            selectors = ["app=httpbin", "app=agent"]
            kube.apply(prober.manifest(SPACE, "reader", "prometheus"))
        else:
            agents = "pilot-agent"
            authorities.start_ca(kube, SPACE)

            def issue(pod: Object) -> Object:
                return authorities.certified_by_ca(pod, SPACE)

            prometheus = _start(kube, meshscrape, issue)
            selectors = ["app=httpbin"]
            kube.apply(issue(prober.manifest(SPACE, "reader", "prometheus")))
        reader = prober.ready(kube, SPACE, "reader")
        addresses = {kube.address(SPACE, selector) for selector in selectors}
        prometheus.wait_for_up(addresses)
        began = time.monotonic()
        seen = _watch(kube, reader, sorted(addresses))
        elapsed = time.monotonic() - began
        failed, scrapes = prometheus.lost_scrapes(addresses, elapsed), prometheus.scrapes(addresses, elapsed)
        assert not failed, f"{len(failed)} of {scrapes} scrapes failed: {failed}"
        assert scrapes > RENEWALS * len(addresses)
        row(
            f"rotation: {agents} with certificates of {authority}, {LIFETIME} each",
            f"{seen} certificates seen of {len(addresses)} proxies and Prometheus, {scrapes} scrapes, 0 lost",
            Prometheus=prometheus.version(),
        )


def _start(kube: Kube, meshscrape: Path, issue: Issue) -> Prometheus:
    """Start httpbin with a native port, and a Prometheus that reads it; `issue` changes each pod's CA."""
    account, service, deployment = samples.httpbin()
    ports = samples.proxy_metadata(ENVOY_SECURE_MERGED_METRICS_PORT="15092", SECRET_TTL=LIFETIME)
    deployment = samples.annotate(deployment, **{"proxy.istio.io/config": ports})
    issue(deployment["spec"]["template"])
    kube.apply([account, service, deployment], "-n", SPACE)
    kube.rollout(SPACE, "deployment/httpbin")
    pod = issue(scraper.pod(SPACE, "prometheus", scraper.PROMETHEUS, SECRET_TTL=LIFETIME))
    return scraper.start(kube, pod, scraper.configuration(meshscrape, scraper.PROMETHEUS, SPACE))


def _watch(kube: Kube, reader: Prober, addresses: list[str]) -> int:
    """Watch until every certificate was renewed often enough; return how many were seen."""
    seen: list[set[str]] = [set() for _ in range(len(addresses) + 1)]
    own = ("exec", "prometheus", "-c", "istio-proxy", "--", "sha256sum")

    def renewed() -> bool:
        served = reader.certificates(*(secure(address, 15092) for address in addresses))
        written = kube("-n", SPACE, *own, f"{prober.CERTIFICATES}/cert-chain.pem")
        for certificates, current in zip(seen, [*served, written], strict=True):
            certificates.add(current)
        return all(len(certificates) > RENEWALS for certificates in seen)

    until(renewed, "every certificate is renewed", timeout=300, detail=lambda: [len(each) for each in seen])
    return sum(len(certificates) for certificates in seen)
