"""`verify` visits the scrape proxy: a real one passes, and one that is too willing is found."""

from __future__ import annotations

import asyncio
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from meshscrape.verify.findings import Report
from meshscrape.verify.run import VerifyOptions, verify
from support.addresses import loopback
from support.ca import TestCa
from support.forgery import Forge
from support.scrape_proxy import credentials, group, running_proxy
from support.serving import serving
from support.status import sidecar, status, workload
from support.targets import STATS, Target, tls_target

HTTPBIN = "spiffe://cluster.local/ns/default/sa/httpbin"
CHECKS = frozenset({"proxy-token", "paths", "methods"})


def verified(directory: Path, proxy: str, token: Path, target: str) -> Report:
    """The report about a mesh of which only the scrape proxy is looked at."""
    scraper = TestCa().workload("istio-system", "prometheus").write(directory / "verifier")
    nothing = {"secure": {}, "plaintext": {}, "application": []}
    document = status(
        sidecar(ports=nothing, targets=[{"url": f"http://{target}{STATS}"}]),
        workload("istio-system", "prometheus", credentials=str(scraper)),
        scrapeProxy={"address": f"http://{proxy}", "tokenFile": str(token)},
        prometheus={"url": "", "workload": "istio-system/prometheus"},
    )
    return asyncio.run(verify(document, VerifyOptions(only=CHECKS)))


def test_real_proxy_passes_every_check(tmp_path: Path) -> None:
    """Without its token it passes nothing on; with it, nothing but GET of exactly the announced URL."""
    forge = Forge()
    with tls_target(Target(loopback()), forge.leaf(HTTPBIN), forge.root, tmp_path) as target:
        directory = str(credentials(tmp_path / "scraper", forge))
        with running_proxy(tmp_path, [directory], [group(target.authority, HTTPBIN)]) as proxy:
            assert proxy.scrape(target.authority).status == 200
            report = verified(tmp_path, proxy.listen, proxy.token_file, target.authority)
    assert {each.check: each.outcome for each in report.checks} == dict.fromkeys(CHECKS, "passed"), (
        report.findings
    )
    assert {each.target for each in report.checks} == {proxy.listen}


class _Willing(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.send_response(200)
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_proxy_that_serves_every_client_is_found(tmp_path: Path) -> None:
    """A forward proxy without a token and with every path is three holes."""
    (tmp_path / "token").write_text("secret")
    address = loopback()
    with serving(ThreadingHTTPServer((address, 15094), _Willing)):
        report = verified(tmp_path, f"{address}:15094", tmp_path / "token", "127.0.0.1:15092")
    assert {each.check: each.severity for each in report.findings} == dict.fromkeys(CHECKS, "hole")
    (token,) = [each for each in report.findings if each.check == "proxy-token"]
    assert "all 4: HTTP 200" in token.seen
    assert "secret" not in str(report)


def test_a_proxy_whose_token_cannot_be_read_is_unchecked(tmp_path: Path) -> None:
    """Nothing passes silently."""
    report = verified(tmp_path, "127.0.0.1:15094", tmp_path / "absent", "127.0.0.1:15092")
    assert [(each.check, each.severity) for each in report.findings] == [("proxy-token", "skipped")]
