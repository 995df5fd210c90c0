"""Hostile peers on the secure ports, while the scraper and the application's clients go on undisturbed."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from meshscrape.istio.settings import InboundPort
from support.bystanders import Bystander, Bystanders, KeptAlive, fresh
from support.forgery import Forge, Pair, any_server
from support.polling import eventually
from support.sidecar import SCRAPER, SERVER, Sidecar, echo_server, proxy_options, running_sidecar
from support.wire import Answer, Wire, alert, ask_http2

PATH = "/stats/prometheus"
APPLICATION = 9080
SECURE = (15091, 15092)
METRICS = b"# TYPE envoy_"
# What the agent's stand-in would say, Envoy's statistics, and signs of the admin API.
SECRETS = (METRICS, b'"path"', b"static_listeners", b"certificate_chain", b"server_info", b"LIVE")
HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class World:
    """The attacked sidecar, who must not notice, and certificates to attack with."""

    sidecar: Sidecar
    bystanders: Bystanders
    scraper: ssl.SSLContext
    stranger: ssl.SSLContext

    @property
    def pod(self) -> str:
        return self.sidecar.pod

    def counted(self, name: str) -> int:
        """A counter of Envoy's, by its whole name."""
        return self.sidecar.envoy.stats(f"^{re.escape(name)}$").get(name, 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("sidecar")
    options = proxy_options(directory, inbound=(InboundPort(APPLICATION, "STRICT"),))
    with (
        running_sidecar(directory, options=options) as sidecar,
        echo_server(options.inside_address, options.merged_port),
        echo_server(options.inside_address, APPLICATION),
    ):
        scraper = sidecar.forge.leaf(SCRAPER).client_context()
        stranger = sidecar.forge.leaf(SERVER).client_context()
        with bystanders(sidecar.pod, scraper, stranger).running() as unharmed:
            yield World(sidecar, unharmed, scraper, stranger)


def bystanders(pod: str, scraper: ssl.SSLContext, member: ssl.SSLContext) -> Bystanders:
    """The scraper on a kept connection and on new ones, and a workload that talks to the application."""
    kept, client = KeptAlive(pod, 15091, scraper), KeptAlive(pod, APPLICATION, member)

    def scrape() -> None:
        assert METRICS in kept.get(f"{PATH}?usedonly")

    def scrape_anew() -> None:
        assert b'"path"' in fresh(pod, 15092, scraper, PATH)

    def use_the_application() -> None:
        assert json.loads(client.send("POST", "/orders", b"one more"))["body"] == "one more"

    return Bystanders(
        Bystander("scraper, kept alive", scrape),
        Bystander("scraper, a handshake each", scrape_anew),
        Bystander("the application's client", use_the_application),
    )


@pytest.fixture(autouse=True)
def nobody_else_notices(world: World) -> Iterator[None]:
    """Whatever a test here does, no request of anybody else fails."""
    world.bystanders.check()
    yield
    world.bystanders.check()


@dataclass(frozen=True, slots=True)
class Intruder:
    """Somebody who must not finish a handshake: as whom, the alert, and Envoy's counter below `ssl.`."""

    certificate: str
    alerts: tuple[str, ...]
    counter: str
    maximum: ssl.TLSVersion | None = None


INTRUDERS = {
    "no certificate": Intruder("none", ("TLSV13_ALERT_CERTIFICATE_REQUIRED",), "fail_verify_no_cert"),
    "self-signed": Intruder("self-signed", ("TLSV1_ALERT_UNKNOWN_CA",), "fail_verify_error"),
    "another CA of the same name": Intruder(
        "namesake", ("TLSV1_ALERT_DECRYPT_ERROR", "TLSV1_ALERT_UNKNOWN_CA"), "fail_verify_error"
    ),
    "the allowed ID, by another trust domain's CA": Intruder(
        "other trust domain", ("TLSV1_ALERT_UNKNOWN_CA",), "fail_verify_error"
    ),
    "issued by a workload's own certificate": Intruder(
        "below a leaf", ("TLSV1_ALERT_UNKNOWN_CA",), "fail_verify_error"
    ),
    "a certificate for servers alone": Intruder(
        "server", ("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",), "fail_verify_error"
    ),
    "expired": Intruder("expired", ("SSLV3_ALERT_CERTIFICATE_EXPIRED",), "fail_verify_error"),
    "not yet valid": Intruder("not yet valid", ("SSLV3_ALERT_CERTIFICATE_EXPIRED",), "fail_verify_error"),
    "TLS 1.0": Intruder(
        "scraper", ("TLSV1_ALERT_PROTOCOL_VERSION",), "connection_error", ssl.TLSVersion.TLSv1
    ),
    "TLS 1.1": Intruder(
        "scraper", ("TLSV1_ALERT_PROTOCOL_VERSION",), "connection_error", ssl.TLSVersion.TLSv1_1
    ),
}


@pytest.mark.parametrize("port", SECURE)
@pytest.mark.parametrize("name", INTRUDERS)
def test_an_intruder_is_refused_in_the_handshake(world: World, name: str, port: int) -> None:
    """By the alert that fits, and by the counter of that port and kind."""
    intruder = INTRUDERS[name]
    listener = "secure_metrics" if port == 15091 else "secure_merged_metrics"
    counter = f"listener.{listener}_{port}.ssl.{intruder.counter}"
    before = world.counted(counter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pair = certificate(world.sidecar.forge, intruder.certificate)
        context = pair.client_context(maximum=intruder.maximum) if pair else any_server()
    assert alert(world.pod, port, context) in intruder.alerts
    eventually(lambda: world.counted(counter) > before, what=counter)


def certificate(mesh: Forge, kind: str) -> Pair | None:
    """A certificate that says it is the scraper's, as wrong as `kind` says."""
    match kind:
        case "scraper":
            return mesh.leaf(SCRAPER)
        case "self-signed":
            return Forge("myself").leaf(SCRAPER, self_signed=True)
        case "namesake":
            return Forge().leaf(SCRAPER)
        case "other trust domain":
            return Forge("partner.example").leaf(SCRAPER)
        case "below a leaf":
            return Forge.below(mesh.leaf(SERVER)).leaf(SCRAPER)
        case "server":
            return mesh.leaf(SCRAPER, client=False)
        case "expired":
            return mesh.leaf(SCRAPER, valid_from=-2 * HOUR, valid_until=-HOUR)
        case "not yet valid":
            return mesh.leaf(SCRAPER, valid_from=HOUR, valid_until=2 * HOUR)
    return None


@pytest.mark.parametrize("port", SECURE)
@pytest.mark.parametrize("data", [b"GET /stats/prometheus HTTP/1.1\r\nhost: pod\r\n\r\n", bytes(64)])
def test_plaintext_gets_no_answer(world: World, port: int, data: bytes) -> None:
    """Plain HTTP and garbage: closed without a byte of HTTP, and counted."""
    listener = "secure_metrics" if port == 15091 else "secure_merged_metrics"
    counter = f"listener.{listener}_{port}.ssl.connection_error"
    before = world.counted(counter)
    with Wire(world.pod, port) as wire:
        wire.socket.sendall(data)
        assert b"HTTP/" not in everything(wire.socket)
    eventually(lambda: world.counted(counter) > before, what=counter)


@pytest.mark.parametrize("port", SECURE)
@pytest.mark.parametrize(
    "uri",
    [
        SCRAPER.replace("cluster.local", "partner.example"),
        SCRAPER.replace("cluster.local", "cluster.local."),
        SCRAPER.replace("cluster.local", "cluster.local:443"),
        SCRAPER.replace("cluster.local", "x@cluster.local"),
        SCRAPER.replace("prometheus", "%50rometheus"),
        SCRAPER.replace("/sa/", "%2fsa%2f"),
        SCRAPER.replace("/sa/", "%2Fsa%2F"),
        SCRAPER.replace("/ns/", "//ns/"),
        SCRAPER.replace("spiffe://", "spiffe:/"),
        SCRAPER.replace("spiffe://", "https://"),
        f"{SCRAPER}#x",
        f"{SCRAPER}%00",
        f"{SCRAPER}%0a",
        f" {SCRAPER}",
        f"{SCRAPER}\t",
        f"{SCRAPER}\r\n",
        SCRAPER[:-1],
    ],
)
def test_a_look_alike_is_refused_and_counted(world: World, uri: str, port: int) -> None:
    """The mesh's own CA vouches for a name that merely resembles the listed one: 403, and RBAC's counter."""
    listener = "secure_metrics" if port == 15091 else "secure_merged_metrics"
    counter = f"http.{listener}_{port}.rbac.denied"
    before = world.counted(counter)
    context = world.sidecar.forge.leaf(uri).client_context()
    said = answer(world.pod, port, context, request())
    assert said.status == 403
    assert_nothing_of_substance(said.body)
    assert world.counted(counter) == before + 1


GET = f"GET {PATH} HTTP/1.1\r\n".encode()
LAST = b"connection: close\r\n\r\n"


def request(*headers: str, host: str = "pod") -> bytes:
    """A GET of the metrics, after whose answer the server closes."""
    lines = "".join(f"{line}\r\n" for line in (f"host: {host}", *headers))
    return GET + lines.encode() + LAST


MALFORMED = {
    "HTTP/1.0": (f"GET {PATH} HTTP/1.0\r\n\r\n".encode(), 426),
    "HTTP/1.0 with Host": (f"GET {PATH} HTTP/1.0\r\nhost: pod\r\n\r\n".encode(), 426),
    "HTTP/0.9": (f"GET {PATH}\r\n".encode(), 426),
    "HTTP/3.0": (f"GET {PATH} HTTP/3.0\r\nhost: pod\r\n\r\n".encode(), 426),
    "no Host": (GET + LAST, 400),
    "a list in Host": (request(host="a, b"), 400),
    "a path in Host": (request(host="pod/config_dump"), 400),
    "traversal in Host": (request(host="../../config_dump"), 400),
    "a blank in Host": (request(host="a b"), 400),
    "NUL in Host": (request(host="p\0d"), 400),
    "a folded header": (request(" x: y"), 400),
    "a blank before a colon": (request("x : y"), 400),
    "huge headers": (request(f"x: {'y' * 20_000}"), 431),
    "many headers": (request(*(f"x{number}: y" for number in range(200))), 431),
}


@pytest.mark.parametrize("who", ["scraper", "stranger"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_is_refused_for_every_client(world: World, name: str, who: str) -> None:
    """Old versions, games with Host and too much of anything end at Envoy's parser, and are counted."""
    data, status = MALFORMED[name]
    counter = "http.secure_metrics_15091.downstream_rq_4xx"
    before = world.counted(counter)
    said = answer(world.pod, 15091, getattr(world, who), data)
    assert said.status == status
    assert_nothing_of_substance(said.body)
    assert world.counted(counter) > before


MISLEADING = {
    "Host of the admin API": request(host="localhost:15000"),
    "an empty Host": request(host=""),
    "two Hosts": request("host: localhost:15000"),
    "a user in Host": request(host="admin@pod"),
    "a long Host": request(host="a" * 7000),
    "headers of other proxies": request(
        "x-forwarded-host: localhost:15000",
        "x-envoy-original-path: /config_dump",
        "x-original-url: /config_dump",
        "x-rewrite-url: /config_dump",
        "x-envoy-original-dst-host: 127.0.0.1:15000",
    ),
    "another method by header": request("x-http-method-override: POST"),
    "somebody else's identity by header": request(
        f"x-forwarded-client-cert: URI={SCRAPER}", f"x-spiffe-id: {SCRAPER}", "x-forwarded-for: 127.0.0.1"
    ),
    "a body": GET + b"host: pod\r\ncontent-length: 6\r\n" + LAST + b"/certs",
}


@pytest.mark.parametrize("name", MISLEADING)
def test_no_header_opens_anything(world: World, name: str) -> None:
    """The scraper gets the statistics and nothing else, a stranger 403, whatever the headers say."""
    said = answer(world.pod, 15091, world.scraper, MISLEADING[name])
    assert said.status == 200
    assert said.body.startswith(METRICS)
    assert b"static_listeners" not in said.body and b"server_info" not in said.body
    counter = "http.secure_metrics_15091.rbac.denied"
    before = world.counted(counter)
    said = answer(world.pod, 15091, world.stranger, MISLEADING[name])
    assert said.status == 403
    assert_nothing_of_substance(said.body)
    assert world.counted(counter) == before + 1


def test_an_absolute_target_is_refused(world: World) -> None:
    """A secure port is no proxy, for nobody."""
    data = request().replace(PATH.encode(), f"http://localhost:15000{PATH}".encode())
    for context in (world.scraper, world.stranger):
        said = answer(world.pod, 15091, context, data)
        assert said.status in (400, 403, 404)
        assert_nothing_of_substance(said.body)


def test_pipelining_is_one_request_at_a_time(world: World) -> None:
    """Each of several requests in one write is judged alone, also behind a 200."""
    more = [f"{line} HTTP/1.1\r\nhost: pod\r\n\r\n".encode() for line in ("GET /config_dump", "GET /certs")]
    said = exchange(world.pod, 15091, world.scraper, GET + b"host: pod\r\n\r\n" + b"".join(more) + request())
    assert statuses(said)[:2] == [200, 404]
    assert b"static_listeners" not in said and b"certificate_chain" not in said

    counter = "http.secure_metrics_15091.rbac.denied"
    before = world.counted(counter)
    said = exchange(world.pod, 15091, world.stranger, (GET + b"host: pod\r\n\r\n") * 50 + request())
    assert set(statuses(said)) == {403}
    assert_nothing_of_substance(said)
    assert world.counted(counter) >= before + len(statuses(said))


FIELDS = {":method": "GET", ":scheme": "https", ":authority": "pod", ":path": PATH}


@pytest.mark.parametrize(
    ("changes", "headers"),
    [
        ({}, {}),
        ({":authority": "localhost:15000"}, {}),
        ({}, {"x-forwarded-client-cert": f"URI={SCRAPER}"}),
        ({}, {"host": "localhost:15000"}),
        ({":path": "/config_dump"}, {}),
        ({":scheme": "http"}, {}),
        ({}, {"x": "y" * 20_000}),
    ],
    ids=str,
)
def test_a_stranger_gets_nothing_over_http2(
    world: World, changes: dict[str, str], headers: dict[str, str]
) -> None:
    """The same certificate is refused in the other protocol too, whatever the pseudo-headers are."""
    context = world.sidecar.forge.leaf(SERVER).client_context()
    context.set_alpn_protocols(["h2"])
    seen = ask_http2(world.pod, 15091, context, {**FIELDS, **changes}, **headers)
    assert seen in (400, 403, 404, 431, "StreamReset", "ConnectionTerminated", "closed")


def test_scraper_succeeds_beside_thousands_of_idle_connections(world: World) -> None:
    """2,000 silent connections, and 200 that shook hands: the scraper still gets in."""
    accepted = "listener.secure_merged_metrics_15092.downstream_cx_total"
    before = world.counted(accepted)
    with contextlib.ExitStack() as held, world.bystanders.unharmed():
        for number in range(2000):
            # Half of them begin a handshake that they never go on with.
            silent = held.enter_context(socket.create_connection((world.pod, 15092), 10))
            if number % 2:
                silent.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        for _ in range(200):
            held.enter_context(Wire(world.pod, 15092, world.stranger))
        # Envoy drops silent ones after a while, so on a slow machine they are never all open at once.
        eventually(lambda: world.counted(accepted) - before > 2000, what="idle connections")


def test_slow_requests_do_not_delay_the_scraper(world: World) -> None:
    """200 strangers whose requests never end, each a byte at a time, cost the others nothing."""
    with contextlib.ExitStack() as held, world.bystanders.unharmed():
        wires = [held.enter_context(Wire(world.pod, 15092, world.stranger)) for _ in range(200)]
        for byte in GET[:20]:
            for wire in wires:
                wire.socket.sendall(bytes([byte]))


def test_streams_that_are_reset_at_once_do_not_delay_the_scraper(world: World) -> None:
    """A stranger who opens and resets streams as fast as it can is cut off; nobody else notices."""
    context = world.sidecar.forge.leaf(SERVER).client_context()
    context.set_alpn_protocols(["h2"])
    with world.bystanders.unharmed(), Wire(world.pod, 15092, context) as wire:
        protocol = H2Connection(H2Configuration(client_side=True))
        protocol.initiate_connection()
        with contextlib.suppress(OSError):
            for number in range(1, 4000, 2):
                protocol.send_headers(number, list(FIELDS.items()), end_stream=True)
                protocol.reset_stream(number)
                wire.socket.sendall(protocol.data_to_send())
        assert METRICS not in everything(wire.socket)


def test_headers_without_an_end_are_cut_off(world: World) -> None:
    """CONTINUATION frames for ever end with the connection, not with the memory."""
    context = world.sidecar.forge.leaf(SERVER).client_context()
    context.set_alpn_protocols(["h2"])
    with world.bystanders.unharmed(), Wire(world.pod, 15092, context) as wire:
        wire.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, b""))
        # HPACK: a literal header without indexing, new name `x`, value of 8,000 bytes.
        wire.socket.sendall(frame(1, 1, HEADER))
        with contextlib.suppress(OSError):
            for _ in range(1000):
                wire.socket.sendall(frame(9, 1, HEADER))
        assert ended(wire.socket)


HEADER = b"\x00\x01x\x7f\xc1\x3d" + b"y" * 8000


def frame(kind: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame without flags (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3) + bytes([kind, 0]) + stream.to_bytes(4) + payload


def answer(address: str, port: int, context: ssl.SSLContext, data: bytes) -> Answer:
    """Send these bytes over mutual TLS; the first answer."""
    with Wire(address, port, context) as wire:
        return wire.send(data)


def exchange(address: str, port: int, context: ssl.SSLContext, data: bytes) -> bytes:
    """Send these bytes over mutual TLS; everything that comes back until the server closes."""
    with Wire(address, port, context) as wire:
        wire.socket.sendall(data)
        return everything(wire.socket)


def everything(connection: socket.socket) -> bytes:
    """What arrives until the other side closes or resets."""
    seen = bytearray()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while chunk := connection.recv(65536):
            seen += chunk
    return bytes(seen)


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes; TimeoutError if it does not."""
    everything(connection)
    return True


def statuses(said: bytes) -> list[int]:
    """The status of each answer over HTTP/1.1."""
    return [int(found) for found in re.findall(rb"^HTTP/1\.1 (\d+) ", said, re.MULTILINE)]


def assert_nothing_of_substance(said: bytes) -> None:
    """Not a byte of metrics, of the agent or of the admin API."""
    assert not [secret for secret in SECRETS if secret in said]
