"""The merged endpoint end to end: an application's body through the agent's client, merge and server.

The agent's part runs in a process of its own (`python -m bench.merge PORT…`); its CPU time is read from
schedstat around each scrape, its memory as the peak resident size during the scrapes above the size before
the first body. One scrape of each body is not measured: what its lines look like is learned once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.corpora import CORPORA, corpus
from bench.measure import Row, cpu_seconds, median
from meshscrape.agent.merged import MergedMetrics
from meshscrape.agent.sources import MergedOptions
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.system.http.server import HttpServer, routes

ADDRESS = "127.9.3.1"
SIZES = {"100 kB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000, "100 MB": 100_000_000}
# What Prometheus 2.42 sends.
REQUEST = (
    b"GET /metrics HTTP/1.1\r\nHost: bench\r\nX-Prometheus-Scrape-Timeout-Seconds: 60\r\n"
    b"Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\r\n"
)
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
# client_golang writes chunks of 2 kB; prometheus_client (Python) sends a Content-Length.
GO_CHUNK = 2048


def run(rounds: int) -> list[Row]:
    """Throughput per CPU second for every corpus and size, peak memory for the largest."""
    rows: list[Row] = []
    with _application() as (application, serve), _agent(application) as (pid, agent):
        serve(b"up 1\n", chunked=False)
        for _ in range(3):
            agent.scrape()
        # Once, before any large body: what the allocator keeps of one counts as that body's cost.
        idle = _status(pid, "VmRSS")
        for framing, chunked in (("Content-Length", False), ("chunks of 2 kB", True)):
            for name in CORPORA:
                for label, size in SIZES.items():
                    body = corpus(name, size)
                    serve(body, chunked=chunked)
                    rows += _measure(pid, agent, len(body), f"{name}, {label}, {framing}", rounds, idle)
    return rows


def _measure(pid: int, agent: _Scraper, size: int, what: str, rounds: int, idle: float) -> list[Row]:
    scrapes = max(3, min(rounds, 20_000_000 // size))
    agent.scrape()  # what its lines look like is learned once
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM
    speeds: list[float] = []
    for _ in range(scrapes):
        before = cpu_seconds(pid)
        received = agent.scrape()
        if not size <= received <= size * 1.01 + 10_000:
            raise RuntimeError(f"{what}: {received} bytes of {size} came through")
        speeds.append(size / 1e6 / (cpu_seconds(pid) - before))
    note = f"median of {scrapes} scrapes"
    peak = _status(pid, "VmHWM") - idle
    return [
        Row(f"merged, validated: {what}", median(speeds), "MB per CPU second", "≥ 100", note),
        Row(f"agent's peak memory above idle: {what}", peak, "MB", "≤ 20", note),
    ]


def _status(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1.024e-3
    raise RuntimeError(f"no {field} in /proc/{pid}/status")


class _Scraper:
    """Scrapes over one connection that is kept alive, as Prometheus does."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((ADDRESS, port), timeout=120)
        self._buffer = bytearray(1 << 20)

    def scrape(self) -> int:
        """The number of bytes of the answer, header and framing included; its end is the last chunk's."""
        self._socket.sendall(REQUEST)
        total, tail = 0, b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            count = self._socket.recv_into(self._buffer)
            if not count:
                raise RuntimeError("the agent closed the connection")
            if not total and not self._buffer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"the agent answered {bytes(self._buffer[:200])!r}")
            total += count
            tail = (tail + bytes(self._buffer[max(0, count - 7) : count]))[-7:]
        return total


class _Body:
    def __init__(self) -> None:
        self.sent = b""

    def set(self, body: bytes, *, chunked: bool) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: " + TEXT + b"\r\n"
        if not chunked:
            self.sent = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            return
        chunks = [body[i : i + GO_CHUNK] for i in range(0, len(body), GO_CHUNK)]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        self.sent = head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


@contextlib.contextmanager
def _application() -> Iterator[tuple[int, Callable[..., None]]]:
    """A server that sends one body, set by the second value, to whoever connects."""
    body = _Body()
    listener = socket.create_server((ADDRESS, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.recv(1 << 16)
                    client.sendall(body.sent)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], body.set
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@contextlib.contextmanager
def _agent(application: int) -> Iterator[tuple[int, _Scraper]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.merge", str(application)], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    try:
        assert process.stdout is not None
        yield process.pid, _Scraper(int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(10)


async def _serve_agent(application: int) -> None:
    merged = MergedMetrics(MergedOptions((ScrapeSource(application),), ADDRESS))
    async with HttpServer(routes({"/metrics": merged.handle}), addresses=[(ADDRESS, 0)]) as server:
        print(server.addresses[0][1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_agent(int(sys.argv[1])))
