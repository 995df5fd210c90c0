"""A small HTTP/1.1 server: one async handler behind TCP addresses, streaming, with limits.

h11 on asyncio's streams: 1 MB of memory where uvicorn takes 9, and every limit is in this file.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h11

from meshscrape.errors import MeshscrapeError
from meshscrape.system.net import listen_tcp, listen_unix

log = logging.getLogger(__name__)

READ_SIZE = 1 << 16
WRITE_BUFFER = 1 << 18
BACKLOG = 128
STOP_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Connections and requests at a time; bytes of a request's header; seconds to wait for a client."""

    connections: int = 128
    requests: int = 32
    header_bytes: int = 1 << 15
    header_seconds: float = 10.0
    keep_alive_seconds: float = 75.0
    write_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its body: `path` as sent, not decoded, without the query.

    Header names are in lower case; values of the same name are one, joined by commas (RFC 9110, 5.3).
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; a body that is an async iterator is sent piece by piece and always closed."""

    status: int
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


def routes(table: Mapping[str, Handler]) -> Handler:
    """Return a handler that answers GET and HEAD of exactly these paths; anything else gets 404 or 405."""

    async def route(request: Request) -> Response:
        handler = table.get(request.path)
        if handler is None:
            return Response(404, b"not found\n")
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"GET and HEAD only\n", headers={"Allow": "GET, HEAD"})
        return await handler(request)

    return route


class HttpServer:
    """A server that runs `handler` on addresses between `start()` and `stop()`, or in `async with`.

    It may also listen on a Unix socket that only the user of the process can open.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        addresses: Sequence[tuple[str, int]] = (),
        unix_socket: Path | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self.handler = handler
        self.limits = limits or ServerLimits()
        self.requests = asyncio.Semaphore(self.limits.requests)
        self._addresses = tuple(addresses)
        self._unix_socket = unix_socket
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Return the TCP addresses where it listens, in the given order, with a real port in place of 0."""
        names = [listening.getsockname() for listening in self._sockets]
        return tuple((name[0], name[1]) for name in names)

    async def start(self) -> None:
        """Bind all addresses or none. Raise InputError for an address that is taken or not local."""
        try:
            for host, port in self._addresses:
                self._sockets.append(listen_tcp(host, port, BACKLOG))
            if self._unix_socket:
                self._sockets.append(listen_unix(self._unix_socket, BACKLOG))
            for sock in self._sockets:
                self._servers.append(
                    await asyncio.start_server(self._accepted, sock=sock, limit=READ_SIZE, backlog=BACKLOG)
                )
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening and end every connection; return when all have ended."""
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_GRACE)
        self._servers, self._sockets = [], []

    async def __aenter__(self) -> HttpServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self.limits.connections:
            log.warning("connection refused: %d are open", len(self._tasks))
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        try:
            await _Conversation(self, reader, writer).run()
        except (OSError, TimeoutError, asyncio.CancelledError, h11.LocalProtocolError) as error:
            log.debug("connection ended: %r", error)
        except MeshscrapeError as error:
            log.warning("a response was cut off: %s", error)
        except Exception:
            log.exception("a request failed")
        finally:
            writer.transport.abort()


class _Conversation:
    """Serve one client's connection, request after request, until either side ends it."""

    def __init__(
        self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.limits = server.limits
        self.reader = reader
        self.writer = writer
        self.protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.header_bytes)

    async def run(self) -> None:
        patience = self.limits.header_seconds
        while (request := await self._request(patience)) is not None:
            await self._answer(request)
            if self.protocol.our_state is not h11.DONE or self.protocol.their_state is not h11.DONE:
                break
            self.protocol.start_next_cycle()
            patience = self.limits.keep_alive_seconds
        await self._finish()

    async def _request(self, patience: float) -> h11.Request | None:
        """Return the next request, or None without one; its body is read and discarded."""
        request: h11.Request | None = None
        try:
            async with asyncio.timeout(patience):
                while True:
                    event = self.protocol.next_event()
                    if event is h11.NEED_DATA:
                        self.protocol.receive_data(await self.reader.read(READ_SIZE))
                    elif isinstance(event, h11.Request):
                        request = event
                        if request.method not in (b"GET", b"HEAD"):
                            return request  # The body is not needed: answer, then close.
                    elif isinstance(event, h11.EndOfMessage):
                        return request
                    elif not isinstance(event, h11.Data):
                        return None
        except h11.RemoteProtocolError as error:
            await self._send(Response(error.error_status_hint, b"bad request\n"), head=False)
        except TimeoutError:
            pass
        return None

    async def _answer(self, request: h11.Request) -> None:
        path, _, query = request.target.decode("latin-1").partition("?")
        asked = Request(request.method.decode("latin-1"), path, query, _combined(request.headers))
        head = asked.method == "HEAD"
        if self.server.requests.locked():
            busy = Response(503, b"too many requests at a time\n", headers={"Retry-After": "1"})
            await self._send(busy, head=head)
            return
        async with self.server.requests:
            try:
                response = await self.server.handler(asked)
            except Exception:
                log.exception("%s %s failed", asked.method, asked.path)
                response = Response(500, b"internal error\n")
            await self._send(response, head=head)

    async def _send(self, response: Response, *, head: bool) -> None:
        headers = [("Content-Type", response.content_type), *response.headers.items()]
        if isinstance(response.body, bytes):
            headers.append(("Content-Length", str(len(response.body))))
        if self.protocol.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        head_bytes = self.protocol.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if isinstance(response.body, bytes):
            head_bytes += b"" if head else self.protocol.send(h11.Data(data=response.body)) or b""
        else:
            head_bytes = await self._stream(head_bytes, response.body, head=head)
        self.writer.write(head_bytes + (self.protocol.send(h11.EndOfMessage()) or b""))
        await self._drain()

    async def _stream(self, unsent: bytes, body: AsyncIterator[bytes], *, head: bool) -> bytes:
        """Send `unsent` (the header) with the first chunk, then chunk by chunk; return the unsent bytes."""
        close = getattr(body, "aclose", None)
        try:
            if head:
                return unsent
            async for chunk in body:
                # Write once per chunk, because each write is at least one system call.
                self.writer.write(unsent + (self.protocol.send(h11.Data(data=chunk)) or b""))
                unsent = b""
                await self._drain()
            return unsent
        finally:
            if close is not None:
                await close()

    async def _drain(self) -> None:
        if not self.writer.transport.get_write_buffer_size() and not self.writer.transport.is_closing():
            return
        async with asyncio.timeout(self.limits.write_seconds):
            await self.writer.drain()

    async def _finish(self) -> None:
        """Close the connection after the written bytes have been sent."""
        self.writer.close()
        async with asyncio.timeout(self.limits.write_seconds):
            await self.writer.wait_closed()


def _combined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    combined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        combined[name] = f"{combined[name]}, {value}" if name in combined else value
    return combined
