"""Visit a port and return exactly what came back, on plain sockets with TLS in memory.

Every byte that the peer sends is read, also after a failed write: a TLS 1.3 server refuses a client's
certificate after the client has finished its handshake, so the alert arrives with the first read.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

import h11

from meshscrape.verify.hello import alert_name, client_hello, read_record
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
    Unreachable,
)
from meshscrape.verify.probe import Probe

ACCEPT = "text/plain;version=0.0.4;q=1,*/*;q=0.1"

_CHUNK = 65536
_ENDING = (("Connection", "close"),)
_ALERT_REASON = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_ALERT_([A-Z0-9_]+)")


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """The TLS contexts of one identity.

    `blind` accepts any server, `older` too but with TLS 1.2 at most, `strict` only servers of the bundle.
    """

    blind: ssl.SSLContext
    older: ssl.SSLContext
    strict: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for a connection, for a pause in a handshake or an answer, and for a whole visit.

    `silence` is how long a server may keep a connection open on which the client sends nothing.
    """

    connect: float = 5.0
    handshake: float = 10.0
    answer: float = 10.0
    total: float = 60.0
    silence: float = 20.0


class _Ended(Exception):
    """The visit is over with this observation."""

    def __init__(self, observation: Observation) -> None:
        super().__init__(observation)
        self.observation = observation


async def observe(probe: Probe, contexts: TlsContexts | None, timeouts: Timeouts) -> Observation:
    """Make one visit, without TLS if `contexts` is None. Never raise for what the peer does."""
    try:
        async with asyncio.timeout(timeouts.total):
            return await _visit(probe, contexts, timeouts)
    except _Ended as ended:
        return ended.observation
    except TimeoutError:
        return TimedOut("answer")


class Visitor:
    """Visit one port as one identity. Requests share a connection as long as the server keeps it open.

    Handshakes are most of what a verification costs, on both sides.
    """

    def __init__(self, contexts: TlsContexts | None, timeouts: Timeouts) -> None:
        self._contexts = contexts
        self._timeouts = timeouts
        self._stack = AsyncExitStack()
        self._kept: tuple[_Wire | _Tls, h11.Connection] | None = None

    async def observe(self, probe: Probe) -> Observation:
        """Make one visit. Probes of other kinds than "http" have connections of their own."""
        if probe.kind != "http":
            return await observe(probe, self._contexts, self._timeouts)
        try:
            async with asyncio.timeout(self._timeouts.total):
                return await self._request(probe)
        except _Ended as ended:
            observation = ended.observation
        except TimeoutError:
            observation = TimedOut("answer")
        await self.close()
        return observation

    async def close(self) -> None:
        """Close the connection, if there is one."""
        self._kept = None
        await self._stack.aclose()

    async def _request(self, probe: Probe) -> Observation:
        if self._kept is not None:
            try:
                observation = await self._over(*self._kept, probe)
            except _Ended as ended:
                observation = ended.observation
            if isinstance(observation, TimedOut) or (
                isinstance(observation, Answered) and observation.end != "cut"
            ):
                return observation
            # The server may have closed the connection after the previous request. Only a new connection can
            # tell.
            await self.close()
        wire = await self._stack.enter_async_context(_connected(probe, self._timeouts))
        if self._contexts is None:
            return await self._over(wire, _client(), probe)
        tls = _Tls(wire, self._contexts.blind, None)
        await tls.handshake(self._timeouts.handshake)
        return await self._over(tls, _client(), probe)

    async def _over(self, wire: _Wire | _Tls, connection: h11.Connection, probe: Probe) -> Observation:
        """Make one request over an open connection, and keep the connection if the answer is complete."""
        self._kept = None
        observation = await _exchange(probe, wire, self._timeouts, connection, ())
        done = (connection.our_state, connection.their_state) == (h11.DONE, h11.DONE)
        if (
            isinstance(observation, Answered)
            and observation.end == "whole"
            and done
            and not connection.trailing_data[0]
        ):
            connection.start_next_cycle()
            self._kept = (wire, connection)
        else:
            await self.close()
        return observation


