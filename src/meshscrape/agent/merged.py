"""The merged metrics of a workload: agent, Envoy and applications as one exposition, streamed.

Every source is asked at once and has its own deadline; what they answer is emitted in order. A source that is
slow, dead or hostile costs its own families only, and is visible in the result (`meshscrape_source_up`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.exposition.health import (
    Family,
    SourceHealth,
    health_families,
    health_names,
    render_families,
)
from meshscrape.exposition.merge import Merger
from meshscrape.exposition.negotiate import Format, accept_header, choose, content_type, source_format
from meshscrape.exposition.scan import Scanner
from meshscrape.exposition.source import MergeLimits, SourceMerge
from meshscrape.istio.names import MERGED_PATH
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.system.http.client import FetchedResponse, FetchLimits, fetch_stream
from meshscrape.system.http.server import Request, Response

log = logging.getLogger(__name__)

PATHS = (MERGED_PATH, "/metrics")
TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"
DEFAULT_TIMEOUT = 10.0
MAX_TIMEOUT = 600.0
# What a scrape keeps for itself: the last bytes must reach Prometheus before its own deadline.
MARGIN = 0.5
MARGIN_RATIO_MAX = 0.25
# Sources before the last one have this much of the budget: those behind a hanging one need time too.
EARLY_RATIO = 0.8
# A scraper that reads slowly is served this much longer than its own deadline, then cut off.
PATIENCE = 30.0
# Bytes of all sources together that wait for their turn; a source that is ahead of it is not read further.
AHEAD_BYTES = 4 << 20
# What is merged at once, so that nothing keeps the event loop for more than some 10 ms: OpenMetrics is slow.
BATCH_BYTES = {Format.TEXT: 1 << 17, Format.OPENMETRICS: 1 << 15}


@dataclass(frozen=True, slots=True)
class MergedOptions:
    """What is merged: the application's endpoints on `inside_address`, Envoy by its admin socket."""

    sources: tuple[ScrapeSource, ...] = ()
    inside_address: str = "127.0.0.1"
    envoy_admin: Path | None = None
    merge_envoy: bool = True
    openmetrics: bool = False
    limits: MergeLimits = field(default_factory=MergeLimits)


@dataclass(slots=True)
class _Totals:
    """What is counted about a source since the start, and what its lines were found to look like."""

    scanner: Scanner = field(default_factory=Scanner)
    failures: int = 0
    dropped_families: int = 0
    malformed_lines: int = 0
    truncations: int = 0
    down: bool = False


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    url: str
    kind: str
    host: str
    unix_socket: Path | None = None


