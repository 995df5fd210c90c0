"""Restart a component that dies, with back-off and a limit; the decision is a pure function."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from meshscrape.errors import MeshscrapeError
from meshscrape.system.processes import STOP_GRACE, Process

logger = logging.getLogger(__name__)


class ComponentFailed(MeshscrapeError):
    """A component died more often than its policy allows; `output` has its last lines."""

    def __init__(self, name: str, what: str, output: str) -> None:
        self.name = name
        self.output = output
        lines = " | ".join(output.splitlines())
        said = f"; its last output: {lines}" if lines else "; it printed nothing"
        super().__init__(f"{what}{said}", where=name)


@dataclass(frozen=True, slots=True)
class Policy:
    """At most `restarts` restarts within `window` seconds; waits double from `base` to `cap` seconds."""

    restarts: int = 5
    window: float = 60.0
    base: float = 0.2
    cap: float = 5.0


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the component again `after` so many seconds."""

    after: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start it again: it has died `deaths` times within the window."""

    deaths: int


def decide(history: Sequence[float], now: float, policy: Policy = Policy()) -> Restart | GiveUp:
    """Return what to do after a death; `history` has the times of all deaths in seconds, including this one.

    Only deaths within the policy's window count, so earlier ones are forgotten.
    """
    recent = sum(1 for died in history if now - died <= policy.window)
    if recent > policy.restarts:
        return GiveUp(recent)
    return Restart(min(policy.cap, policy.base * 2.0 ** max(0, recent - 1)))


class Supervisor:
    """Keep one component running as long as `run` runs; cancelling `run` stops the component."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Process]],
        *,
        policy: Policy = Policy(),
        grace: float = STOP_GRACE,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.process: Process | None = None
        self._start = start
        self._policy = policy
        self._grace = grace
        self._deaths: list[float] = []

    @property
    def pid(self) -> int | None:
        """Return the component's process id while it runs."""
        running = self.process is not None and self.process.returncode is None
        return self.process.pid if running and self.process else None

    @property
    def running(self) -> bool:
        """Return whether the component runs now."""
        return self.pid is not None

    def tail(self, lines: int = 10) -> str:
        """Return the end of the output of the current, or last, process."""
        return self.process.tail(lines) if self.process else ""

    @property
    def log_problem(self) -> str:
        """Return why the component's log cannot be written; empty while it can."""
        return self.process.log_problem if self.process else ""

    async def run(self) -> None:
        """Start the component, and start it again whenever it ends; raise ComponentFailed at the limit.

        Never returns. An error of `start` (a missing program, …) is raised, because a restart would not help.
        """
        while True:
            self.process = await self._start()
            try:
                status = await self.process.wait()
            except asyncio.CancelledError:
                await self.process.stop(self._grace)
                raise
            await asyncio.sleep(self._after_death(status))
            self.restarts += 1

    def _after_death(self, status: int) -> float:
        now = time.monotonic()
        self._deaths = [died for died in self._deaths if now - died <= self._policy.window]
        self._deaths.append(now)
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        match decide(self._deaths, now, self._policy):
            case GiveUp(deaths):
                what = f"ended {deaths} times within {self._policy.window:g} s ({how})"
                raise ComponentFailed(self.name, what, self.tail())
            case Restart(after):
                logger.warning("%s ended (%s); starting it again in %.1f s", self.name, how, after)
                return after
