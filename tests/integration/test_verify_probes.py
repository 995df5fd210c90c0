"""Probes tell apart what really happened on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import identity_of
from meshscrape.system.files import publish
from meshscrape.verify.identities import look_alike, read_credentials
from meshscrape.verify.observations import (
    Answered,
    Closed,
    ConnectionRefused,
    NotHttp,
    Observation,
    Presented,
    Reset,
    TimedOut,
    TlsAlert,
    TlsFailed,
)
from meshscrape.verify.probe import ANONYMOUS, PLAIN, Probe
from meshscrape.verify.probes import Timeouts, TlsContexts, Visitor, observe
from meshscrape.verify.run import VerifyOptions, verify
from support.addresses import loopback
from support.ca import TestCa
from support.status import sidecar, status, workload

PATIENT = Timeouts()
HASTY = Timeouts(connect=0.2, handshake=0.2, answer=0.2)

Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def server(behave: Behaviour) -> Iterator[Probe]:
    """A server that treats each connection with `behave`; yields a plain probe of it."""
    address = loopback()
    with socket.create_server((address, 0)) as listening:
        port = listening.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(10)
                        behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Probe(address, port, PLAIN)
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def look(behave: Behaviour, timeouts: Timeouts = PATIENT) -> Observation:
    with server(behave) as probe:
        return asyncio.run(observe(probe, None, timeouts))


def saying(data: bytes) -> Behaviour:
    """Read the request, say `data`, close."""

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(data)

    return behave


def reset(connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Answered(200, (("content-length", "2"),), b"hi")),
        (b"HTTP/1.0 404 Not Found\r\n\r\nno", Answered(404, (), b"no")),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi",
            Answered(200, (("content-length", "9"),), b"hi", end="cut"),
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
         Answered(403, (("content-length", "0"),))),
        (b"", Closed()),
        (b"SSH-2.0-OpenSSH\r\n", NotHttp(b"SSH-2.0-OpenSSH\r\n")),
        (b"\x15\x03\x01\x00\x02\x02\x46", TlsAlert("protocol version")),
    ],
)  # fmt: skip
def test_observation_equals_the_servers_answer(data: bytes, seen: Observation) -> None:
    """Whole and cut answers, an end, other protocols and TLS's own complaint are each their own thing."""
    assert look(saying(data)) == seen


def test_reset_differs_from_close() -> None:
    """A connection that is reset is told as such."""
    assert look(reset) == Reset()


def test_silence_is_a_timeout_not_a_refusal() -> None:
    """A server that says nothing is timed out, in the phase in which it was silent."""
    assert look(silent, HASTY) == TimedOut("answer")


def test_closed_port_is_a_refused_connection() -> None:
    """A port on which nothing listens."""
    with server(silent) as probe:
        pass
    assert asyncio.run(observe(probe, None, PATIENT)) == ConnectionRefused()


