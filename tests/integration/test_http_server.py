"""The server over real sockets: streaming, limits, a complete stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from meshscrape.errors import InputError
from meshscrape.system.http.client import TruncatedError, fetch, fetch_stream
from meshscrape.system.http.server import HttpServer, Request, Response, ServerLimits, routes
from meshscrape.system.net import PORT_TAKEN
from support.addresses import loopback
from support.polling import eventually_async


async def hello(_: Request) -> Response:
    return Response(200, b"hello")


async def exchange(server: HttpServer, sent: bytes) -> bytes:
    """What the server answers to these bytes until it closes."""
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(sent)
    received = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return received


def served(sent: bytes, limits: ServerLimits | None = None) -> bytes:
    """`exchange` with a server that knows `/` and `/odd`."""

    async def run() -> bytes:
        handler = routes({"/": hello})
        async with HttpServer(handler, addresses=[(loopback(), 0)], limits=limits) as server:
            return await exchange(server, sent)

    return asyncio.run(run())


CLOSE = b"Host: a\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"200"),
        (b"GET /?x=1 HTTP/1.1", b"200"),
        (b"GET /none HTTP/1.1", b"404"),
        (b"GET /%2e HTTP/1.1", b"404"),
        (b"GET //  HTTP/1.1", b"400"),
        (b"GET /x/.. HTTP/1.1", b"404"),
        (b"GET http://a/ HTTP/1.1", b"404"),
        (b"POST / HTTP/1.1", b"405"),
        (b"DELETE / HTTP/1.1", b"405"),
        (b"OPTIONS * HTTP/1.1", b"404"),
        (b"nonsense", b"400"),
    ],
)
def test_only_exact_paths_and_reading_methods(request_line: bytes, status: bytes) -> None:
    """GET and HEAD of exactly the served paths; no normalisation that could be talked into another path."""
    assert served(request_line + b"\r\n" + CLOSE).split()[1] == status


def test_headers_of_the_same_name_are_one_value() -> None:
    """All of them, joined by commas: of two tokens none is the token."""
    seen: list[str] = []

    async def handler(request: Request) -> Response:
        seen.append(request.headers["authorization"])
        return Response(200)

    async def run() -> None:
        async with HttpServer(handler, addresses=[(loopback(), 0)]) as server:
            await exchange(server, b"GET / HTTP/1.1\r\nAuthorization: a\r\nauthorization: b\r\n" + CLOSE)

    asyncio.run(run())
    assert seen == ["a, b"]


def test_head_has_no_body() -> None:
    """HEAD is answered like GET without the body."""
    answer = served(b"HEAD / HTTP/1.1\r\n" + CLOSE)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


def test_requests_in_turn_on_one_connection() -> None:
    """A kept-alive connection answers one request after the other, also when they arrive together."""
    answer = served(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3 + b"GET / HTTP/1.1\r\n" + CLOSE)
    assert answer.count(b"hello") == 4


@pytest.mark.parametrize(
    ("sent", "limits"),
    [
        (b"GET / HTTP/1.1\r\n", ServerLimits(header_seconds=0.1)),
        (b"", ServerLimits(header_seconds=0.1)),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", ServerLimits(keep_alive_seconds=0.1)),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 5000, ServerLimits(header_bytes=1000)),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", None),
    ],
)
def test_idle_and_oversized_clients_are_disconnected(sent: bytes, limits: ServerLimits | None) -> None:
    """Half a header, silence, an idle connection, too large a header, a body: the server closes by itself."""
    served(sent, limits)


def test_connections_and_requests_are_bounded() -> None:
    """One connection too many is closed, one request too many is told to come back; the others go on."""
    release = asyncio.Event()
    waiting = 0

    async def wait(_: Request) -> Response:
        nonlocal waiting
        waiting += 1
        await release.wait()
        return Response(200, b"done")

    async def run() -> None:
        limits = ServerLimits(connections=3, requests=1)
        async with HttpServer(wait, addresses=[(loopback(), 0)], limits=limits) as server:
            ask = b"GET / HTTP/1.1\r\n" + CLOSE
            first = asyncio.create_task(exchange(server, ask))

            async def is_waiting() -> bool:
                return waiting == 1

            await eventually_async(is_waiting)
            assert b" 503 " in await exchange(server, ask)
            idle = [await asyncio.open_connection(*server.addresses[0]) for _ in range(2)]
            reader, _ = await asyncio.open_connection(*server.addresses[0])
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            release.set()
            assert (await first).endswith(b"done")
            for _, writer in idle:
                writer.close()

    asyncio.run(run())


def test_body_is_streamed_and_closed() -> None:
    """Chunks leave when they are made; a client that goes away ends the stream's own clean-up too."""
    made = 0
    cleaned = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        nonlocal made
        try:
            while True:
                made += 1
                yield b"x" * 10_000
        finally:
            cleaned.set()

    async def stream(_: Request) -> Response:
        return Response(200, body())

    async def run() -> None:
        async with HttpServer(stream, addresses=[(loopback(), 0)]) as server:
            host, port = server.addresses[0]
            async with fetch_stream(f"http://{host}:{port}/") as response:
                assert (await anext(aiter(response.body))).startswith(b"x")
            await asyncio.wait_for(cleaned.wait(), 10)

    asyncio.run(run())
    assert made < 5000, "backpressure"


