"""The merged metrics of a workload: agent, Envoy and applications as one exposition, streamed.

All sources are read in parallel, each with its own deadline; their answers are emitted in order. A slow, dead
or hostile source only loses its own families, and the result shows it (`meshscrape_source_up`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
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
from meshscrape.exposition.negotiate import Format, choose, content_type
from meshscrape.exposition.patterns import FAST
from meshscrape.exposition.protobuf import render_protobuf
from meshscrape.exposition.source import SourceMerge
from meshscrape.istio.names import MERGED_PATH
from meshscrape.system.http.server import Request, Response

log = logging.getLogger(__name__)

PATHS = (MERGED_PATH, "/metrics")
TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"
DEFAULT_TIMEOUT = 10.0
MAX_TIMEOUT = 600.0
# Ends of three steps, as shares of the scrape's timeout. READ_EARLY ends the reading of every source before
# the last one, so that the sources behind a hanging one have time, too. READ ends the reading of the last
# source. MERGE ends the merging. The remaining time is for the last bytes, which must reach Prometheus before
# its own deadline: the answer is whole within 90 %.
READ_EARLY, READ, MERGE = 0.64, 0.8, 0.85
# A slow scraper is served this much longer than its own deadline (seconds), then cut off.
PATIENCE = 30.0
# Bytes of all sources together that may wait for their turn. A source above its share is not read further.
AHEAD_BYTES = 4 << 20
# Bytes merged in one step, so that no step blocks the event loop for more than about 10 ms.
BATCH_BYTES = 1 << 18
# A send costs as much as merging 100 kB. So merged bytes are sent when there are SEND_BYTES of them, or when
# a source has kept the scrape waiting for SEND_AFTER seconds.
SEND_BYTES = 1 << 18
SEND_AFTER = 0.02
# Bytes that the buffers of a merge take together, and bytes of the largest buffer. This memory is kept
# between scrapes.
BUFFERS, LARGEST_BUFFER = 4 << 20, 2 << 20
# How long a source is assumed to keep the format of its last answer, in seconds.
REMEMBER_FORMAT = 60.0
# Share of the scrape's timeout for finding out whether every source speaks protobuf.
AGREE = 0.3


@dataclass(slots=True)
class _Totals:
    """The counters of a source since the start."""

    failures: int = 0
    dropped_families: int = 0
    malformed_lines: int = 0
    truncations: int = 0
    down: bool = False
    # The source's format when it was last offered protobuf, and the time of that answer.
    format: Format | None = None
    format_seen: float = 0.0


@dataclass(slots=True)
class _Answer:
    """The state of one merged answer. `whole` is set before the last piece is yielded."""

    format: Format
    whole: bool = False


class MergedMetrics:
    """Serve the merged exposition; `agent_families` returns the agent's own families."""

    def __init__(
        self, options: MergedOptions, agent_families: Callable[[], Sequence[Family]] = tuple
    ) -> None:
        self.options = options
        self._agent_families = agent_families
        self._sources = sources_of(options)
        self._totals = {source.name: _Totals() for source in self._sources}
        if not FAST:
            log.warning("merging is ten times slower: memory cannot be made executable (for PCRE2's JIT)")
        self._scrapes = 0
        self._own_failures = 0
        self._tls = loopback_tls() if any(s.url.startswith("https:") for s in self._sources) else None

    async def handle(self, request: Request) -> Response:
        """Answer GET and HEAD of both paths. A small, fast exposition is sent with its length."""
        answer = _Answer(choose(request.headers.get("accept")))
        if request.method == "HEAD":
            return Response(200, b"", content_type(answer.format))
        self._scrapes += 1
        pieces = self._exposition(answer, _timeout(request.headers))
        first = await anext(pieces)
        if not answer.whole:
            return Response(200, _resumed(first, pieces), content_type(answer.format))
        await pieces.aclose()
        return Response(200, first, content_type(answer.format))

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

    def _own_families(self) -> list[Family]:
        try:
            more = self._agent_families()
        except Exception:
            log.exception("the agent's own metrics failed")
            self._own_failures += 1
            more = ()
        return [*more, *self.families()]

    async def _exposition(self, answer: _Answer, seconds: float) -> AsyncGenerator[bytes]:
        """Yield the merged exposition, complete within 90 % of `seconds` if the scraper reads fast enough."""
        clock = asyncio.get_running_loop().time
        began = clock()
        give_up = began + seconds + PATIENCE
        async with contextlib.AsyncExitStack() as stack:
            fetches = await self._agreed(answer, began, seconds, stack)
            render = render_families if answer.format is Format.TEXT else render_protobuf
            merger = Merger(self.options.limits, allow_scrape_series=self.options.allow_scrape_series)
            merger.reserve(health_names())
            own = _merge_of(merger, answer.format, "agent", trusted=True)
            pieces = [own.feed(render(self._own_families())), own.finish(True)]
            health = []
            for fetch in fetches:
                if not await _is_answered(fetch, SEND_AFTER):
                    yield _taken(pieces)
                    await fetch.answered.wait()
                if answer.format is Format.PROTOBUF:
                    self._remember(fetch, began)
                merge = _merge_of_fetch(merger, answer.format, fetch)
                async for piece in _merged(fetch, merge):
                    pieces.append(piece)
                    if sum(map(len, pieces)) >= SEND_BYTES:
                        yield _taken(pieces)
                    if clock() > give_up:
                        raise UnavailableError("the scraper reads too slowly")
                health.append(self._judge(fetch, merge))
            pieces.append(render(health_families(health)))
            answer.whole = True
            yield _taken(pieces)

    async def _agreed(
        self, answer: _Answer, now: float, seconds: float, stack: contextlib.AsyncExitStack
    ) -> list[Fetch]:
        """Return the running fetches. Set `answer.format` to protobuf only if every source answers protobuf.

        A source is assumed to repeat the format of a recent answer. A source that is down does not count. An
        unknown source that does not answer soon makes the whole answer text.
        """
        clock = asyncio.get_running_loop().time
        known = {
            name: one.format
            for name, one in self._totals.items()
            if one.format is not None and now - one.format_seen < REMEMBER_FORMAT
        }
        if Format.TEXT in known.values():
            answer.format = Format.TEXT
        fetches, tasks = self._started(answer.format, now, seconds, stack)
        if answer.format is Format.TEXT:
            return fetches
        for fetch in fetches:
            totals = self._totals[fetch.source.name]
            if fetch.source.name in known:
                continue
            totals.format = None
            if await _is_answered(fetch, now + seconds * AGREE - clock()):
                self._remember(fetch, now)
            else:
                totals.format, totals.format_seen = Format.TEXT, now
        if all(one.format is not Format.TEXT for one in self._totals.values()):
            return fetches
        answer.format = Format.TEXT
        await _ended(tasks)
        return self._started(Format.TEXT, now, seconds, stack)[0]

    def _started(
        self, asked: Format, now: float, seconds: float, stack: contextlib.AsyncExitStack
    ) -> tuple[list[Fetch], list[asyncio.Task[None]]]:
        fetches = self._fetches(asked, now, seconds)
        tasks = [asyncio.create_task(fetch.run()) for fetch in fetches]
        stack.push_async_callback(_ended, tasks)
        return fetches, tasks

    def _fetches(self, asked: Format, now: float, seconds: float) -> list[Fetch]:
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
            Fetch(source, asked, deadline, ahead, self._tls)
            for source, deadline in zip(self._sources, deadlines, strict=True)
        ]

    def _remember(self, fetch: Fetch, now: float) -> None:
        if fetch.declared is not None:
            totals = self._totals[fetch.source.name]
            totals.format, totals.format_seen = fetch.declared.format, now

    def _judge(self, fetch: Fetch, merge: SourceMerge) -> SourceHealth:
        """Return the health of the source, add it to the totals, and log changes."""
        name = fetch.source.name
        totals = self._totals[name]
        problem = merge.problem or fetch.problem
        up = not problem
        totals.failures += not up
        totals.dropped_families += merge.dropped_families
        if merge.first_malformed and not totals.malformed_lines:
            log.warning("source %s sends malformed lines, the first: %r", name, merge.first_malformed)
        totals.malformed_lines += merge.malformed_lines
        totals.truncations += merge.truncated
        if up == totals.down:
            log.warning("source %s is %s%s", fetch.source.name, "up" if up else "down: ", problem)
        totals.down = not up
        answered = fetch.declared.format if fetch.declared is not None else Format.TEXT
        return SourceHealth(
            fetch.source.name,
            up,
            fetch.seconds,
            merge.bytes_in,
            merge.series,
            totals.dropped_families,
            totals.malformed_lines,
            totals.truncations,
            # Show that this source supports protobuf, although another source made the answer text.
            format=(totals.format or answered).label,
            hidden=merge.hidden,
            hidden_names=merge.hidden_names,
            problem=problem,
        )