def test_an_endless_body_is_read_up_to_the_limit() -> None:
    """A hostile server cannot fill the memory of the one who looks."""

    def endless(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    seen = look(endless)
    assert isinstance(seen, Answered)
    assert (seen.end, len(seen.body)) == ("limit", 4096)


def test_an_endless_header_is_given_up() -> None:
    """Bytes without an end of the header are no HTTP."""

    def endless(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"x: " + b"x" * 65536 + b"\r\n")

    assert isinstance(look(endless), NotHttp)


def test_slow_server_is_given_up() -> None:
    """One that never falls silent for long, and never ends either, takes no more than the whole time."""

    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                connection.recv(1)

    assert look(drip, Timeouts(total=0.5)) == TimedOut("answer")


AUTHORITY = TestCa()


def contexts(directory: Path) -> TlsContexts:
    """A client without a certificate that knows AUTHORITY."""
    made = [ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(3)]
    for each in made:
        each.check_hostname = False
        each.verify_mode = ssl.CERT_NONE
    made[2].verify_mode = ssl.CERT_REQUIRED
    made[2].load_verify_locations(cadata=AUTHORITY.root_pem.decode())
    return TlsContexts(*made)


def tls_server(directory: Path, authority: TestCa, *, mutual: bool, newest: ssl.TLSVersion) -> Behaviour:
    """A TLS server that answers 200; `mutual` asks for a client's certificate."""
    place = authority.workload("default", "x").write(directory / "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "cert-chain.pem", place / "key.pem")
    context.maximum_version = newest
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=AUTHORITY.root_pem.decode())

    def behave(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    return behave


def look_tls(directory: Path, behave: Behaviour, kind: str = "http") -> Observation:
    with server(behave) as probe:
        visit = Probe(probe.address, probe.port, ANONYMOUS, kind)  # type: ignore[arg-type]
        return asyncio.run(observe(visit, contexts(directory), PATIENT))


@pytest.mark.parametrize(
    ("newest", "alert"),
    [
        (ssl.TLSVersion.TLSv1_2, TlsAlert("handshake failure")),
        (ssl.TLSVersion.TLSv1_3, TlsAlert("certificate required")),
    ],
)
def test_a_missing_certificate_is_an_alert_in_every_version(
    tmp_path: Path, newest: ssl.TLSVersion, alert: TlsAlert
) -> None:
    """In TLS 1.3 it comes after the client's handshake is done, and must not be lost."""
    assert look_tls(tmp_path, tls_server(tmp_path, AUTHORITY, mutual=True, newest=newest)) == alert


def test_a_server_without_demands_answers(tmp_path: Path) -> None:
    """Without a demand for a certificate the request goes through."""
    behave = tls_server(tmp_path, AUTHORITY, mutual=False, newest=ssl.TLSVersion.TLSv1_3)
    seen = look_tls(tmp_path, behave)
    assert isinstance(seen, Answered)
    assert seen.status == 200


def test_plain_http_is_a_tls_failure(tmp_path: Path) -> None:
    """A port that answers a handshake with HTTP is told as not speaking TLS."""
    seen = look_tls(tmp_path, saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert seen == TlsFailed("the port does not speak TLS")


@pytest.mark.parametrize("trusted", [True, False])
def test_untrusted_server_is_observed_too(tmp_path: Path, trusted: bool) -> None:
    """The leaf is there to be judged in both cases."""
    authority = AUTHORITY if trusted else TestCa()
    behave = tls_server(tmp_path, authority, mutual=False, newest=ssl.TLSVersion.TLSv1_3)
    seen = look_tls(tmp_path, behave, "certificate")
    assert isinstance(seen, Presented)
    assert seen.leaf
    assert (seen.distrust == "") is trusted


def test_a_silent_port_is_one_finding(tmp_path: Path) -> None:
    """A workload that accepts connections and says nothing is not waited for again and again."""
    scraper = AUTHORITY.workload("istio-system", "prometheus").write(tmp_path / "scraper")
    other = AUTHORITY.workload("default", "other").write(tmp_path / "other")
    lasting: list[socket.socket] = []

    def keep(connection: socket.socket) -> None:
        lasting.append(connection.dup())

    with server(keep) as probe:
        ports = {"secure": {"envoy": probe.port}, "plaintext": {}, "application": []}
        document = status(
            sidecar(address=probe.address, addresses=[probe.address], insideAddress="", ports=ports),
            workload("default", "other", credentials=str(other)),
            workload("istio-system", "prometheus", credentials=str(scraper)),
            prometheus={"url": "", "workload": "istio-system/prometheus"},
        )
        options = VerifyOptions(timeouts=HASTY, skip=frozenset({"expired-certificate"}))
        report = asyncio.run(verify(document, options))
    for each in lasting:
        each.close()
    assert [each.check for each in report.findings] == ["scraper-admitted", "silent-connection"]
    assert len(lasting) < 20


def test_credentials_are_read_as_one_set(tmp_path: Path) -> None:
    """While an agent switches sets, certificate and key always belong together."""
    sets = [AUTHORITY.workload("default", name) for name in ("a", "b")]
    stop = threading.Event()

    def rotate() -> None:
        while not stop.is_set():
            for each in sets:
                publish(tmp_path / "c", {"cert-chain.pem": each.chain_pem, "key.pem": each.key_pem})

    publish(tmp_path / "c", {"cert-chain.pem": sets[0].chain_pem, "key.pem": sets[0].key_pem})
    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        names = {read_credentials(tmp_path / "c").identity.service_account for _ in range(300)}
    finally:
        stop.set()
        thread.join()
    assert names <= {"a", "b"}


def test_credentials_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """A certificate beside another one's key is one clear error."""
    mixed = AUTHORITY.workload("default", "a").write(tmp_path / "a")
    (mixed / "key.pem").write_bytes(AUTHORITY.workload("default", "b").key_pem)
    with pytest.raises(InputError, match="do not belong together"):
        read_credentials(mixed)


def test_the_look_alike_differs_in_its_signer_only() -> None:
    """Same SPIFFE ID, valid now, another CA."""
    honest = AUTHORITY.workload("istio-system", "prometheus")
    fake = look_alike(identity_of(honest.certificate), None, datetime.now(UTC))
    assert fake.identity == identity_of(honest.certificate)
    assert fake.not_after > datetime.now(UTC) + timedelta(minutes=30)
    assert AUTHORITY.root_pem not in fake.chain


class _Keeping:
    """A plain server that keeps connections and counts them; it ends one after `patience` requests."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        for _ in range(self.patience):
            try:
                request = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            path = request.split()[1]
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n%s" % (len(path), path))
        writer.close()


@pytest.mark.parametrize(("patience", "connections"), [(100, 1), (4, 3), (1, 10)])
def test_requests_share_a_connection_as_long_as_the_server_keeps_it(patience: int, connections: int) -> None:
    """Each gets the answer to its own request; one that the server ends in between is asked for anew."""
    address, keeping = loopback(), _Keeping(patience)

    async def visit() -> list[Observation]:
        server = await asyncio.start_server(keeping.serve, address, 8080)
        async with server:
            visitor = Visitor(None, Timeouts())
            probes = [Probe(address, 8080, PLAIN, path=f"/{number}") for number in range(10)]
            seen = [await visitor.observe(probe) for probe in probes]
            await visitor.close()
            return seen

    seen = asyncio.run(visit())
    assert [(each.status, each.body) for each in seen if isinstance(each, Answered)] == [
        (404, b"/%d" % number) for number in range(10)
    ]
    assert keeping.connections == connections


def test_bytes_after_an_answer_are_not_the_next_one() -> None:
    """A server that says more than it was asked gets a connection of its own for each request."""
    address = loopback()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        refused = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
        granted = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        writer.write(refused + granted if b"/first" in request else granted)
        await writer.drain()

    async def visit() -> list[Observation]:
        server = await asyncio.start_server(serve, address, 8080)
        async with server:
            visitor = Visitor(None, Timeouts())
            probe = Probe(address, 8080, PLAIN, path="/first")
            seen = [await visitor.observe(probe) for _ in range(2)]
            await visitor.close()
            return seen

    assert [each.status for each in asyncio.run(visit()) if isinstance(each, Answered)] == [403, 403]
