"""The merged metrics of a workload: agent, Envoy and applications as one exposition, streamed.

Every source is asked at once and has its own deadline; what they answer is emitted in order. A source that is
slow, dead or hostile costs its own families only, and is visible in the result (`meshscrape_source_up`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from meshscrape.agent.sources import Deadline, Fetch, MergedOptions, loopback_tls, sources_of
from meshscrape.errors import UnavailableError
from meshscrape.exposition.health import (
    Family,
    SourceHealth,
    health_families,
    health_names,
    render_families,
)
from meshscrape.exposition.merge import Merger
from meshscrape.exposition.negotiate import Format, content_type
from meshscrape.exposition.source import SourceMerge
from meshscrape.istio.names import MERGED_PATH
from meshscrape.system.http.server import Request, Response

log = logging.getLogger(__name__)

PATHS = (MERGED_PATH, "/metrics")
TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"
DEFAULT_TIMEOUT = 10.0
MAX_TIMEOUT = 600.0
# Shares of the scrape's timeout: until when sources before the last one are read (those behind a hanging one
# need time too), until when the last one is, and until when what was read is merged. What is left then goes
# to the last bytes, which must reach Prometheus before its own deadline: the answer is whole within 90 %.
READ_EARLY, READ, MERGE = 0.64, 0.8, 0.85
# A scraper that reads slowly is served this much longer than its own deadline, then cut off.
PATIENCE = 30.0
# Bytes of all sources together that wait for their turn; a source that is ahead of it is not read further.
AHEAD_BYTES = 4 << 20
# What is merged at once, so that nothing keeps the event loop for more than some 10 ms.
BATCH_BYTES = 1 << 18


@dataclass(slots=True)
class _Totals:
    """What is counted about a source since the start."""

    failures: int = 0
    dropped_families: int = 0
    malformed_lines: int = 0
    truncations: int = 0
    down: bool = False


class MergedMetrics:
    """Answers GET with the merged exposition; `agent_families` gives the agent's own in the text format."""

    def __init__(self, options: MergedOptions, agent_families: Callable[[], bytes] = bytes) -> None:
        self.options = options
        self._agent_families = agent_families
        self._sources = sources_of(options)
        self._totals = {source.name: _Totals() for source in self._sources}
        self._scrapes = 0
        self._own_failures = 0
        self._tls = loopback_tls() if any(s.url.startswith("https:") for s in self._sources) else None

    async def handle(self, request: Request) -> Response:
        """Answer GET and HEAD of both paths."""
        if request.method == "HEAD":
            return Response(200, b"", content_type(Format.TEXT))
        self._scrapes += 1
        return Response(200, self._exposition(_timeout(request.headers)), content_type(Format.TEXT))

    def families(self) -> list[Family]:
        """Return Istio's own counters of its merge: scrapes answered, sources that failed by type."""
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

    async def _exposition(self, seconds: float) -> AsyncIterator[bytes]:
        """Yield the merged exposition, whole within 90 % of these seconds if the scraper reads it as fast."""
        merger = Merger(self.options.limits, allow_scrape_series=self.options.allow_scrape_series)
        merger.reserve(health_names())
        clock = asyncio.get_running_loop().time
        give_up = clock() + seconds + PATIENCE
        fetches = self._fetches(clock(), seconds)
        tasks = [asyncio.create_task(fetch.run()) for fetch in fetches]
        try:
            own = merger.source("agent", trusted=True)
            yield own.feed(self._own_families()) + own.finish(True)
            health = []
            for fetch in fetches:
                await fetch.answered.wait()
                merge = merger.source(
                    fetch.source.name,
                    trusted=fetch.source.kind == "envoy",
                    doubtful=fetch.declared is not None and not fetch.declared.certain,
                    openmetrics=fetch.declared is not None and fetch.declared.openmetrics,
                )
                async for chunk in _merged(fetch, merge):
                    yield chunk
                    if clock() > give_up:
                        raise UnavailableError("the scraper reads too slowly")
                health.append(self._judge(fetch, merge))
            yield render_families(health_families(health))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _fetches(self, now: float, seconds: float) -> list[Fetch]:
        last = len(self._sources) - 1
        ahead = AHEAD_BYTES // max(1, len(self._sources))
        deadlines = [
            Deadline(
                own=now + seconds * (READ if number == last else READ_EARLY),
                latest=now + seconds * READ,
                merge_by=now + seconds * MERGE,
            )
            for number in range(len(self._sources))
        ]
        return [
            Fetch(source, Format.TEXT, deadline, ahead, self._tls)
            for source, deadline in zip(self._sources, deadlines, strict=True)
        ]

    def _judge(self, fetch: Fetch, merge: SourceMerge) -> SourceHealth:
        """Return how the source did; add it to its totals, and log it when that changes."""
        totals = self._totals[fetch.source.name]
        problem = merge.problem or fetch.problem
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
            merge.series,
            totals.dropped_families,
            totals.malformed_lines,
            totals.truncations,
            hidden=merge.hidden,
            hidden_names=merge.hidden_names,
            problem=problem,
        )


async def _merged(fetch: Fetch, merge: SourceMerge) -> AsyncIterator[bytes]:
    """Yield what of one source is merged, as it arrives; an error of ours is this source's loss alone."""
    try:
        async for piece in fetch.pieces(BATCH_BYTES):
            if out := merge.feed(piece):
                yield out
            if merge.cut_off:
                return
        if out := merge.finish(fetch.complete):
            yield out
    except UnavailableError as error:
        fetch.problem = error.what
    except Exception:
        log.exception("source %s could not be merged", fetch.source.name)
        fetch.problem = "could not be merged"


def _timeout(headers: Mapping[str, str]) -> float:
    """Return the scrape's timeout in seconds, from Prometheus's header; garbage in it counts as absent."""
    with contextlib.suppress(ValueError):
        seconds = float(headers.get(TIMEOUT_HEADER, ""))
        if 0.0 < seconds <= MAX_TIMEOUT:
            return seconds
    return DEFAULT_TIMEOUT
