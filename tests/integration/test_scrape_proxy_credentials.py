"""Directories of certificate files that others write: their names, and how a renewal reaches Envoy."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from meshscrape.istio.layouts import CERT_MANAGER, ISTIO, SPIFFE_HELPER, Layout
from meshscrape.system.files import publish, write_atomic
from support.addresses import loopback
from support.forgery import Forge
from support.polling import eventually
from support.scrape_proxy import SCRAPER, group, running_proxy
from support.targets import Target, tls_target

HTTPBIN = "spiffe://cluster.local/ns/default/sa/httpbin"


def _written(directory: Path, layout: Layout, forge: Forge) -> int:
    """Write a new certificate as the layout's own writer does; return its serial number."""
    pair = forge.leaf(SCRAPER)
    files = {layout.chain: pair.chain, layout.key: pair.key, layout.roots: forge.root}
    directory.mkdir(exist_ok=True)
    if layout is CERT_MANAGER:
        publish(directory, files)
    else:
        for name, content in files.items():
            if layout.in_place:
                (directory / name).write_bytes(content)
            else:
                write_atomic(directory / name, content)
    return x509.load_pem_x509_certificate(pair.chain).serial_number


@pytest.mark.parametrize(
    "layout", [ISTIO, CERT_MANAGER, SPIFFE_HELPER], ids=["istio-proxy", "cert-manager", "spiffe-helper"]
)
def test_shows_the_certificate_of_each_writer_and_its_renewal(tmp_path: Path, layout: Layout) -> None:
    """Files that are renamed one by one, switched by a link, or overwritten in place; without a restart."""
    forge = Forge()
    own = tmp_path / "scraper"
    first = _written(own, layout, forge)
    every = {"MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION": "1"}
    with (
        tls_target(Target(loopback()), forge.leaf(HTTPBIN), forge.root, tmp_path) as target,
        running_proxy(tmp_path, [str(own)], [group(target.authority, HTTPBIN)], env=every) as proxy,
    ):
        shown = lambda: (proxy.scrape(target.authority).status, int(target.seen[-1].serial, 16))  # noqa: E731
        assert shown() == (200, first)
        envoy = proxy.envoy_pid()
        renewed = _written(own, layout, forge)
        eventually(lambda: shown() == (200, renewed), within=30, what="the renewed certificate")
        assert proxy.envoy_pid() == envoy


def test_an_unfinished_renewal_changes_nothing(tmp_path: Path) -> None:
    """A certificate that was overwritten before its key is not used; the proxy says so once."""
    forge = Forge()
    own = tmp_path / "scraper"
    first = _written(own, SPIFFE_HELPER, forge)
    with (
        tls_target(Target(loopback()), forge.leaf(HTTPBIN), forge.root, tmp_path) as target,
        running_proxy(tmp_path, [str(own)], [group(target.authority, HTTPBIN)]) as proxy,
    ):
        (own / SPIFFE_HELPER.chain).write_bytes(forge.leaf(SCRAPER).chain)
        eventually(lambda: "do not belong together" in proxy.said(), within=30)
        assert proxy.scrape(target.authority).status == 200
        assert int(target.seen[-1].serial, 16) == first
        assert proxy.said().count("do not belong together") == 1
