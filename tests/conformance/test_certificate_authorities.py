"""Istio's CA protocol both ways: Istio's agent with meshscrape's CA, meshscrape's agent with istiod."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from conformance import authorities, prober
from conformance.kube import Kube, until
from conformance.prober import Prober, anonymous, plain, secure

SPACE = "authorities"
Row = Callable[..., None]


@pytest.fixture(scope="module")
def space(kube: Kube) -> Iterator[str]:
    """Provide a namespace without injection."""
    with kube.namespace(SPACE) as name:
        yield name


@pytest.fixture(scope="module")
def scraper(kube: Kube, space: str) -> Prober:
    """Provide a workload with a certificate of istiod."""
    return prober.start(kube, space, "scraper")


@pytest.fixture(scope="module")
def stranger(kube: Kube, space: str) -> Prober:
    """Provide another one."""
    return prober.start(kube, space, "stranger")


def test_meshscrape_agent_gets_its_certificate_from_istiod(
    kube: Kube, space: str, scraper: Prober, stranger: Prober, row: Row
) -> None:
    """The agent's secure port accepts the scraper that istiod certified, and nobody else."""
    kube.apply(authorities.agent(space, f"spiffe:spiffe://cluster.local/ns/{space}/sa/scraper"))
    kube("-n", space, "wait", "--for=condition=Ready", "pod/agent", "--timeout=300s")
    address = kube.address(space, "app=agent")
    root = f"{prober.CERTIFICATES}/root-cert.pem"
    assert scraper.outcomes(secure(address, 15092, ca=root)) == [200]
    assert stranger.outcomes(secure(address, 15092)) == [403]
    assert stranger.outcomes(anonymous(address, 15092), plain(address, 15092)) == ["tls", "closed"]
    row(
        "CA protocol: `meshscrape agent` with istiod",
        "certificate of istiod; scraper 200, another workload 403",
    )


def test_istio_agent_gets_its_certificate_from_meshscrape(kube: Kube, space: str, row: Row) -> None:
    """Istio's own agent, injected as always, gets its certificate from `meshscrape ca serve`."""
    root = authorities.start_ca(kube, space)
    kube.apply(authorities.certified_by_ca(prober.manifest(space, "istio-agent", "default"), space))
    prober.ready(kube, space, "istio-agent")
    file = f"{prober.CERTIFICATES}/root-cert.pem"
    read = ("-n", space, "exec", "istio-agent", "-c", "prober", "--", "cat", file)
    written = until(lambda: kube.run(*read).stdout, "pilot-agent writes its certificate")
    assert written.strip() == root.strip()
    row(
        "CA protocol: Istio's pilot-agent with `meshscrape ca serve`",
        "certificate and root of meshscrape's CA",
    )