def test_a_stream_that_fails_is_not_whole() -> None:
    """When a body breaks off, the client can tell: the last chunk is missing."""

    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("broken")

    async def stream(_: Request) -> Response:
        return Response(200, body())

    async def run() -> None:
        async with HttpServer(stream, addresses=[(loopback(), 0)]) as server:
            host, port = server.addresses[0]
            with pytest.raises(TruncatedError):
                await fetch(f"http://{host}:{port}/")

    asyncio.run(run())


def test_a_handler_that_fails_is_a_500() -> None:
    """An exception of a handler says nothing to the client but that."""

    async def broken(_: Request) -> Response:
        raise RuntimeError("secret")

    async def run() -> tuple[int, bytes]:
        async with HttpServer(broken, addresses=[(loopback(), 0)]) as server:
            host, port = server.addresses[0]
            return await fetch(f"http://{host}:{port}/")

    assert asyncio.run(run()) == (500, b"internal error\n")


def test_a_taken_port_is_one_line() -> None:
    """A port in use (also by a server of our own) is an InputError that names it, and nothing stays bound."""

    async def run() -> None:
        address, other = loopback(), loopback()
        async with HttpServer(hello, addresses=[(address, 0)]) as server:
            port = server.addresses[0][1]
            second = HttpServer(hello, addresses=[(other, port), (address, port)])
            with pytest.raises(InputError) as caught:
                await second.start()
            assert (caught.value.where, caught.value.code) == (f"{address}:{port}", PORT_TAKEN)
            with socket.socket() as probe:
                probe.bind((other, port))

    asyncio.run(run())


def test_stop_ends_every_connection() -> None:
    """After stop, hanging requests are over, the port and the socket file are free, at once and again."""
    entered = asyncio.Event()

    async def hang(_: Request) -> Response:
        entered.set()
        await asyncio.Event().wait()
        return Response(200)

    async def run() -> None:
        address = loopback()
        server = HttpServer(hang, addresses=[(address, 0)])
        await server.start()
        place = server.addresses[0]
        asking = asyncio.create_task(exchange(server, b"GET / HTTP/1.1\r\n" + CLOSE))
        await asyncio.wait_for(entered.wait(), 10)
        await server.stop()
        assert (await asyncio.gather(asking, return_exceptions=True))[0] in (b"",) or asking.exception()
        async with HttpServer(hello, addresses=[place]) as again:
            assert (await exchange(again, b"GET / HTTP/1.1\r\n" + CLOSE)).endswith(b"hello")

    asyncio.run(run())


def test_server_listens_on_ipv6() -> None:
    """An IPv6 address is served beside an IPv4 one on the same port."""

    async def run() -> None:
        async with HttpServer(hello, addresses=[("::1", 0)]) as server:
            port = server.addresses[0][1]
            async with HttpServer(hello, addresses=[("127.0.0.1", port)]):
                assert await fetch(f"http://[::1]:{port}/") == (200, b"hello")
                assert await fetch(f"http://127.0.0.1:{port}/") == (200, b"hello")

    asyncio.run(run())
