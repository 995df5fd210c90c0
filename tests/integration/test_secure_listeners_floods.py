"""Envoy's advisories of 2026 and floods of HTTP/2 frames against the shipped listeners.

Sources: the release notes of Envoy 1.36.10, 1.37.6, 1.38.4 and 1.39.1 (CVE-2026-73511, -73550 to -73553), and
CVE-2026-47774. Envoy 1.40.0, which is pinned, holds the runtime guards of the same fixes.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from meshscrape.istio.settings import InboundPort
from meshscrape.verify.spellings import other_paths
from support.sidecar import SCRAPER, SERVER, Sidecar, echo_server, proxy_options, running_sidecar
from support.wire import Wire, ask, ask_http2

PATH = "/stats/prometheus"
APPLICATION = 9080
FIELDS = {":method": "GET", ":scheme": "https", ":authority": "pod", ":path": PATH}
REFUSED = (400, 403, 404, 405, 431, "StreamReset", "ConnectionTerminated", "closed")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    directory = tmp_path_factory.mktemp("sidecar")
    options = proxy_options(directory, inbound=(InboundPort(APPLICATION, "STRICT", "http"),))
    with ExitStack() as stack:
        for port in (15020, APPLICATION):
            stack.enter_context(echo_server(options.inside_address, port))
        yield stack.enter_context(running_sidecar(directory, options=options))


@pytest.fixture(scope="module")
def scraper(sidecar: Sidecar) -> ssl.SSLContext:
    return sidecar.forge.leaf(SCRAPER).client_context()


@pytest.fixture
def stranger(sidecar: Sidecar) -> ssl.SSLContext:
    """A member of the mesh that may not scrape, over HTTP/2."""
    context = sidecar.forge.leaf(SERVER).client_context()
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize("port", [15091, 15092])
@pytest.mark.parametrize("spelling", other_paths(PATH, "pod:15091"), ids=repr)
def test_every_spelling_is_refused_over_http2(sidecar: Sidecar, port: int, spelling: str) -> None:
    """Path parameters, fragments and bytes that are not UTF-8 end at Envoy in this codec too."""
    context = sidecar.forge.leaf(SCRAPER).client_context()
    context.set_alpn_protocols(["h2"])
    assert ask_http2(sidecar.pod, port, context, {**FIELDS, ":path": spelling}) in REFUSED


@pytest.mark.parametrize("name", ["host", "cookie"])
@pytest.mark.parametrize("port", [15091, 15092, APPLICATION])
def test_dropped_and_joined_headers_count(sidecar: Sidecar, port: int, name: str) -> None:
    """Host beside :authority, and cookies, are bounded like every other header (73550, 47774)."""
    context = sidecar.forge.leaf(SCRAPER).client_context()
    context.set_alpn_protocols(["h2"])
    # One large value, then 200 references to it: some hundred bytes on the wire, 800 kB decoded.
    many = [(name, "x" * 4000)] * 200
    assert ask_http2(sidecar.pod, port, context, FIELDS, many) in REFUSED
    assert ask_http2(sidecar.pod, port, context, FIELDS, many[:1]) == 200
    assert ask(sidecar.pod, port, PATH, sidecar.forge.leaf(SCRAPER).client_context()).status == 200


def test_a_flood_of_large_headers_costs_no_memory(sidecar: Sidecar, stranger: ssl.SSLContext) -> None:
    """50 connections that each send 16 such requests leave Envoy's memory where it was."""
    before = _allocated(sidecar)
    with ExitStack() as stack:
        for _ in range(50):
            wire = stack.enter_context(Wire(sidecar.pod, 15092, stranger))
            protocol = _http2()
            for number in range(1, 32, 2):
                fields = [*FIELDS.items(), *[("host", "x" * 4000)] * 200]
                protocol.send_headers(number, fields, end_stream=True)
            with contextlib.suppress(OSError):
                wire.socket.sendall(protocol.data_to_send())
        assert _allocated(sidecar) - before < 32 << 20


FLOODS = {
    "ping": b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"x" * 8,
    "settings": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "priority of an idle stream": b"\x00\x00\x05\x02\x00\x00\x00\x00\x01" + b"\x00\x00\x00\x03\x10",
    "window update": b"\x00\x00\x04\x08\x00\x00\x00\x00\x00" + b"\x00\x00\x00\x01",
}


@pytest.mark.parametrize("name", FLOODS)
def test_flood_of_frames_is_ended_or_harmless(
    sidecar: Sidecar, stranger: ssl.SSLContext, scraper: ssl.SSLContext, name: str
) -> None:
    """20,000 frames that nobody reads the answers to: the scraper is served, and no memory is held."""
    before = _allocated(sidecar)
    with Wire(sidecar.pod, 15092, stranger) as wire:
        wire.socket.settimeout(5)
        with contextlib.suppress(OSError):
            wire.socket.sendall(PREFACE)
            for _ in range(20):
                wire.socket.sendall(FLOODS[name] * 1000)
        assert ask(sidecar.pod, 15092, PATH, scraper).status == 200
        assert _allocated(sidecar) - before < 16 << 20


def test_a_body_is_neither_waited_for_nor_kept(sidecar: Sidecar, scraper: ssl.SSLContext) -> None:
    """A POST with a body that never comes is answered at its header, and its connection ends."""
    with Wire(sidecar.pod, 15092, scraper) as wire:
        request = f"POST {PATH} HTTP/1.1\r\nhost: pod\r\ncontent-length: 1000000000\r\n\r\n"
        assert wire.send(request.encode()).status == 405
        assert wire.socket.recv(1) == b""


def _http2() -> H2Connection:
    protocol = H2Connection(
        H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False)
    )
    protocol.initiate_connection()
    return protocol


def _allocated(sidecar: Sidecar) -> int:
    """The bytes that Envoy has allocated."""
    return int(json.loads(sidecar.envoy.admin("/memory")[1])["allocated"])
