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
from meshscrape.errors import InputError, MeshscrapeError
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
            except (MeshscrapeError, OSError) as error:
                log.error("server certificate not renewed: %s", error)
                due = clock() + timedelta(minutes=1)


class BoundedServer(Server):
    """grpclib's server with a bound on connections, on their idle time and on their life.

    A connection counts from its first moment: one in its handshake costs a quarter of a megabyte, and nobody
    has proven anything by it.
    """

    def __init__(self, handlers: Collection[IServable]) -> None:
        super().__init__(handlers, config=_WINDOWS)
        self._context: ssl.SSLContext | None = None
        self._open: set[_Connection] = set()
        self._complaints = BoundedLog()

    @property
    def context(self) -> ssl.SSLContext:
        """What handshakes that begin now are made with."""
        if self._context is None:
            raise RuntimeError("nobody can have connected before `listen`")
        return self._context

    def admit(self, connection: _Connection) -> bool:
        """Take note of a new connection; False when there are too many."""
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

    def end_connections(self) -> None:
        """End every connection now, answered or not, and those whose handshake has only begun."""
        for connection in tuple(self._open):
            connection.end()

    async def listen(self, listening: socket.socket, context: ssl.SSLContext) -> asyncio.Server:
        """Accept connections on a bound socket; from now on every handshake is made with `context`."""
        self._context = context
        return await asyncio.get_running_loop().create_server(
            lambda: _Arrival(_Connection(self, self._protocol_factory())), sock=listening
        )


class _Arrival(asyncio.Protocol):
    """A TCP connection until TLS takes it over. Nothing is read in the clear."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what create_server makes
        self._connection.arrive(transport)

    def data_received(self, data: bytes) -> None:
        self._connection.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)


class _Connection(asyncio.Protocol):
    """Passes everything on to `inner` once TLS is there, and ends what lasts too long."""

    def __init__(self, server: BoundedServer, inner: asyncio.Protocol) -> None:
        self._server = server
        self._inner = inner
        self._secure = False
        # What came with the end of the handshake, before `inner` could be told of the connection.
        self._early = b""
        self.address = ""
        self._timers: list[asyncio.TimerHandle] = []
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None

    def arrive(self, transport: asyncio.Transport) -> None:
        """Begin with a TCP connection."""
        self._transport = transport
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        if not self._server.admit(self):
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(CONNECTION_SECONDS, self.end)]
        self._handshake = loop.create_task(self._shake_hands(transport), name="handshake")

    async def _shake_hands(self, tcp: asyncio.Transport) -> None:
        tls = None
        try:
            tls = await asyncio.get_running_loop().start_tls(
                tcp, self, self._server.context, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError as error:
            log.debug("no handshake with %s: %r", self.address, error)
        finally:
            # None, too, for a connection that ended meanwhile.
            if tls is None:
                tcp.abort()
                self.connection_lost(None)
        if tls is not None:
            self._transport, self._secure = tls, True
            self._timers.append(asyncio.get_running_loop().call_later(IDLE_SECONDS, self.end))
            self._inner.connection_made(tls)
            if self._early:
                self._pass_on(self._early)
                self._early = b""

    def data_received(self, data: bytes) -> None:
        if not self._secure:
            self._early += data
            return
        self._timers.pop().cancel()
        self._timers.append(asyncio.get_running_loop().call_later(IDLE_SECONDS, self.end))
        self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
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
        self._server.forget(self)
        if self._secure:
            self._inner.connection_lost(exc)

    def end(self) -> None:
        """Close the connection at once."""
        if self._handshake is not None:
            self._handshake.cancel()
        # abort, not close: a peer that does not read would never let a clean TLS shutdown finish.
        if self._transport is not None:
            self._transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to an IP address and not shared (no SO_REUSEPORT); InputError when it is taken."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only for sockets that say that they are TCP.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
