"""Connections of the HTTP client: the bytes that arrive, piece by piece, over TCP, TLS or a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import ssl
from abc import ABC, abstractmethod
from collections import deque
from functools import lru_cache
from ipaddress import ip_address
from typing import cast

READ_SIZE = 1 << 18
UNIX_PATH_MAX = 107  # sockaddr_un.sun_path holds 108 bytes with the terminating NUL (unix(7))


class Arrival(ABC):
    """A connection and the pieces of bytes that arrive on it; asyncio's streams would copy them twice."""

    def __init__(self) -> None:
        self.at_eof = False
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._error: OSError | None = None
        self._changed = asyncio.Event()

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send bytes. A refused or reset connection is ignored: the missing answer gives a better error."""

    @abstractmethod
    def close(self) -> None:
        """Close at once: all that is needed has been read, and an abandoned body must not keep a socket."""

    @abstractmethod
    def _pause(self) -> None:
        """Stop reading until `_resume`."""

    @abstractmethod
    def _resume(self) -> None:
        """Start reading, or continue after `_pause`. Do nothing while it reads."""

    def _arrived(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= READ_SIZE:
            self._pause()
        self._changed.set()

    def _ended(self, error: OSError | None) -> None:
        self._error = error
        self.at_eof = True
        self._changed.set()

    async def read(self) -> bytes:
        """Return the next piece, empty at the end. Raise OSError when the connection broke."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self.at_eof:
                return b""
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces.popleft()
        self._size -= len(piece)
        if not self._pieces and not self.at_eof:
            self._resume()
        return piece


class TransportArrival(Arrival, asyncio.Protocol):
    """A connection of asyncio, which may have TLS."""

    def __init__(self) -> None:
        super().__init__()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._arrived(data)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._ended(error if isinstance(error, OSError) else None)

    async def send(self, data: bytes) -> None:
        """See Arrival."""
        self.transport.write(data)

    def close(self) -> None:
        """See Arrival."""
        self.transport.abort()

    def _pause(self) -> None:
        self.transport.pause_reading()

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()


class SocketArrival(Arrival):
    """A connected socket without TLS. asyncio's transport takes two more rounds of the event loop."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._socket = sock
        self._descriptor = sock.fileno()  # asyncio formats a socket in its look-ups, which is slow
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._resume()

    async def send(self, data: bytes) -> None:
        """See Arrival."""
        with contextlib.suppress(OSError):
            await self._loop.sock_sendall(self._socket, data)

    def close(self) -> None:
        """See Arrival."""
        self._pause()
        self._socket.close()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._pause()
            self._ended(error)
            return
        if data:
            self._arrived(data)
        else:
            self._pause()
            self._ended(None)

    def _pause(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._descriptor)
            self._reading = False

    def _resume(self) -> None:
        if not self._reading:
            self._loop.add_reader(self._descriptor, self._readable)
            self._reading = True


async def open_tcp(host: str, port: int, tls: ssl.SSLContext | None, server_name: str) -> Arrival:
    """Connect to `host`:`port`, with TLS if `tls` is given.

    The name that TLS asks for (SNI) is `server_name`, or the host. Raises OSError if nothing accepts the
    connection.
    """
    create = asyncio.get_running_loop().create_connection
    name = (server_name or host) if tls is not None else None
    if (sock := _connected_at_once(host, port)) is None:
        return (await create(TransportArrival, host, port, ssl=tls, server_hostname=name))[1]
    if tls is None:
        return SocketArrival(sock)
    return (await create(TransportArrival, sock=sock, ssl=tls, server_hostname=name))[1]


def _connected_at_once(host: str, port: int) -> socket.socket | None:
    """Return a connection to an address of this machine if the kernel completes it at once, else None.

    The kernel usually does. asyncio would wait for two rounds of the event loop, which take a tenth of the
    agent's CPU for a small scrape.
    """
    if (family := _loopback(host)) is None:
        return None
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if sock.connect_ex((host, port)) in (0, errno.EINPROGRESS):
        ready = select.poll()
        ready.register(sock, select.POLLOUT)
        if ready.poll(0) and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return sock
    sock.close()
    return None


@lru_cache(maxsize=64)
def _loopback(host: str) -> socket.AddressFamily | None:
    """Return the family of a numeric address of this machine, else None."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if not address.is_loopback:
        return None
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


async def open_unix(path: str) -> Arrival:
    """Connect to a Unix socket at a path of any length.

    A long path is replaced by the path of its directory's descriptor in /proc, which is short. Raises OSError
    if nothing accepts the connection.
    """
    if len(os.fsencode(path)) <= UNIX_PATH_MAX:
        return await _connected_unix(path)
    directory, name = os.path.split(path)
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await _connected_unix(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)


async def _connected_unix(path: str) -> Arrival:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return SocketArrival(sock)