def _merge_of(merger: Merger, chosen: Format, name: str, *, trusted: bool) -> SourceMerge:
    if chosen is Format.PROTOBUF:
        return merger.protobuf_source(name, trusted=trusted)
    return merger.source(name, trusted=trusted)


def _merge_of_fetch(merger: Merger, chosen: Format, fetch: Fetch) -> SourceMerge:
    """Return the part of the merge for a source, by the Content-Type of its answer."""
    trusted = fetch.source.kind == "envoy"
    declared = fetch.declared
    if declared is not None and declared.format is not chosen:
        fetch.refuse("answered text, although it answered protobuf before; the next scrape is text")
    if chosen is Format.PROTOBUF or declared is None:
        return _merge_of(merger, chosen, fetch.source.name, trusted=trusted)
    return merger.source(
        fetch.source.name,
        trusted=trusted,
        doubtful=not declared.certain,
        openmetrics=declared.openmetrics,
    )


async def _merged(fetch: Fetch, merge: SourceMerge) -> AsyncIterator[bytes]:
    """Yield one source's merged lines as they arrive. A bug in the merge only affects this source."""
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


async def _is_answered(fetch: Fetch, seconds: float) -> bool:
    """Return whether the source has answered or failed within `seconds`."""
    if not fetch.answered.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await fetch.answered.wait()
    return fetch.answered.is_set()


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    if all(task.done() for task in tasks):
        return
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _resumed(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _taken(pieces: list[bytes]) -> bytes:
    """Return the pieces as one, and forget them."""
    out = b"".join(pieces)
    pieces.clear()
    return out


def _timeout(headers: Mapping[str, str]) -> float:
    """Return the scrape's timeout in seconds from Prometheus's header; ignore a malformed header."""
    with contextlib.suppress(ValueError):
        seconds = float(headers.get(TIMEOUT_HEADER, ""))
        if 0.0 < seconds <= MAX_TIMEOUT:
            return seconds
    return DEFAULT_TIMEOUT
