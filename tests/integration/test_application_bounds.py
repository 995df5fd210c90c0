"""What clients of an application port may hold, and which certificates it accepts."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from meshscrape.envoy import bounds
from meshscrape.envoy.bootstrap import bootstrap, dynamic_files
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.istio.settings import InboundPort
from support.envoy import running_envoy, write_resources
from support.forgery import Forge, Pair
from support.polling import eventually
from support.serving import serving
from support.sidecar import (
    ALLOW,
    SCRAPER,
    SERVER,
    Sidecar,
    echo_server,
    proxy_options,
    publish_credentials,
    running_sidecar,
)
from support.wire import Wire, ask, ask_http2

STRICT, PERMISSIVE, DISABLE = 9080, 9081, 9082
INBOUND = (
    InboundPort(STRICT, "STRICT", "http"),
    InboundPort(PERMISSIVE, "PERMISSIVE", "http"),
    InboundPort(DISABLE, "DISABLE", "http"),
)
SILENT = 2000


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    directory = tmp_path_factory.mktemp("sidecar")
    options = proxy_options(directory, inbound=INBOUND)
    with ExitStack() as stack:
        for port in (STRICT, PERMISSIVE, DISABLE):
            stack.enter_context(echo_server(options.inside_address, port))
        yield stack.enter_context(running_sidecar(directory, options=options))


@pytest.fixture(scope="module")
def member(sidecar: Sidecar) -> ssl.SSLContext:
    return sidecar.forge.leaf(SCRAPER).client_context()


STRANGE: dict[str, Callable[[Forge], Pair]] = {
    "two IDs": lambda forge: forge.leaf(SCRAPER, SERVER),
    "no name": lambda forge: forge.leaf(),
    "only a DNS name": lambda forge: forge.leaf(dns=["httpbin.default"]),
    "another trust domain": lambda forge: forge.leaf("spiffe://other.example/ns/default/sa/httpbin"),
    "a longer trust domain": lambda forge: forge.leaf("spiffe://cluster.local.example/ns/a/sa/b"),
    "no path": lambda forge: forge.leaf("spiffe://cluster.local"),
    "another scheme": lambda forge: forge.leaf("https://cluster.local/ns/default/sa/httpbin"),
    "an ID with a comma": lambda forge: forge.leaf(f"{SCRAPER},{SERVER}"),
}


@pytest.mark.parametrize("port", [STRICT, PERMISSIVE])
@pytest.mark.parametrize("name", STRANGE)
def test_a_certificate_without_one_id_of_the_mesh_is_refused(sidecar: Sidecar, name: str, port: int) -> None:
    """A certificate that the mesh's root signed, but for no single workload of the mesh, gets 403."""
    pair = STRANGE[name](sidecar.forge)
    answer = ask(sidecar.pod, port, "/get", pair.client_context())
    assert (answer.status, "exactly one SPIFFE ID" in answer.text) == (403, True)


def test_a_refused_certificate_is_refused_over_http2_and_for_upgrades(sidecar: Sidecar) -> None:
    """The rule does not depend on the protocol of the request."""
    stranger = sidecar.forge.leaf(SCRAPER, SERVER).client_context()
    with Wire(sidecar.pod, STRICT, stranger) as wire:
        upgrade = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        assert wire.send(upgrade).status == 403
    stranger.set_alpn_protocols(["h2"])
    pseudo = {":method": "GET", ":scheme": "https", ":authority": "pod", ":path": "/get"}
    assert ask_http2(sidecar.pod, STRICT, stranger, pseudo) == 403


@pytest.mark.parametrize("port", [STRICT, PERMISSIVE])
def test_a_workload_with_an_additional_dns_name_is_accepted(sidecar: Sidecar, port: int) -> None:
    """Istio's own certificates of gateways carry DNS names beside the SPIFFE ID."""
    pair = sidecar.forge.leaf(SCRAPER, dns=["prometheus.istio-system.svc"])
    assert ask(sidecar.pod, port, "/get", pair.client_context()).status == 200


def test_an_applications_own_403_is_passed_on_unchanged(tmp_path: Path) -> None:
    """Only refusals of the sidecar get its text; they are logged with the names of the certificate."""
    options = proxy_options(tmp_path, inbound=INBOUND[:1])
    with running_sidecar(tmp_path, options=options) as sidecar, _forbidding(options.inside_address, STRICT):
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        answer = ask(sidecar.pod, STRICT, "/get", friend)
        assert (answer.status, answer.body) == (403, b"mine")
        stranger = sidecar.forge.leaf(SCRAPER, SERVER).client_context()
        assert ask(sidecar.pod, STRICT, "/get", stranger).status == 403
        eventually(lambda: f"{SCRAPER},{SERVER}" in sidecar.envoy.output(), what="the line of the refusal")
        assert sidecar.envoy.output().count('"status":403') == 1