async def _visit(probe: Probe, contexts: TlsContexts | None, timeouts: Timeouts) -> Observation:
    match probe.kind:
        case "legacy-tls":
            return await _legacy(probe, timeouts)
        case "silence":
            return await _silence(probe, timeouts)
        case "certificate" if contexts:
            return await _certificate(probe, contexts, timeouts)
        case "resumption" if contexts:
            context = contexts.older if probe.version == "TLS 1.2" else contexts.blind
            return await _resumption(probe, context, timeouts)
        case _:
            observation, _ = await _http(probe, contexts.blind if contexts else None, timeouts)
            return observation


async def _legacy(probe: Probe, timeouts: Timeouts) -> Observation:
    async with _connected(probe, timeouts) as wire:
        await wire.send(client_hello(probe.version, os.urandom(32)))
        received = b""
        while True:
            data = await wire.receive(timeouts.handshake, "handshake")
            if not data:
                raise _Ended(Closed())
            received += data
            if observation := read_record(received):
                return observation


async def _silence(probe: Probe, timeouts: Timeouts) -> Observation:
    """Send nothing until the server closes the connection, or sends something first."""
    async with _connected(probe, timeouts) as wire:
        data = await wire.receive(timeouts.silence, "silence")
        return read_plain(data) if data else Closed()


async def _certificate(probe: Probe, contexts: TlsContexts, timeouts: Timeouts) -> Observation:
    """Return the server's leaf and whether its chain leads to the bundle; takes two visits if it does not."""
    distrust = ""
    for context in (contexts.strict, contexts.blind):
        async with _connected(probe, timeouts) as wire:
            tls = _Tls(wire, context, None)
            try:
                await tls.handshake(timeouts.handshake)
            except ssl.SSLCertVerificationError as error:
                distrust = error.verify_message
                continue
            return Presented(tls.leaf(), distrust)
    raise AssertionError("a context that checks nothing cannot distrust")


async def _resumption(probe: Probe, context: ssl.SSLContext, timeouts: Timeouts) -> Observation:
    first, session = await _http(probe, context, timeouts)
    if not isinstance(first, Answered) or session is None:
        return first
    second, _ = await _http(probe, context, timeouts, session)
    return second


async def _http(
    probe: Probe, context: ssl.SSLContext | None, timeouts: Timeouts, session: ssl.SSLSession | None = None
) -> tuple[Observation, ssl.SSLSession | None]:
    async with _connected(probe, timeouts) as wire:
        if context is None:
            return await _exchange(probe, wire, timeouts, _client()), None
        tls = _Tls(wire, context, session)
        await tls.handshake(timeouts.handshake)
        observation = await _exchange(probe, tls, timeouts, _client())
        if probe.kind != "resumption":
            return observation, None
        if isinstance(observation, Answered):
            observation = replace(observation, resumed=tls.resumed)
        return observation, tls.session if session is None else None


