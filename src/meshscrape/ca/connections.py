"""One TCP connection to the CA: its ClientHello, its TLS handshake, then HTTP/2 for grpclib.

asyncio's own TLS reserves 256 kB for each connection before the peer has proved anything. Here a connection
costs only a descriptor until its ClientHello is complete. OpenSSL's state is allocated after that, and
grpclib's at the first byte of HTTP/2.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol

from meshscrape.ca.admission import Cause
from meshscrape.ca.frames import FrameBudget

# A TLS record's header. The kernel reports a connection as readable only when these bytes have arrived.
_RECORD_HEADER = 5
_MAX_RECORD = 16384
_HANDSHAKE_RECORD, _TLS_MAJOR = 22, 3
_CHUNK = 65536
# Far more than a handshake with a long chain needs.
_MAX_HANDSHAKE_BYTES = 65536
_HIGH_WATER = 65536
_LINGER_SECONDS = 1.0
# The first byte of Linux's tcp_info is the connection's state.
_ESTABLISHED = 1


class Owner(Protocol):
    """The events of a connection that its server handles."""

    def greeted(self, connection: Connection) -> None:
        """Handle that the ClientHello has arrived."""

    def secured(self, connection: Connection, certificate: bytes | None) -> None:
        """Handle a complete handshake; `certificate` (DER) is the verified client certificate, if any."""

    def active(self, connection: Connection) -> None:
        """Handle that the peer has sent something."""

    def proved(self, connection: Connection, identity: str) -> None:
        """Handle that a request has proved `identity`."""

    def ended(self, connection: Connection, cause: Cause) -> None:
        """Handle that the connection has ended."""


class Connection(asyncio.Transport):
    """A peer's connection, and grpclib's transport. Everything runs in the event loop's thread."""

    def __init__(self, number: int, sock: socket.socket, address: str, owner: Owner) -> None:
        """Take ownership of `sock`, which must be non-blocking."""
        super().__init__()
        self.number = number
        self.address = address
        self._sock = sock
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._handshake_bytes = _MAX_HANDSHAKE_BYTES
        self._secure = self._closing = self._closed = self._paused = False
        self._wanted = 0
        self._make_protocol: Callable[[], asyncio.Protocol] | None = None
        self._protocol: asyncio.Protocol | None = None
        self._unsent = bytearray()
        self._budget = FrameBudget()
        self._lingering: asyncio.TimerHandle | None = None

    def await_greeting(self) -> None:
        """Wait for the first TLS record, without reading it."""
        self._want(_RECORD_HEADER)
        self._loop.add_reader(self._sock.fileno(), self._peek)

    def shake_hands(self, context: ssl.SSLContext, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        """Begin the handshake; `make_protocol` makes the HTTP/2 side when its first byte arrives."""
        if self._closed:
            return
        if self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
            # The peer has hung up while it waited: a signature would serve no one.
            return self.end(Cause.PEER)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._make_protocol = make_protocol
        self._want(1)
        self._loop.add_reader(self._sock.fileno(), self._readable)
        self._readable()

    def prove(self, identity: str) -> None:
        """Record that a request on this connection has proved `identity`."""
        if not self._closed:
            self._owner.proved(self, identity)

    def renew_budget(self) -> None:
        """Renew the peer's frame budget, because it got a certificate."""
        self._budget.renew()

    def end(self, cause: Cause) -> None:
        """End the connection at once."""
        if self._closed:
            return
        self._closed = self._closing = True
        if self._lingering is not None:
            self._lingering.cancel()
        number = self._sock.fileno()
        self._loop.remove_reader(number)
        self._loop.remove_writer(number)
        self._sock.close()
        self._owner.ended(self, cause)
        if self._protocol is not None:
            # Defer the call: the protocol itself may be the caller.
            self._loop.call_soon(self._protocol.connection_lost, None)

    def _want(self, size: int) -> None:
        self._wanted = size
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _peek(self) -> None:
        try:
            head = self._sock.recv(_RECORD_HEADER + _MAX_RECORD, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            return self.end(Cause.PEER)
        if len(head) < _RECORD_HEADER:
            # Readable with fewer bytes than SO_RCVLOWAT: the peer will not send more.
            return self.end(Cause.PEER if not head else Cause.NOT_TLS)
        length = int.from_bytes(head[3:5], "big")
        if head[0] != _HANDSHAKE_RECORD or head[1] != _TLS_MAJOR or not 0 < length <= _MAX_RECORD:
            return self.end(Cause.NOT_TLS)
        if len(head) >= _RECORD_HEADER + length:
            self._loop.remove_reader(self._sock.fileno())
            return self._owner.greeted(self)
        if self._wanted == _RECORD_HEADER + length:
            # Readable with too few bytes again.
            return self.end(Cause.PEER)
        self._want(_RECORD_HEADER + length)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            return self.end(Cause.PEER)
        if not data:
            return self.end(Cause.PEER if self._secure else Cause.HANDSHAKE)
        if self._closing:
            return
        self._owner.active(self)
        self._incoming.write(data)
        if not self._secure:
            self._handshake_bytes -= len(data)
            if self._handshake_bytes < 0:
                return self.end(Cause.FLOOD)
            self._handshake()
        if self._secure and not self._closing:
            self._decrypt()

    def _handshake(self) -> None:
        assert self._tls is not None  # noqa: S101 - set before the socket is read
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._flush()
        except ssl.SSLError:
            # Send the TLS alert that tells the peer the reason.
            self._flush()
            return self.end(Cause.HANDSHAKE)
        self._secure = True
        self._flush()
        if not self._closed:
            self._owner.secured(self, self._tls.getpeercert(binary_form=True))

    def _decrypt(self) -> None:
        assert self._tls is not None  # noqa: S101 - set before the socket is read
        while not self._closing:
            try:
                plaintext = self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                # TLS itself may have an answer to send, such as a key update.
                return self._flush()
            except ssl.SSLError:
                return self.end(Cause.PROTOCOL)
            if not plaintext:
                return self.end(Cause.PEER)
            if not self._budget.spend(plaintext):
                return self.end(Cause.FLOOD)
            self._pass_on(plaintext)

    def _pass_on(self, data: bytes) -> None:
        try:
            if self._protocol is None:
                assert self._make_protocol is not None  # noqa: S101 - set with the handshake
                self._protocol = self._make_protocol()
                self._protocol.connection_made(self)
            self._protocol.data_received(data)
        except Exception:
            # Input that grpclib or h2 did not expect must end this connection only, not the CA.
            self.end(Cause.PROTOCOL)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._unsent += self._outgoing.read()
        self._send()

    def _send(self) -> None:
        if self._closed:
            return
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._send)
        except OSError:
            return self.end(Cause.PEER)
        else:
            self._loop.remove_writer(self._sock.fileno())
            if self._closing:
                return self._linger()
        self._hold_back()

    def _hold_back(self) -> None:
        if self._protocol is None or self._paused == (len(self._unsent) > _HIGH_WATER):
            return
        self._paused = not self._paused
        (self._protocol.pause_writing if self._paused else self._protocol.resume_writing)()

    def _linger(self) -> None:
        """Shut down the sending side and close a little later: closing at once could discard the answer."""
        if self._lingering is None:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                return self.end(Cause.PEER)
            self._lingering = self._loop.call_later(_LINGER_SECONDS, self.end, Cause.SERVER)

    # The methods that grpclib calls on a transport.

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Encrypt `data` and send it."""
        if self._closing or self._tls is None:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError:
            return self.end(Cause.PROTOCOL)
        self._flush()

    def close(self) -> None:
        """Send what is written, then TLS's close_notify, and close."""
        if self._closing:
            return
        self._closing = True
        if self._tls is not None and self._secure:
            # unwrap() writes our close_notify, then wants to wait for the peer's; do not wait.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
        self._flush()

    def abort(self) -> None:
        """Close at once."""
        self.end(Cause.SERVER)

    def is_closing(self) -> bool:
        """Return whether nothing can be written any more."""
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the peer's address or the TLS object."""
        match name:
            case "peername":
                return (self.address, 0)
            case "ssl_object":
                return self._tls
        return default