@pytest.mark.parametrize(("bits", "accepted"), [(2047, False), (2048, True)])
def test_envoy_serves_no_short_rsa_key_of_its_own(tmp_path: Path, bits: int, accepted: bool) -> None:
    """An RSA certificate below 2048 bits is rejected, and no port is served without one."""
    options, forge = proxy_options(tmp_path, inbound=INBOUND[:1]), Forge()
    publish_credentials(options, forge.leaf(SERVER, rsa_bits=bits), forge.root)
    write_resources(Path(options.files_dir), dynamic_files(options, parse_scrapers(ALLOW)))
    friend = forge.leaf(SCRAPER).client_context()
    with (
        running_envoy(tmp_path, bootstrap(options)) as envoy,
        echo_server(options.inside_address, STRICT),
        nullcontext() if accepted else pytest.raises(OSError),
    ):
        assert ask(options.pod_addresses[0], STRICT, "/get", friend).status == 200
    assert ("2048-bit or larger" in envoy.output()) is not accepted


def test_silent_connections_are_closed_at_the_handshake_deadline(sidecar: Sidecar) -> None:
    """A client that never speaks loses its connection, whether or not the port accepts plaintext."""
    with ExitStack() as stack:
        ports = (STRICT, PERMISSIVE)
        for silent in [stack.enter_context(socket.create_connection((sidecar.pod, port))) for port in ports]:
            silent.settimeout(4 * 5)
            assert silent.recv(1) == b""


def test_thousands_of_silent_connections_do_not_keep_a_workload_out(
    sidecar: Sidecar, member: ssl.SSLContext
) -> None:
    """While 2,000 connections wait for their handshake, requests over new mutual TLS are answered."""
    with ExitStack() as stack:
        for _ in range(SILENT):
            stack.enter_context(socket.create_connection((sidecar.pod, STRICT)))
        assert ask(sidecar.pod, STRICT, "/get", member).status == 200


def test_plaintext_clients_cannot_take_the_places_of_mutual_tls(tmp_path: Path) -> None:
    """On a full PERMISSIVE port half of the places are left to clients that authenticate."""

    def small(config: dict[str, Any]) -> None:
        """Keep the proportion of the shipped limits, with numbers that a test can fill."""
        runtime = config["layered_runtime"]["layers"][0]["static_layer"]
        limit = f"envoy.resource_limits.listener.inbound_{PERMISSIVE}.connection_limit"
        scale = runtime[limit] // 8
        runtime[limit] = 8
        for each in _filters(config, "envoy.filters.network.connection_limit"):
            each["max_connections"] //= scale

    options = proxy_options(tmp_path, inbound=INBOUND[1:2])
    with (
        running_sidecar(tmp_path, options=options, edit=small) as sidecar,
        echo_server(options.inside_address, PERMISSIVE),
        ExitStack() as stack,
    ):
        friend = sidecar.forge.leaf(SCRAPER).client_context()
        refused = 0
        for _ in range(12):
            wire = stack.enter_context(Wire(sidecar.pod, PERMISSIVE))
            try:
                assert wire.get("/get").status == 200
            except OSError:
                refused += 1
        assert refused == 8
        for _ in range(3):
            held = stack.enter_context(Wire(sidecar.pod, PERMISSIVE, friend))
            assert held.get("/get").status == 200


@pytest.mark.parametrize(("port", "tls"), [(STRICT, True), (PERMISSIVE, False), (DISABLE, False)])
def test_an_idle_connection_is_closed(tmp_path: Path, port: int, tls: bool) -> None:
    """A connection without a request ends after the idle timeout, plaintext sooner than mutual TLS."""
    shipped: list[str] = []

    def short(config: dict[str, Any]) -> None:
        for each in _filters(config, "envoy.filters.network.http_connection_manager"):
            shipped.append(each["common_http_protocol_options"]["idle_timeout"])
            each["common_http_protocol_options"]["idle_timeout"] = "0.5s"
            # An idle connection is drained before it is closed.
            each["drain_timeout"] = "0.1s"

    chosen = [each for each in INBOUND if each.port == port]
    options = proxy_options(
        tmp_path, inbound=chosen, stats_port=0, merged_port=0, health_port=0, secure_stats_port=0,
        secure_merged_port=0,
    )  # fmt: skip
    with (
        running_sidecar(tmp_path, options=options, edit=short) as sidecar,
        echo_server(options.inside_address, port),
    ):
        friend = sidecar.forge.leaf(SCRAPER).client_context() if tls else None
        with Wire(sidecar.pod, port, friend) as wire:
            assert wire.get("/get").status == 200
            assert wire.socket.recv(1) == b""
    expected = bounds.TRAFFIC if tls else bounds.PLAIN_TRAFFIC
    assert f"{expected.idle_timeout:g}s" in shipped


class _Forbid(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"mine")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _forbidding(address: str, port: int) -> Iterator[None]:
    """Run an application that answers every request with a 403 of its own."""
    with serving(ThreadingHTTPServer((address, port), _Forbid)):
        yield


def _filters(config: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The configurations of the network filters of this name, in all listeners."""
    return [
        each["typed_config"]
        for listener in config["static_resources"]["listeners"]
        for chain in listener["filter_chains"]
        for each in chain["filters"]
        if each["name"] == name
    ]
