"""Scrape proxies that share their targets: over mutual TLS, or with a token on the same machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from meshscrape.prometheus.targets import MERGED_JOB
from meshscrape.system.files import write_atomic
from support.addresses import loopback
from support.forgery import Forge, Pair
from support.mesh import meshscrape
from support.polling import eventually
from support.scrape_proxy import SCRAPER, RunningProxy, credentials, group
from support.targets import Target, tls_target

WEB = "spiffe://cluster.local/ns/shop/sa/web"
FOLLOWER = "spiffe://cluster.local/ns/other/sa/prometheus"


class Sharing:
    """A proxy with one target of the mesh's job, which it shares at `address`."""

    def __init__(self, directory: Path, forge: Forge, target: Target) -> None:
        self.forge, self.target, self._directory = forge, target, directory
        (directory / "first").mkdir()
        scraper = str(credentials(directory / "scraper", forge))
        self.proxy = RunningProxy(directory / "first", loopback(), [scraper])
        self.proxy.announce([])
        self._file = file = directory / "shared.json"
        self.share(group(target.authority, WEB))
        self.address = f"{self.proxy.address}:15098"
        self._options = ["--targets", f"{MERGED_JOB}={file}", "--share", self.address]

    def share(self, *groups: Mapping[str, Any]) -> None:
        """Replace the targets that the proxy shares."""
        write_atomic(self._file, json.dumps(groups).encode())

    def start(self, *more: str) -> None:
        """Start the proxy that shares."""
        self.proxy.start(*self._options, *more)

    def follower(self, identity: str = SCRAPER) -> RunningProxy:
        """A proxy with a certificate of its own, not started."""
        directory = self._directory / "second"
        directory.mkdir()
        own = str(credentials(directory / "scraper", self.forge, identity))
        proxy = RunningProxy(directory, loopback(), [own])
        proxy.announce([])
        return proxy

    def asked(self, pair: Pair | None, path: str = f"/targets/{MERGED_JOB}", method: str = "GET") -> int:
        """The status of a request with a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=self.forge.root.decode())
        if pair is not None:
            file = self._directory / "client.pem"
            file.write_bytes(pair.chain + pair.key)
            context.load_cert_chain(file)
        host, port = self.address.rsplit(":", 1)
        connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=context)
        with contextlib.closing(connection):
            connection.request(method, path)
            return connection.getresponse().status


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Sharing]:
    """A target, and a proxy that shares it (not started); the proxy is ended."""
    forge = Forge()
    with tls_target(Target(loopback()), forge.leaf(WEB), forge.root, tmp_path) as target:
        shared = Sharing(tmp_path, forge, target)
        try:
            yield shared
        finally:
            shared.proxy.stop()


def follows(shared: Sharing, second: RunningProxy, follow: Sequence[str], source: str) -> None:
    """Start a follower: it scrapes, keeps its targets while the other is away, and comes back."""
    authority = shared.target.authority
    second.start(*follow)
    try:
        assert second.scrape(authority).status == 200
        reloads = second.metric("meshscrape_scrape_proxy_reloads_total")
        shared.proxy.process.kill()
        shared.proxy.process.wait(10)
        eventually(lambda: second.metric("meshscrape_scrape_proxy_source_up", source=source) == 0)
        assert second.scrape(authority).status == 200
        shared.start()
        eventually(lambda: second.metric("meshscrape_scrape_proxy_source_up", source=source) == 1)
        assert second.scrape(authority).status == 200
        # The other proxy has no target of the other jobs: that is no change either.
        assert second.metric("meshscrape_scrape_proxy_reloads_total") <= reloads + 2
    finally:
        assert second.stop() == 0


def test_a_proxy_follows_another_one_over_mutual_tls(sharing: Sharing) -> None:
    """Replicas have one ServiceAccount, so they need neither a token nor an option about identities."""
    sharing.start()
    follow = ["--follow", sharing.address]
    follows(sharing, sharing.follower(), follow, f"scrape proxy at {sharing.address}")


def test_a_change_reaches_the_follower(sharing: Sharing) -> None:
    """A target comes, and the one that was there goes; a Prometheus may read the same list at the port."""
    sharing.start()
    second = sharing.follower()
    second.start("--follow", sharing.address)
    new = f"{loopback()}:15092"
    try:
        first = second.http_sd(MERGED_JOB)
        assert [address for entry in first for address in entry["targets"]] == [sharing.target.authority]
        sharing.share(group(new, WEB))
        eventually(lambda: second.scrape(sharing.target.authority).reason == "unknown-target")
        assert second.scrape(new).reason == "unreachable"
        assert second.http_sd(MERGED_JOB) == sharing.proxy.http_sd(MERGED_JOB)
        assert sharing.asked(sharing.forge.leaf(SCRAPER)) == 200
    finally:
        assert second.stop() == 0


def test_a_first_start_without_the_other_proxy_is_one_line(tmp_path: Path) -> None:
    """There are no targets of an earlier run then, which is no news."""
    scraper = str(credentials(tmp_path / "scraper", Forge()))
    second = RunningProxy(tmp_path, loopback(), [scraper])
    second.announce([])
    second.launch("--follow", f"{loopback()}:15098")
    assert second.process.wait(60) == 2
    assert len(second.said().splitlines()) == 1, second.said()


def test_a_proxy_follows_another_one_of_its_machine_with_a_token(sharing: Sharing) -> None:
    """On loopback the token does not cross a network."""
    sharing.start()
    address = sharing.proxy.discovery
    follow = ["--follow", address, "--follow-token-file", str(sharing.proxy.token_file)]
    follows(sharing, sharing.follower(), follow, f"scrape proxy at {address}")


def test_targets_are_told_to_the_named_identities_only(sharing: Sharing) -> None:
    """Its own and the named one; not another workload, another CA, or a client without a certificate."""
    sharing.start("--share-with", FOLLOWER)
    assert sharing.asked(sharing.forge.leaf(SCRAPER)) == 200
    assert sharing.asked(sharing.forge.leaf(FOLLOWER)) == 200
    assert sharing.asked(sharing.forge.leaf(WEB)) == 403
    assert sharing.asked(sharing.forge.leaf(SCRAPER), "/metrics") == 404
    assert sharing.asked(sharing.forge.leaf(SCRAPER), "/targets/mesh/../../metrics") == 404
    assert sharing.asked(sharing.forge.leaf(SCRAPER), method="POST") == 405
    for stranger in (None, Forge("other").leaf(SCRAPER)):
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            sharing.asked(stranger)


def test_another_identity_follows_where_both_sides_name_the_other(sharing: Sharing) -> None:
    """`--share-with` on one side and `--follow-id` on the other."""
    sharing.start("--share-with", FOLLOWER)
    second = sharing.follower(FOLLOWER)
    second.start("--follow", sharing.address, "--follow-id", SCRAPER)
    try:
        assert second.scrape(sharing.target.authority).status == 200
    finally:
        assert second.stop() == 0


def test_targets_of_an_impostor_are_not_used(sharing: Sharing) -> None:
    """A workload of the mesh that listens at the address; the follower ends, because it has no targets."""
    sharing.start("--share-with", FOLLOWER)
    second = sharing.follower(FOLLOWER)
    second.launch("--follow", sharing.address)
    assert second.process.wait(60) == 2
    assert f"{SCRAPER} answers, {FOLLOWER} was expected; nothing was sent" in second.said()


def test_a_follower_that_is_not_named_ends_with_one_line(sharing: Sharing) -> None:
    """The line says what to add to the other proxy."""
    sharing.start()
    second = sharing.follower(FOLLOWER)
    second.launch("--follow", sharing.address, "--follow-id", SCRAPER)
    assert second.process.wait(60) == 2
    assert "--share-with" in second.said()
    assert "Traceback" not in second.said()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--follow", "10.0.0.5:15095", "--follow-token-file", "/t"], "--follow-plaintext"),
        (["--follow", "a.example:15095", "--follow-token-file", "/t"], "--follow-plaintext"),
        (["--follow", "127.0.0.1:15095", "--follow-token-file", "/t", "--follow-id", SCRAPER], "--follow-id"),
        (["--follow", "10.0.0.5:15095", "--follow-id", "web"], "--follow-id: 'web' is not a SPIFFE ID"),
        (["--follow", "10.0.0.5:15095", "--share-with", "web"], "--share-with: 'web' is not a SPIFFE ID"),
        (["--follow", "127.0.0.1:15095", "--share", "a.example:1"], "write 10.0.0.5:1"),
        (
            ["--follow", "127.0.0.1:15095", "--discovery", "localhost:7"],
            "--discovery: 'localhost' is not an IP",
        ),
    ],
)
def test_unsafe_or_contradictory_ways_are_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    """A token is not sent to another machine in plaintext unless that is asked for."""
    scraper = str(credentials(tmp_path / "scraper", Forge()))
    done = meshscrape(
        "proxy", "--dir", str(tmp_path / "proxy"), "--credentials", scraper, "--wait", "0", *options
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