class _Wire:
    """A connected socket; its end becomes an observation."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send as much as the peer accepts. Its answer says why it does not accept the rest."""
        with suppress(ConnectionError):
            await self._loop.sock_sendall(self._sock, data)

    async def receive(self, timeout: float, phase: str) -> bytes:  # noqa: ASYNC109
        """Return the next bytes, empty at the end. End the visit on a reset and after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._loop.sock_recv(self._sock, _CHUNK)
        except TimeoutError:
            raise _Ended(TimedOut(phase)) from None
        except ConnectionError:
            raise _Ended(Reset()) from None


class _Tls:
    """TLS over a `_Wire`, with the same two methods."""

    def __init__(self, wire: _Wire, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        self._wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=False, session=session)

    @property
    def session(self) -> ssl.SSLSession | None:
        """Return the session that a later connection may try to resume."""
        return self._tls.session

    @property
    def resumed(self) -> bool:
        """Return whether the server resumed the session that was offered."""
        return bool(self._tls.session_reused)

    def leaf(self) -> bytes:
        """Return the server's certificate (DER)."""
        return self._tls.getpeercert(binary_form=True) or b""

    async def handshake(self, timeout: float) -> None:  # noqa: ASYNC109
        """Complete the client's side. End the visit when the peer refuses."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed(timeout, "handshake")
                continue
            except ssl.SSLCertVerificationError:
                await self._flush()
                raise
            except ssl.SSLError as error:
                raise _Ended(_tls_end(error)) from None
            await self._flush()
            return

    async def send(self, data: bytes) -> None:
        """Encrypt `data` and send it."""
        self._tls.write(data)
        await self._flush()

    async def receive(self, timeout: float, phase: str) -> bytes:  # noqa: ASYNC109
        """Return the next decrypted bytes, empty at the end."""
        while True:
            try:
                return self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed(timeout, phase)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise _Ended(_tls_end(error)) from None

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._wire.send(data)

    async def _feed(self, timeout: float, phase: str) -> None:  # noqa: ASYNC109
        data = await self._wire.receive(timeout, phase)
        if data:
            self._incoming.write(data)
        elif self._incoming.eof:
            raise _Ended(Closed())
        else:
            self._incoming.write_eof()


def _tls_end(error: ssl.SSLError) -> Observation:
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return Closed()
    reason = error.reason or str(error)
    if alert := _ALERT_REASON.fullmatch(reason):
        return TlsAlert(alert[1].replace("_", " ").lower())
    if reason == "WRONG_VERSION_NUMBER":
        return TlsFailed("the port does not speak TLS")
    return TlsFailed(reason.replace("_", " ").lower())


@asynccontextmanager
async def _connected(probe: Probe, timeouts: Timeouts) -> AsyncIterator[_Wire]:
    family = socket.AF_INET6 if ":" in probe.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeouts.connect):
                await asyncio.get_running_loop().sock_connect(sock, (probe.address, probe.port))
        except TimeoutError:
            raise _Ended(TimedOut("connect")) from None
        except ConnectionRefusedError:
            raise _Ended(ConnectionRefused()) from None
        except ConnectionResetError:
            raise _Ended(Reset()) from None
        except OSError as error:
            raise _Ended(Unreachable(os.strerror(error.errno) if error.errno else str(error))) from None
        yield _Wire(sock)


def _client() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=_CHUNK)


async def _exchange(
    probe: Probe, wire: _Wire | _Tls, timeouts: Timeouts, connection: h11.Connection,
    ending: Sequence[tuple[str, str]] = _ENDING,
) -> Observation:  # fmt: skip
    headers = [("Host", probe.target), ("Accept", ACCEPT), ("User-Agent", "meshscrape-verify"),
               *ending, *probe.headers]  # fmt: skip
    # Some probes need a hostile request line, which h11 refuses to send. It writes everything else and
    # follows the state of the connection.
    request = h11.Request(method="GET", target="/", headers=headers)
    head = (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    first = f"{probe.method} {probe.path} HTTP/1.1\r\n".encode("latin-1")
    await wire.send(first + head.partition(b"\r\n")[2])
    return await _Answer(probe.limit).read(connection, wire, timeouts)


class _Answer:
    """Collect one response."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._response: h11.Response | None = None
        self._body = bytearray()
        self._head = b""

    async def read(self, connection: h11.Connection, wire: _Wire | _Tls, timeouts: Timeouts) -> Observation:
        """Return the response (its body up to the limit), or how the connection ended before one."""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return self._seen("cut")
            if event is h11.NEED_DATA:
                try:
                    data = await wire.receive(timeouts.answer, "answer")
                except _Ended:
                    if self._response is None:
                        raise
                    return self._seen("cut")
                if not data and not self._head:
                    return Closed()
                self._head = self._head or data
                connection.receive_data(data)
            elif isinstance(event, h11.Response):
                self._response = event
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > self._limit:
                    return self._seen("limit")
            elif not isinstance(event, h11.InformationalResponse):
                return self._seen("whole")

    def _seen(self, end: Literal["whole", "limit", "cut"]) -> Observation:
        if self._response is None:
            return read_plain(self._head)
        headers = tuple(
            (name.decode("latin-1").lower(), value.decode("latin-1"))
            for name, value in self._response.headers
        )
        return Answered(self._response.status_code, headers, bytes(self._body[: self._limit]), end)


def read_plain(head: bytes) -> Observation:
    """Return the meaning of bytes that are not HTTP: a TLS alert in plaintext, or something else."""
    if len(head) >= 7 and head[0] == 21 and head[1] == 3:
        return TlsAlert(alert_name(head[6]))
    return NotHttp(head[:64])