class MergedMetrics:
    """Answers GET with the merged exposition; `agent_families` gives the agent's own in the text format."""

    def __init__(self, options: MergedOptions, agent_families: Callable[[], bytes] = bytes) -> None:
        self.options = options
        self._agent_families = agent_families
        self._sources = _sources(options)
        self._totals = {source.name: _Totals() for source in self._sources}
        self._scrapes = 0
        self._own_failures = 0
        self._agent_scanner = Scanner()
        self._tls = _loopback_tls() if any(s.url.startswith("https:") for s in self._sources) else None

    async def handle(self, request: Request) -> Response:
        """The HTTP handler for both paths."""
        chosen = choose(request.headers.get("accept"), self.options.openmetrics)
        if request.method == "HEAD":
            return Response(200, b"", content_type(chosen))
        self._scrapes += 1
        return Response(200, self._exposition(chosen, _budget(request.headers)), content_type(chosen))

    def families(self) -> list[Family]:
        """Istio's own counters of its merge: scrapes answered, sources that failed by type."""
        failures = {"application": 0, "envoy": 0, "agent": self._own_failures}
        for source in self._sources:
            failures[source.kind] += self._totals[source.name].failures
        return [
            Family(
                "istio_agent_scrapes_total", "counter", "The total number of scrapes.", [({}, self._scrapes)]
            ),
            Family(
                "istio_agent_scrape_failures_total",
                "counter",
                "The total number of failed scrapes.",
                [({"type": kind}, count) for kind, count in failures.items()],
            ),
        ]

    def _own_families(self) -> bytes:
        try:
            more = self._agent_families()
        except Exception:
            log.exception("the agent's own metrics failed")
            self._own_failures += 1
            more = b""
        return more + render_families(self.families())

    async def _exposition(self, chosen: Format, budget: float) -> AsyncIterator[bytes]:
        merger = Merger(chosen, self.options.limits)
        merger.reserve(health_names())
        ahead = AHEAD_BYTES // max(1, len(self._sources))
        last = len(self._sources) - 1
        clock = asyncio.get_running_loop().time
        end = clock() + budget
        # Who answered whole may be merged a little longer: half of what the scrape keeps for itself.
        merge_by = end + min(MARGIN, budget / 3) / 2
        fetches = [
            _Fetch(
                source,
                chosen,
                _Times(budget * (1.0 if i == last else EARLY_RATIO), end, merge_by),
                ahead,
                self._tls,
            )
            for i, source in enumerate(self._sources)
        ]
        tasks = [asyncio.create_task(fetch.run()) for fetch in fetches]
        try:
            own = merger.source("agent", scanner=self._agent_scanner)
            yield own.feed(self._own_families()) + own.finish(True)
            health = []
            for fetch in fetches:
                totals = self._totals[fetch.source.name]
                await fetch.answered.wait()
                merge = merger.source(fetch.source.name, dialect=fetch.format, scanner=totals.scanner)
                async for chunk in _merged(fetch, merge):
                    yield chunk
                    if clock() > end + PATIENCE:
                        raise UnavailableError("the scraper reads too slowly")
                health.append(self._judge(fetch, merge))
            yield render_families(health_families(health), chosen) + merger.end()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _judge(self, fetch: _Fetch, merge: SourceMerge) -> SourceHealth:
        """How the source did, added to its totals and said in the log when that changes."""
        totals = self._totals[fetch.source.name]
        problem = fetch.failed or merge.problem or fetch.problem
        up = not problem
        totals.failures += not up
        totals.dropped_families += merge.dropped_families
        totals.malformed_lines += merge.malformed_lines
        totals.truncations += merge.truncated
        if up == totals.down:
            log.warning("source %s is %s%s", fetch.source.name, "up" if up else "down: ", problem)
        totals.down = not up
        return SourceHealth(
            fetch.source.name,
            up,
            fetch.seconds,
            merge.bytes_in,
            totals.dropped_families,
            totals.malformed_lines,
            totals.truncations,
        )


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds to be read in; by the loop's clock, when reading and merging end for everybody."""

    budget: float
    read_by: float
    merge_by: float


class _Fetch:
    """One source being read, ahead of its turn by a bounded number of bytes."""

    def __init__(
        self, source: _Source, chosen: Format, times: _Times, ahead: int, tls: ssl.SSLContext | None
    ) -> None:
        self.source = source
        self.format = Format.TEXT  # known once `answered`
        self.problem = "was not read to its end"
        self.failed = ""
        self.complete = False
        self.answered = asyncio.Event()
        self.seconds = 0.0
        self._merged_as = chosen
        self._chosen = chosen if source.kind == "application" else Format.TEXT
        self._times = times
        self._merge_by = times.merge_by
        self._patience: asyncio.Timeout | None = None
        self._its_turn = False
        self._held_up = False
        self._tls = tls
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._ahead = ahead
        self._ended = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Read the source to its end or its deadline; `problem` says why there was no whole exposition."""
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout(self._times.budget) as self._patience:
                await self._read()
            self.problem = ""
        except TimeoutError:
            self.problem = f"did not answer whole within {self._times.budget:.3g} s"
            # It had its time: who comes behind it needs some to be merged.
            self._merge_by = clock() + (self._merge_by - clock()) / 3
        except MeshscrapeError as error:
            self.problem = str(error)
        finally:
            self.seconds = clock() - started
            self._ended = True
            self.answered.set()
            self._changed.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What was read, as it arrives, in pieces that do not keep the event loop for long.

        Ends with `failed` set when the time to merge it is over: what it sent must not cost the others' time.
        """
        clock = asyncio.get_running_loop().time
        batch = BATCH_BYTES[self._merged_as]
        self._begin_turn()
        while True:
            while self._waiting:
                if clock() > self._merge_by:
                    self.failed = "could not be merged in the scrape's time"
                    return
                pieces = [self._next(batch)]
                size = len(pieces[0])
                # Small ones together, because a merge's cost is per call as much as per byte.
                while self._waiting and size + len(self._waiting[0]) <= batch:
                    pieces.append(self._waiting.popleft())
                    size += len(pieces[-1])
                self._waiting_bytes -= size
                self._room.set()
                yield b"".join(pieces)
                await asyncio.sleep(0)
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()

    def _begin_turn(self) -> None:
        """From now on what it sends is taken; who had to wait for that gets half of what time is left."""
        self._its_turn = True
        if self._held_up and not self._ended and self._patience is not None:
            now = asyncio.get_running_loop().time()
            self._patience.reschedule(now + (self._times.read_by - now) / 2)

    def _next(self, most: int) -> bytes:
        """The first of what waits, or so many bytes of it."""
        first = self._waiting.popleft()
        if len(first) > most:
            self._waiting.appendleft(first[most:])
        return first[:most]

    async def _read(self) -> None:
        headers = {
            # Not the inside address: applications that check the Host know this name, which Istio uses too.
            "Host": self.source.host,
            "Accept": accept_header(self._chosen),
            "User-Agent": "meshscrape-agent",
            "X-Prometheus-Scrape-Timeout-Seconds": f"{self._times.budget:.3f}",
        }
        # Their sum is bounded by `run`, which knows when the source is not to blame.
        left = self._times.read_by - asyncio.get_running_loop().time()
        limits = FetchLimits(connect=left, read=left, total=left)
        async with fetch_stream(
            self.source.url,
            unix_socket=self.source.unix_socket,
            headers=headers,
            limits=limits,
            tls=self._tls,
        ) as response:
            self.format = _checked(response, self._chosen, self.source.url)
            self.answered.set()
            async for chunk in response.body:
                await self._offer(chunk)
            self.complete = response.complete

    async def _offer(self, chunk: bytes) -> None:
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        self._changed.set()
        while self._waiting_bytes >= self._ahead:
            if not self._its_turn and self._patience is not None:
                # Nobody reads on before its turn: that is not the source's fault.
                self._held_up = True
                self._patience.reschedule(self._times.read_by)
            self._room.clear()
            await self._room.wait()


