"""Applications with metrics, well-behaved and not: real servers that say the bytes they are told to."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path

TEXT = "text/plain; version=0.0.4; charset=utf-8"

Behaviour = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Gets the request's header and answers on the writer; the connection is closed after it."""

HEALTHY = (
    b"# HELP app_requests_total Requests.\n# TYPE app_requests_total counter\n"
    b'app_requests_total{code="200"} 5\napp_requests_total{code="500"} 1\n'
    b"# TYPE app_seconds histogram\n"
    b'app_seconds_bucket{le="0.5"} 1\napp_seconds_bucket{le="+Inf"} 2\n'
    b"app_seconds_sum 3.5\napp_seconds_count 2\n"
)


def header(content_type: str = TEXT, *extra: str, status: str = "200 OK") -> bytes:
    """A response's header, with the lines in `extra`."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", *extra, "", ""]
    return "\r\n".join(lines).encode()


def says(body: bytes, content_type: str = TEXT, status: str = "200 OK", *extra: str) -> Behaviour:
    """Answers every request with this body, whole and framed by its length."""

    async def behave(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(header(content_type, f"Content-Length: {len(body)}", *extra, status=status) + body)
        await writer.drain()

    return behave


def redirects(location: str) -> Behaviour:
    """Sends whoever asks elsewhere."""
    return says(b"", TEXT, "302 Found", f"Location: {location}")


def zips(body: bytes) -> Behaviour:
    """Answers with gzip, asked or not."""
    return says(gzip.compress(body), TEXT, "200 OK", "Content-Encoding: gzip")


async def hangs(_: bytes, writer: asyncio.StreamWriter) -> None:
    """Takes the request and never answers."""
    await writer.wait_closed()


def drips(body: bytes, chunk: int = 1, pause: float = 0.02) -> Behaviour:
    """Sends its body a little at a time, forever if it must."""

    async def behave(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(header(TEXT, f"Content-Length: {len(body) + 1}"))
        for start in range(0, len(body), chunk):
            writer.write(body[start : start + chunk])
            await writer.drain()
            await asyncio.sleep(pause)
        await writer.wait_closed()

    return behave


def resets_after(body: bytes) -> Behaviour:
    """Promises more than this body, sends it, and resets the connection."""

    async def behave(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(header(TEXT, "Content-Length: 1000000") + body)
        await writer.drain()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    return behave


def floods(line: bytes, size: int) -> Behaviour:
    """Sends `line` again and again, at least `size` bytes of it, as a body that ends with the connection."""

    async def behave(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(header())
        block = line * (1 + (1 << 16) // len(line))
        for __ in range(1 + size // len(block)):
            writer.write(block)
            await writer.drain()

    return behave


@contextlib.asynccontextmanager
async def application(
    behaviour: Behaviour,
    address: str = "127.0.0.1",
    *,
    unix_socket: Path | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """An application that behaves so, while inside; its port (0 on a Unix socket)."""
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await behaviour(await reader.readuntil(b"\r\n\r\n"), writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(answer(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if unix_socket is not None:
        server = await asyncio.start_unix_server(accepted, unix_socket)
    else:
        server = await asyncio.start_server(accepted, address, 0, ssl=tls)
    port = 0 if unix_socket else server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def applications(address: str, behaviours: Mapping[str, Behaviour]) -> Iterator[dict[str, int]]:
    """Several at once, in a thread of their own, for tests that are not asynchronous; their ports."""
    ports: dict[str, int] = {}
    loop = asyncio.new_event_loop()
    ready, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for name, behaviour in behaviours.items():
                ports[name] = await stack.enter_async_context(application(behaviour, address))
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    try:
        assert ready.wait(10), "the applications did not start"
        yield ports
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(20)
        loop.close()


_FLOOD = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    block = sys.argv[2].encode() * 4000
    while True:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/plain\\r\\n\\r\\n")
                while True:
                    connection.sendall(block)
            except OSError:
                pass
"""


@contextlib.contextmanager
def flood(address: str, line: str) -> Iterator[int]:
    """An application that sends `line` for ever, in a process of its own: as fast as it is read; its port."""
    command = [sys.executable, "-S", "-c", _FLOOD, address, line]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
