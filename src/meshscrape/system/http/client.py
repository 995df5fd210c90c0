"""A small HTTP/1.1 client that streams: one request over TCP or a Unix socket, with deadlines and limits.

It never follows redirects, keeps no connection and holds no more than a few chunks. h11 implements the
protocol in 1 MB of memory; httpcore takes 7 MB, for a pool of connections that a local scrape does not need.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import SplitResult, urlsplit

import h11

from meshscrape.errors import InputError, UnavailableError
from meshscrape.istio.host_port import host_port
from meshscrape.system.http.arrival import Arrival, TransportArrival, open_tcp, open_unix
from meshscrape.system.http.body import CloseReader, FramingError, body_reader

INFLATE_SIZE = 1 << 18
# Interim answers (RFC 9110, section 15.2) before the final one.
MAX_INTERIM = 8

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
_ESCAPE = "write only ASCII, without spaces: %20 for a space, %C3%A9 for é"


class TruncatedError(UnavailableError):
    """The connection or its time limit ended before the body."""


class TooLargeError(UnavailableError):
    """The answer is larger than the limit that the caller gave."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Seconds for connecting, for each read and for everything; bytes for the header and the decoded body."""

    connect: float = 2.0
    read: float = 10.0
    total: float = 10.0
    header_bytes: int = 1 << 16
    body_bytes: int = 1 << 30


@dataclass(slots=True)
class FetchedResponse:
    """Status, headers (lower-case names) and a body that is read once, as it arrives.

    `head` is the status line without its code, as (version, reason); `raw_headers` are as they were sent.
    `complete` is true once a length or chunks have shown that the body is whole; it stays false for a body
    that ends with the connection (HTTP/1.0).
    """

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]
    complete: bool = False
    head: tuple[str, str] = ("1.1", "")
    raw_headers: tuple[tuple[str, str], ...] = ()

    @property
    def content_type(self) -> str:
        """Return the `Content-Type` header, empty when there is none."""
        return self.headers.get("content-type", "")


@contextlib.asynccontextmanager
async def fetch_stream(
    url: str,
    *,
    unix_socket: str | Path | None = None,
    address: tuple[str, int] | None = None,
    tunnel: tuple[str, int] | None = None,
    headers: Headers | None = None,
    body: bytes = b"",
    limits: FetchLimits | None = None,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
    admit: Callable[[ssl.SSLObject], None] | None = None,
    method: str = "GET",
    decode: bool = True,
) -> AsyncIterator[FetchedResponse]:
    """Send one request; yield the response when its header has arrived.

    `url` is http:// or https:// (then `tls` is needed); with `unix_socket` or `address` its host is only the
    Host header. `tunnel` is an HTTP proxy that connects to the host (CONNECT). `server_name` replaces the
    URL's host in TLS: it is the requested name, and the certificate must have it. `admit` is called with the
    TLS connection before anything is sent, and raises an exception to refuse the server. Without `decode` the
    body keeps its content coding. Raises InputError for a URL that cannot be requested, and UnavailableError
    for failures of the other side. Its subclasses TruncatedError and TooLargeError may also be raised while
    the body is read.
    """
    exchange = _Exchange(url, limits or FetchLimits())
    await exchange.connect(unix_socket, address, tls, server_name, tunnel)
    try:
        if admit is not None and tls is not None:
            admit(cast(TransportArrival, exchange.arrival).transport.get_extra_info("ssl_object"))
        yield await exchange.ask(method, sent_headers(url, headers or {}, body), body, decode)
    finally:
        exchange.close()


async def unasked(
    url: str, *, address: tuple[str, int] | None, tls: ssl.SSLContext | None, limits: FetchLimits
) -> bytes:
    """Connect, send nothing, and return the first bytes that the server sends. Raises like `fetch_stream`."""
    exchange = _Exchange(url, limits)
    await exchange.connect(None, address, tls, "")
    try:
        return await exchange.read("without a request")
    finally:
        exchange.close()


