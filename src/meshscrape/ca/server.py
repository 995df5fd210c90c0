"""The CA's port: TLS with an optional client certificate, renewed in time, and bounds on connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from grpclib.config import Configuration
from grpclib.server import Server

from meshscrape.ca.authority import Authority
from meshscrape.ca.complaints import BoundedLog
from meshscrape.ca.storage import SERVER_CREDENTIALS
from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import certificates_to_pem
from meshscrape.spiffe.keys import generate_key, key_to_pem
from meshscrape.spiffe.renewal import renew_at
from meshscrape.system.clock import utcnow
from meshscrape.system.files import write_atomic
from meshscrape.system.ports import holder

if TYPE_CHECKING:
    from grpclib._typing import IServable

log = logging.getLogger(__name__)

SERVER_LIFETIME = timedelta(hours=24)
# An unauthenticated peer may hold a connection; it must not hold them all, or one for ever.
MAX_CONNECTIONS = 500
MAX_CONNECTIONS_PER_ADDRESS = 100
HANDSHAKE_SECONDS = 10.0
CONNECTION_SECONDS = 300.0
IDLE_SECONDS = 60.0
# What a peer may have in flight: the least that HTTP/2 allows, times the number of connections.
_WINDOWS = Configuration(http2_connection_window_size=65535, http2_stream_window_size=65535)
_LONGEST_SLEEP = 3600.0


class ServerCertificate:
    """The certificate the CA serves with, made by itself, in a live `ssl.SSLContext`.

    Renewal loads the new pair into the same context: every later handshake uses it, open connections keep
    theirs (OpenSSL copies the certificate into each connection when it starts).
    """

    def __init__(self, authority: Authority, names: Sequence[str], directory: Path) -> None:
        """`names`: DNS names and IP addresses; the pair is kept in `directory`, 0600."""
        self._authority = authority
        self._names = tuple(names)
        self._path = directory / SERVER_CREDENTIALS
        self.context = _context(authority)

    def renew(self, now: datetime) -> datetime:
        """Make and load a new pair; returns when to do so again. InputError when the CA has expired."""
        key = generate_key()
        leaf = self._authority.issue_own(key.public_key(), self._names, now, SERVER_LIFETIME)
        chain = certificates_to_pem([leaf, *self._authority.signer.intermediates])
        write_atomic(self._path, key_to_pem(key) + chain, 0o600)
        self.context.load_cert_chain(self._path)
        return renew_at(now, leaf.not_valid_after_utc, draw=0.5)

    async def keep(self, first: datetime, clock: Callable[[], datetime]) -> None:
        """Renew for ever, first at `first`; a failure is logged and tried again within the hour."""
        due = first
        while True:
            # Short sleeps: a machine that was suspended must notice that its clock has moved on.
            await asyncio.sleep(min(max((due - clock()).total_seconds(), 1.0), _LONGEST_SLEEP))
            if clock() < due:
                continue
            try:
                due = self.renew(clock())
                log.info("server certificate renewed, next at %s", f"{due:%Y-%m-%dT%H:%M:%SZ}")
            except InputError as error:
                log.error("server certificate not renewed: %s", error)
                due = clock() + timedelta(minutes=1)


class BoundedServer(Server):
    """grpclib's server with a bound on connections, on their idle time and on their life."""

    def __init__(self, handlers: Collection[IServable]) -> None:
        super().__init__(handlers, config=_WINDOWS)
        self.generation = 0
        self._open: set[_Connection] = set()
        self._complaints = BoundedLog()

    def admit(self, connection: _Connection) -> bool:
        """Take note of a new connection; False when there are too many, or its handshake is out of date."""
        if connection.generation != self.generation:
            return False
        same = sum(other.address == connection.address for other in self._open)
        if len(self._open) >= MAX_CONNECTIONS or same >= MAX_CONNECTIONS_PER_ADDRESS:
            self.complain(f"refused {connection.address}: too many connections")
            return False
        self._open.add(connection)
        return True

    def complain(self, line: str) -> None:
        """Log something that a peer has caused."""
        self._complaints.say(utcnow(), line)

    def forget(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._open.discard(connection)

    def withdraw(self) -> None:
        """End every connection, and those whose handshake has only begun: who they trusted is out of date."""
        self.generation += 1
        self.end_connections()

    def end_connections(self) -> None:
        """End every connection now, answered or not."""
        for connection in tuple(self._open):
            connection.end()

    def _protocol_factory(self) -> asyncio.Protocol:  # type: ignore[override]
        return _Connection(self, super()._protocol_factory())

    async def listen(self, listening: socket.socket, context: ssl.SSLContext) -> asyncio.Server:
        """Accept TLS connections on a bound socket."""
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            self._protocol_factory, sock=listening, ssl=context, ssl_handshake_timeout=HANDSHAKE_SECONDS
        )


class _Connection(asyncio.Protocol):
    """Passes everything on to `inner`, and ends what lasts too long."""

    def __init__(self, server: BoundedServer, inner: asyncio.Protocol) -> None:
        self._server = server
        self._inner = inner
        self._accepted = False
        self.generation = server.generation
        self.address = ""
        self._timers: list[asyncio.TimerHandle] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what create_server makes
        self._transport = transport
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self._accepted = self._server.admit(self)
        if not self._accepted:
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_later(IDLE_SECONDS, self.end),
            loop.call_later(CONNECTION_SECONDS, self.end),
        ]
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._accepted:
            return
        self._timers[0].cancel()
        self._timers[0] = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.end)
        try:
            self._inner.data_received(data)
        except Exception as error:
            # What grpclib and h2 do not expect from a peer must end this connection and nothing else.
            self._server.complain(f"ended {self.address}: {type(error).__name__} in HTTP/2")
            self.end()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._accepted:
            self._server.forget(self)
            self._inner.connection_lost(exc)

    def end(self) -> None:
        """Close the connection at once."""
        # abort, not close: a peer that does not read would never let a clean TLS shutdown finish.
        if self._transport is not None:
            self._transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to an IP address and not shared (no SO_REUSEPORT); InputError when it is taken."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            who = holder(host, port)
            raise InputError(
                f"the port is taken{f' by {who}' if who else ''}",
                where=where,
                remedy="stop what listens there, or give another port",
            ) from None
        raise InputError(
            f"cannot listen: {error.strerror}", where=where, remedy="check the address"
        ) from None
    return listening


def own_names(names: Sequence[str], host: str) -> tuple[str, ...]:
    """The names of the server's certificate: those given, and the address it listens on unless it is any."""
    address = ip_address(host)
    own = [*names] if address.is_unspecified else [*names, str(address)]
    if not own:
        raise InputError(
            "the CA's certificate needs a name",
            where=host,
            remedy="give the names its callers use with --dns",
        )
    return tuple(dict.fromkeys(own))


def _context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=authority.bundle_pem.decode())
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session would skip the check of the client's certificate.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    return context
