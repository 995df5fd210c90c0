"""The merged endpoint end to end: an application's body through the agent's client, merge and server.

The agent's CPU time is read from schedstat around each scrape, its memory as the peak resident size during
the scrapes above the size before the first body.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.corpora import CORPORA, FLOODS, corpus
from bench.endpoints import ADDRESS, Application, Scraper, agent
from bench.measure import Row, cpu_seconds, median

SIZES = {"100 kB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000, "100 MB": 100_000_000}
FLOOD_SIZE = 1_000_000


def run(rounds: int) -> list[Row]:
    """Return throughput per CPU second for every corpus, size and flood, and peak memory."""
    rows: list[Row] = []
    with application() as served, agent(served.listen(ADDRESS)) as (pid, scraper):
        served.serve(b"up 1\n")
        for _ in range(3):
            scraper.scrape()
        rows.append(_fixed(pid, scraper, rounds))
        # Once, before any large body: what the allocator keeps of one counts as that body's cost.
        idle = status(pid, "VmRSS")
        for framing, chunked in (("Content-Length", False), ("chunks of 2 kB", True)):
            for name in CORPORA:
                for label, size in SIZES.items():
                    body = corpus(name, size)
                    served.serve(body, chunked=chunked)
                    rows += _measure(pid, scraper, len(body), f"{name}, {label}, {framing}", rounds, idle)
        valid = b"x 1\n" * (FLOOD_SIZE // 4)
        for name, flood in FLOODS.items():
            rows.append(_flood(pid, scraper, served, name, flood(FLOOD_SIZE), valid, rounds))
    return rows


def _fixed(pid: int, scraper: Scraper, rounds: int) -> Row:
    costs = []
    for _ in range(max(10, rounds)):
        before = cpu_seconds(pid)
        for _ in range(10):
            scraper.scrape()
        costs.append((cpu_seconds(pid) - before) / 10 * 1e3)
    return Row("agent's CPU for a scrape with next to nothing in it", median(costs), "ms", "≤ 0.5")


def _measure(pid: int, scraper: Scraper, size: int, what: str, rounds: int, idle: float) -> list[Row]:
    scrapes = max(3, min(rounds, 20_000_000 // size))
    scraper.scrape()
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM
    speeds: list[float] = []
    for _ in range(scrapes):
        before = cpu_seconds(pid)
        received = scraper.scrape()
        if not size <= received <= size * 1.01 + 10_000:
            raise RuntimeError(f"{what}: {received} bytes of {size} came through")
        speeds.append(size / 1e6 / (cpu_seconds(pid) - before))
    note = f"median of {scrapes} scrapes"
    peak = status(pid, "VmHWM") - idle
    return [
        Row(f"merged, validated: {what}", median(speeds), "MB per CPU second", "≥ 100", note),
        Row(f"agent's peak memory above idle: {what}", peak, "MB", "≤ 20", note),
    ]


def _flood(
    pid: int, scraper: Scraper, served: Application, name: str, body: bytes, valid: bytes, rounds: int
) -> Row:
    """Return a flood's cost per byte sent, relative to short valid lines."""
    ratios = []
    for number in range(max(3, rounds // 3) + 1):
        costs = []
        for each in (body, valid):
            served.serve(each)
            before = cpu_seconds(pid)
            scraper.scrape()
            costs.append((cpu_seconds(pid) - before) / len(each))
        if number:
            ratios.append(costs[0] / costs[1])
    note = f"{len(body) / 1e6:.1f} MB of {body[:12]!r}… against valid lines of 4 bytes, in turn"
    return Row(
        f"CPU per byte of a flood of {name}, relative to valid lines", median(ratios), "ratio", "≤ 1", note
    )


@contextlib.contextmanager
def application() -> Iterator[Application]:
    """Serve one body, set by `serve`, wherever `listen` was called, while inside."""
    served = Application()
    try:
        yield served
    finally:
        served.close()


def status(pid: int, field: str) -> float:
    """Return a size of `/proc/PID/status`, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1.024e-3
    raise RuntimeError(f"no {field} in /proc/{pid}/status")