def sent_headers(url: str, headers: Headers, body: bytes = b"") -> list[tuple[str, str]]:
    """Return the headers of a request: the required ones that are not given, then the given ones."""
    own = list(headers.items() if isinstance(headers, Mapping) else headers)
    given = {name.lower() for name, _ in own}
    added = [
        ("Host", urlsplit(url).netloc.rpartition("@")[2]),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        *([("Content-Length", str(len(body)))] if body else []),
    ]
    return [*(header for header in added if header[0].lower() not in given), *own]


def sent_target(url: str) -> str:
    """Return the target of a request: the path and query of its URL."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


async def fetch(
    url: str,
    *,
    unix_socket: str | Path | None = None,
    headers: Mapping[str, str] | None = None,
    limits: FetchLimits | None = None,
    tls: ssl.SSLContext | None = None,
    method: str = "GET",
) -> tuple[int, bytes]:
    """Fetch a small answer: return the status and the whole body (see `fetch_stream`)."""
    async with fetch_stream(
        url, unix_socket=unix_socket, headers=headers, limits=limits, tls=tls, method=method
    ) as response:
        return response.status, b"".join([chunk async for chunk in response.body])


@dataclass(slots=True)
class _Exchange:
    """One connection with its one request."""

    url: str
    limits: FetchLimits
    deadline: float = field(init=False)
    connection: h11.Connection = field(init=False)
    arrival: Arrival = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = asyncio.get_running_loop().time() + self.limits.total
        self.connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=self.limits.header_bytes)

    async def connect(
        self,
        unix_socket: str | Path | None,
        address: tuple[str, int] | None,
        tls: ssl.SSLContext | None,
        server_name: str,
        tunnel: tuple[str, int] | None = None,
    ) -> None:
        parts, port = _parse(self.url)
        if parts.scheme == "https" and tls is None:
            raise InputError("https needs a TLS context", where=self.url)
        try:
            async with self._timeout(self.limits.connect):
                if unix_socket is not None:
                    self.arrival = await open_unix(os.fspath(unix_socket))
                    return
                secure = parts.scheme == "https"
                host, number = address or (parts.hostname or "", port or (443 if secure else 80))
                if tunnel is not None:
                    name = server_name or host
                    self.arrival = await self._through(tunnel, host, number, tls if secure else None, name)
                    return
                self.arrival = await open_tcp(host, number, tls if secure else None, server_name)
        except TimeoutError as error:
            raise UnavailableError("no connection within the deadline", where=self.url) from error
        except OSError as error:
            raise UnavailableError(f"cannot connect ({error.strerror or error})", where=self.url) from error

    async def _through(
        self, tunnel: tuple[str, int], host: str, port: int, tls: ssl.SSLContext | None, name: str
    ) -> Arrival:
        """Return a connection that an HTTP proxy has opened (RFC 9110, section 9.3.6)."""
        loop = asyncio.get_running_loop()
        _, raw = await loop.create_connection(TransportArrival, *tunnel)
        place = host_port(host, port)
        await raw.send(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head and len(head) < self.limits.header_bytes:
            if not (piece := await raw.read()):
                break
            head += piece
        status = head.split(b"\r\n")[0].split(b" ")[1:2]
        if status != [b"200"]:
            raw.close()
            answer = head.split(b"\r\n")[0].decode("latin-1")[:100]
            raise UnavailableError(
                f"the proxy {host_port(*tunnel)} does not connect to {place} ({answer!r})", where=self.url
            )
        if tls is None:
            return raw
        arrival = TransportArrival()
        secured = await loop.start_tls(raw.transport, arrival, tls, server_hostname=name)
        if secured is None:
            raise UnavailableError("the connection ended in the TLS handshake", where=self.url)
        arrival.connection_made(secured)
        return arrival

    async def ask(
        self, method: str, headers: list[tuple[str, str]], body: bytes, decode: bool
    ) -> FetchedResponse:
        try:
            request = h11.Request(method=method, target=sent_target(self.url), headers=headers)
            message = self.connection.send(request) or b""
            if body:
                message += self.connection.send(h11.Data(data=body)) or b""
            message += self.connection.send(h11.EndOfMessage()) or b""
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise InputError(
                f"the request cannot be written ({error})", where=self.url, remedy=_ESCAPE
            ) from error
        await self.arrival.send(message)
        answer = await self._event()
        for _ in range(MAX_INTERIM):
            if not isinstance(answer, h11.InformationalResponse):
                break
            answer = await self._event()
        if not isinstance(answer, h11.Response):
            raise UnavailableError("sent no final answer", where=self.url)
        names = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
        response = FetchedResponse(answer.status_code, names, _nothing())
        response.head = (answer.http_version.decode("latin-1"), answer.reason.decode("latin-1"))
        response.raw_headers = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers.raw_items()
        )
        response.body = self._decoded(response, method) if decode else self._raw(response, method)
        return response

    async def _decoded(self, response: FetchedResponse, method: str) -> AsyncIterator[bytes]:
        """Yield the body after its content coding, in bounded chunks and never more than the limit."""
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding in ("", "identity"):
            pieces = self._raw(response, method)
        elif coding in ("gzip", "x-gzip"):
            pieces = self._inflated(response, method)
        else:
            raise UnavailableError(
                f"answered with content coding {coding!r}, which is not supported", where=self.url
            )
        size = 0
        async for piece in pieces:
            size += len(piece)
            if size > self.limits.body_bytes:
                raise TooLargeError(f"the body is larger than {self.limits.body_bytes} bytes", where=self.url)
            yield piece

    async def _raw(self, response: FetchedResponse, method: str) -> AsyncIterator[bytes]:
        data, _ = self.connection.trailing_data
        try:
            body = body_reader(response.status, method, response.headers)
            while not body.ended:
                if piece := body.feed(data):
                    yield piece
                if body.ended or not (data := await self.read("in the middle of the body")):
                    break
        except FramingError as error:
            raise UnavailableError(f"did not answer in HTTP/1.1 ({error})", where=self.url) from error
        response.complete = body.ended
        if not body.ended and not isinstance(body, CloseReader):
            raise TruncatedError("closed the connection in the middle of the body", where=self.url)

    async def _inflated(self, response: FetchedResponse, method: str) -> AsyncIterator[bytes]:
        """Yield a gzip body, decoded one bounded piece at a time, so that a bomb meets the body limit."""
        inflater = zlib.decompressobj(wbits=31)
        try:
            async for piece in self._raw(response, method):
                while piece:
                    if out := inflater.decompress(piece, INFLATE_SIZE):
                        yield out
                    piece = inflater.unconsumed_tail
                    if inflater.eof and inflater.unused_data:
                        piece, inflater = inflater.unused_data, zlib.decompressobj(wbits=31)
        except zlib.error as error:
            raise UnavailableError(f"the gzip body cannot be decoded ({error})", where=self.url) from error
        if not inflater.eof:
            response.complete = False
            raise TruncatedError("the gzip body ended in the middle", where=self.url)

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        """Return h11's next event of the header."""
        place = "before the answer"
        try:
            while (event := self.connection.next_event()) is h11.NEED_DATA:
                self.connection.receive_data(await self.read(place))
        except h11.RemoteProtocolError as error:
            if self.arrival.at_eof:
                raise TruncatedError(f"closed the connection {place}", where=self.url) from error
            raise UnavailableError(f"did not answer in HTTP/1.1 ({error})", where=self.url) from error
        return event  # type: ignore[return-value]

    async def read(self, place: str) -> bytes:
        try:
            async with self._timeout(self.limits.read):
                return await self.arrival.read()
        except TimeoutError as error:
            raise TruncatedError(f"the deadline passed {place}", where=self.url) from error
        except OSError as error:
            raise TruncatedError(f"the connection broke {place} ({error})", where=self.url) from error

    def _timeout(self, seconds: float) -> asyncio.Timeout:
        now = asyncio.get_running_loop().time()
        return asyncio.timeout_at(min(now + seconds, self.deadline))

    def close(self) -> None:
        self.arrival.close()


def _parse(url: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return parts, parts.port
    except ValueError:
        pass
    raise InputError("this is not an http:// or https:// URL with a host", where=url)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
