"""What the merge's benchmarks are made of: an application that sends one body, an agent, and a scraper.

The agent's part runs in a process of its own (`python -m bench.endpoints PORT [SOCKET]`; port 0: none).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from meshscrape.agent.merged import BUFFERS, LARGEST_BUFFER, MergedMetrics
from meshscrape.agent.sources import MergedOptions
from meshscrape.exposition.source import MergeLimits
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.system.http.server import HttpServer, routes
from meshscrape.system.memory import keep_freed_memory

ADDRESS = "127.9.3.1"
PATH = "/stats/prometheus"
# What Prometheus 2.42 sends.
REQUEST = (
    f"GET {PATH} HTTP/1.1\r\nHost: bench\r\nX-Prometheus-Scrape-Timeout-Seconds: 60\r\n"
    "Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\r\n"
).encode()
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
# client_golang writes chunks of 2 kB; prometheus_client (Python) sends a Content-Length.
GO_CHUNK = 2048
LAST_CHUNK = b"\r\n0\r\n\r\n"


class Scraper:
    """Scrapes over one connection that is kept alive, as Prometheus does."""

    def __init__(self, address: str, port: int) -> None:
        self._place = (address, port)
        self._socket: socket.socket | None = None
        self._buffer = bytearray(1 << 20)

    def reconnect(self) -> None:
        """Use a new connection from now on: an idle one is closed by the other side after a while."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def scrape(self) -> int:
        """Return the number of bytes of the answer, header and framing included."""
        if self._socket is None:
            self._socket = socket.create_connection(self._place, timeout=120)
        self._socket.sendall(REQUEST)
        head, total, tail = b"", 0, b""
        length = -1  # of the whole answer; 0: in chunks
        while total != length and not (length == 0 and tail.endswith(LAST_CHUNK)):
            count = self._socket.recv_into(self._buffer)
            if not count:
                raise RuntimeError(f"{self._place} closed the connection after {total} bytes")
            if length < 0:
                head += bytes(self._buffer[:count])
                length = _length(head)
            total += count
            tail = (tail + bytes(self._buffer[max(0, count - 7) : count]))[-7:]
        return total


def _length(head: bytes) -> int:
    """Return the length of an answer with its header; 0 for chunks, -1 while the header is not whole."""
    header, end, _ = head.partition(b"\r\n\r\n")
    if not end:
        return -1
    if not header.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"answered {header[:200]!r}")
    for line in header.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(header) + 4 + int(line.partition(b":")[2])
    return 0


class Application:
    """Servers that send one body, set by `serve`, to every client, on TCP addresses and Unix sockets."""

    def __init__(self) -> None:
        self._answer = b""
        self._listeners: list[socket.socket] = []

    def serve(self, body: bytes, *, chunked: bool = False) -> None:
        """Send this body from now on."""
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: " + TEXT + b"\r\n"
        if not chunked:
            self._answer = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            return
        chunks = [body[i : i + GO_CHUNK] for i in range(0, len(body), GO_CHUNK)]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        self._answer = head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"

    def listen(self, address: str, port: int = 0) -> int:
        """Serve on a TCP address too; return the port."""
        self._start(socket.create_server((address, port)))
        return int(self._listeners[-1].getsockname()[1])

    def listen_unix(self, path: Path) -> None:
        """Serve on a Unix socket too."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self._start(listener)

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _start(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.recv(1 << 16)
                    client.sendall(self._answer)


@contextlib.contextmanager
def agent(application: int, envoy_socket: Path | None = None) -> Iterator[tuple[int, Scraper]]:
    """Run the merged endpoint over an application (0: none) and an Envoy's socket: its PID and a scraper."""
    arguments = [str(application), *([str(envoy_socket)] if envoy_socket else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.endpoints", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        yield process.pid, Scraper(ADDRESS, int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(10)


async def _serve_agent(application: int, envoy_socket: Path | None) -> None:
    keep_freed_memory(BUFFERS, LARGEST_BUFFER)
    # Bodies of 100 MB have more series than the bound that protects a Prometheus.
    limits = MergeLimits(max_series=100_000_000)
    sources = (ScrapeSource(application),) if application else ()
    options = MergedOptions(sources, ADDRESS, envoy_socket, limits=limits)
    merged = MergedMetrics(options)
    async with HttpServer(routes({PATH: merged.handle}), addresses=[(ADDRESS, 0)]) as server:
        print(server.addresses[0][1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_agent(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