async def _merged(fetch: _Fetch, merge: SourceMerge) -> AsyncIterator[bytes]:
    """What of one source is merged, as it arrives; an error of ours is this source's loss alone."""
    try:
        async for chunk in fetch.chunks():
            if out := merge.feed(chunk):
                yield out
            if merge.full:
                break
        if not fetch.failed and (out := merge.finish(fetch.complete)):
            yield out
    except Exception:
        log.exception("source %s could not be merged", fetch.source.name)
        fetch.failed = "could not be merged"


def _checked(response: FetchedResponse, chosen: Format, where: str) -> Format:
    """The format of an answer that can be merged; UnavailableError for every other answer."""
    if response.status != 200:
        raise UnavailableError(f"answered with status {response.status}", where=where)
    found = source_format(response.content_type)
    if found is None or (found is Format.OPENMETRICS and chosen is Format.TEXT):
        raise UnavailableError(f"answered with Content-Type {response.content_type!r}", where=where)
    return found


def _sources(options: MergedOptions) -> tuple[_Source, ...]:
    host = f"[{options.inside_address}]" if ":" in options.inside_address else options.inside_address
    ports = [source.port for source in options.sources]
    envoy = []
    if options.merge_envoy and options.envoy_admin is not None:
        envoy = [
            _Source("envoy", "http://localhost/stats/prometheus", "envoy", "localhost", options.envoy_admin)
        ]
    return (
        *envoy,
        *(
            _Source(
                f"application:{source.port}" + (source.path if ports.count(source.port) > 1 else ""),
                f"{source.scheme}://{host}:{source.port}{source.path}",
                "application",
                f"localhost:{source.port}",
            )
            for source in options.sources
        ),
    )


def _loopback_tls() -> ssl.SSLContext:
    """For an application that serves its metrics over https.

    Its certificate is not checked: it is asked on the workload's own loopback address, where whoever could
    answer in its place is in the same pod, and no name in a certificate would say otherwise.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _budget(headers: Mapping[str, str]) -> float:
    """Seconds for the sources of this scrape, from Prometheus's header; garbage in it counts as absent."""
    timeout = DEFAULT_TIMEOUT
    with contextlib.suppress(ValueError):
        seconds = float(headers.get(TIMEOUT_HEADER, ""))
        if 0.0 < seconds <= MAX_TIMEOUT:
            timeout = seconds
    return timeout - min(MARGIN, timeout * MARGIN_RATIO_MAX)
