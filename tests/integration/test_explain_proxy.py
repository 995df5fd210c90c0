"""`meshscrape explain --proxy`: targets of a real scrape proxy that stands alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.addresses import loopback
from support.forgery import Forge
from support.mesh import meshscrape
from support.polling import eventually
from support.scrape_proxy import RunningProxy, credentials, group, running_proxy
from support.targets import Target, raw_target, tls_target

NAMESPACE = "spiffe://cluster.local/ns/default/sa"
BODY = b'# TYPE meshscrape_source_up gauge\nmeshscrape_source_up{source="application:9080"} %d\n'
PLAIN = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
EXPECTED = {
    "fine": None,
    "impostor": ("server's identity", "sa/somebody-else instead of spiffe://cluster.local/ns/default/sa/impostor"),
    "foreign": ("server's identity", "does not lead to the trust bundle"),
    "unlisted": ("authorisation", "403"),
    "failing": ("HTTP status", "503"),
    "broken-body": ("exposition", "what is this"),
    "app-down": ("sources", "application:9080 is down"),
    "plaintext": ("TLS handshake", "does not speak TLS"),
    "nobody": ("TCP connection", "refuses connections"),
}  # fmt: skip
REFUSALS = {
    "impostor": "wrong-identity",
    "foreign": "untrusted-certificate",
    "plaintext": "plaintext-server",
    "nobody": "unreachable",
}


@dataclass(frozen=True, slots=True)
class Site:
    """A running proxy, its scraper's credentials, and where each target is."""

    proxy: RunningProxy
    credentials: Path
    authorities: dict[str, str]

    def run(self, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`meshscrape explain --proxy` with everything right unless `arguments` say it again."""
        named = {
            "--proxy": self.proxy.listen,
            "--discovery": self.proxy.discovery,
            "--token-file": str(self.proxy.token_file),
            "--credentials": str(self.credentials),
        } | dict(zip(arguments[::2], arguments[1::2], strict=True))
        return meshscrape("explain", target, *(part for pair in named.items() for part in pair))

    def explained(self, target: str, *arguments: str) -> dict[str, Any]:
        """The only explained target of the document."""
        done = self.run(target, "-o", "json", *arguments)
        assert done.stdout, done.stderr
        document = json.loads(done.stdout)
        assert done.returncode == (0 if document["healthy"] else 1)
        (found,) = document["targets"]
        return dict(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy with one target for each fault."""
    directory, forge, stranger = tmp_path_factory.mktemp("site"), Forge(), Forge()
    served = {name: Target(loopback(), BODY % 1) for name in EXPECTED if name not in ("plaintext", "nobody")}
    served["unlisted"].status, served["failing"].status = 403, 503
    served["broken-body"].body = b"what is this\n"
    served["app-down"].body = BODY % 0
    pairs = {name: forge.leaf(f"{NAMESPACE}/{name}") for name in served}
    pairs["impostor"] = forge.leaf(f"{NAMESPACE}/somebody-else")
    pairs["foreign"] = stranger.leaf(f"{NAMESPACE}/foreign")
    with contextlib.ExitStack() as stack:
        authorities = {"nobody": f"{loopback()}:15092"}
        authorities["plaintext"] = f"{stack.enter_context(raw_target(loopback(), PLAIN))}:15092"
        for name, target in served.items():
            stack.enter_context(tls_target(target, pairs[name], forge.root, directory))
            authorities[name] = target.authority
        groups = [
            group(authority, f"{NAMESPACE}/{name}", namespace="default", workload=name)
            for name, authority in authorities.items()
        ]
        own = credentials(directory / "scraper", forge)
        yield Site(stack.enter_context(running_proxy(directory, [str(own)], groups)), own, authorities)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fault_is_where_the_explanation_ends(site: Site, name: str) -> None:
    """The proxy's reason is shown, and the direct look finds the cause."""
    found, expected = site.explained(site.authorities[name]), EXPECTED[name]
    assert (found["workload"], found["spiffeId"]) == (f"default/{name}", f"{NAMESPACE}/{name}")
    steps = {each["step"]: each for each in found["steps"]}
    assert steps["discovery"]["outcome"] == "ok"
    if expected is None:
        assert found["healthy"], found
        assert steps["through the proxy"]["outcome"] == "ok"
        return
    step, seen = expected
    assert found["broken"] == step, found
    assert seen in steps[step]["seen"]
    assert steps[step]["remedy"]
    assert REFUSALS.get(name, "") in steps["scrape proxy"]["seen"]


def test_a_target_is_named_by_url_and_by_its_labels(site: Site) -> None:
    """As Prometheus shows it, or NAMESPACE/NAME; a name that no target has is exit code 2."""
    authority = site.authorities["fine"]
    for text in (f"http://{authority}/stats/prometheus", "default/fine", "fine"):
        assert site.explained(text)["url"] == f"http://{authority}/stats/prometheus"
    done = site.run("default/nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "default/fine" in done.stderr


def test_unannounced_address_is_never_contacted(site: Site, tmp_path: Path) -> None:
    """Discovery is the broken step, and no certificate is shown to an address that it did not give."""
    forge = Forge()
    with tls_target(Target(loopback()), forge.leaf(f"{NAMESPACE}/x"), forge.root, tmp_path) as stranger:
        found = site.explained(stranger.authority)
        assert found["broken"] == "discovery"
        assert "does not announce it" in found["steps"][-1]["seen"]
        assert not stranger.connections
    other = site.explained(f"http://{site.authorities['fine']}/other")
    assert other["broken"] == "discovery"
    assert "/stats/prometheus" in other["steps"][-1]["remedy"]


def test_unusable_source_is_reported(site: Site) -> None:
    """A target that is missing because its file is broken is explained by the file."""
    before = site.proxy.file.read_bytes()
    try:
        site.proxy.file.write_bytes(b"[{")
        eventually(lambda: "cannot be used" in site.explained("127.9.9.9:15092")["steps"][-1]["seen"])
        assert str(site.proxy.file) in site.explained("127.9.9.9:15092")["steps"][-1]["seen"]
    finally:
        site.proxy.file.write_bytes(before)
        eventually(lambda: site.proxy.metric("meshscrape_scrape_proxy_source_up") == 1)


def test_scraper_side_is_checked_first(site: Site, tmp_path: Path) -> None:
    """Missing credentials, those of another trust domain, a wrong token, a proxy that is not there."""
    fine = site.authorities["fine"]
    missing = site.explained(fine, "--credentials", str(tmp_path / "nowhere"))
    assert missing["broken"] == "scraper's certificate"
    west = Forge("west")
    elsewhere = credentials(tmp_path / "west", west, "spiffe://west.example/ns/a/sa/b")
    found = site.explained(fine, "--credentials", str(elsewhere))
    assert found["broken"] == "scraper's certificate"
    assert "cluster.local" in found["steps"][-1]["seen"]
    token = tmp_path / "token"
    token.write_text("x" * 43)
    refused = site.explained(fine, "--token-file", str(token))
    assert refused["broken"] == "discovery"
    assert "401" in refused["steps"][-1]["seen"] and "--token-file" in refused["steps"][-1]["remedy"]
    gone = site.explained(fine, "--discovery", f"{loopback()}:15095")
    assert gone["broken"] == "discovery"
    silent = site.explained(fine, "--proxy", f"{loopback()}:15094")
    assert silent["broken"] == "scrape proxy"


def test_options_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Exit code 2 and one line."""
    for arguments in (
        ["--proxy", "127.0.0.1:1"],
        ["--credentials", str(tmp_path)],
        ["--proxy", "127.0.0.1:1", "--credentials", str(tmp_path), "--state", str(tmp_path)],
    ):
        done = meshscrape("explain", "127.0.0.1:2", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.strip().splitlines()) == 1
