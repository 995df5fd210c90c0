"""Verify repeatedly, at an interval with jitter, and serve the results as metrics."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from time import monotonic
from typing import Any

from meshscrape.errors import MeshscrapeError
from meshscrape.istio.host_port import parse_host_port
from meshscrape.system.clock import utcnow
from meshscrape.system.http.server import HttpServer, Request, Response, ServerLimits, routes
from meshscrape.verify.findings import Report
from meshscrape.verify.history import Changes, History, changes, render

log = logging.getLogger(__name__)

METRICS_PATH = "/metrics"
# Seconds that a run may take.
LONGEST_RUN = 300.0
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_JITTER = 0.1
_LOOPBACK = "127.0.0.1"
_LIMITS = ServerLimits(connections=32, requests=4)
_draw = random.SystemRandom()

# Makes one verification. It finds the mesh anew, because workloads come and go.
VerifyOnce = Callable[[], Coroutine[Any, Any, Report]]


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """Options of a watch: seconds between starts, the longest time of a run, and where metrics are served.

    `metrics` is None for no metrics. The interval varies by a tenth, so that many watchers spread out.
    """

    interval: float = 60.0
    longest: float = LONGEST_RUN
    metrics: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run that has ended: the history after it, how its findings differ, seconds until the next run."""

    history: History
    report: Report | None
    changes: Changes
    next_in: float


def metrics_address(text: str) -> tuple[str, int]:
    """Return host and port of `PORT`, `:PORT`, `ADDRESS:PORT` or `[IPV6]:PORT`; by default, loopback."""
    place = text if ":" in text else f":{text}"
    full = f"{_LOOPBACK}{place}" if place.startswith(":") else place
    return parse_host_port(full, "--metrics", allow_zero=True, example="PORT, ADDRESS:PORT or [IPV6]:PORT")


class Watch:
    """A watch, until it is cancelled. `tell` gets every run, `listening` the address of the metrics."""

    def __init__(
        self, verify_once: VerifyOnce, options: WatchOptions, tell: Callable[[Run], None],
        listening: Callable[[str, int], None] = lambda host, port: None,
    ) -> None:  # fmt: skip
        self.history = History(options.interval)
        self._verify_once = verify_once
        self._options = options
        self._tell = tell
        self._listening = listening

    async def run(self) -> None:
        """Verify and wait, for ever. Raise InputError when the metrics' address cannot be used."""
        addresses = [self._options.metrics] if self._options.metrics else []
        handler = routes({METRICS_PATH: self._serve})
        async with HttpServer(handler, addresses=addresses, limits=_LIMITS) as server:
            for host, port in server.addresses:
                self._listening(host, port)
            while True:
                began = monotonic()
                run = await self._once(began)
                self._tell(run)
                await asyncio.sleep(run.next_in)

    async def _once(self, began: float) -> Run:
        before, report = self.history.report, None
        try:
            async with asyncio.timeout(self._options.longest):
                report = await self._verify_once()
        except TimeoutError:
            self.history = self.history.after_failure(f"it did not end within {self._options.longest:g} s")
        except MeshscrapeError as error:
            self.history = self.history.after_failure(str(error))
        except Exception as error:
            # A bug here must not leave the last green result in place, and must not end the watch.
            log.exception("a run failed")
            self.history = self.history.after_failure(f"{type(error).__name__}: {error}")
        else:
            self.history = self.history.after_report(report, utcnow())
        differ = changes(before, report) if report else Changes((), ())
        return Run(self.history, report, differ, self._pause(monotonic() - began))

    def _pause(self, taken: float) -> float:
        """Return the seconds until the next start, at least a tenth of the interval."""
        interval = self._options.interval * _draw.uniform(1 - _JITTER, 1 + _JITTER)
        return max(interval - taken, self._options.interval * _JITTER)

    async def _serve(self, _: Request) -> Response:
        return Response(200, render(self.history, utcnow()), _CONTENT_TYPE)
