"""When an agent asks the CA next. Pure, clock and chance are arguments: thousands of them can be simulated.

Three things decide: a certificate is renewed in the middle of its life; a failure is tried again after a
pause that grows; and a change of the CA's roots hastens the next request, spread over a while, so that a mesh
does not ask as one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from meshscrape.spiffe.renewal import backoff, renew_at

LONGEST_PAUSE = timedelta(seconds=30)
SHORTEST_CAP = timedelta(seconds=0.5)
# Of a certificate's life: the longest pause between retries. Half of the life is left when they begin.
PAUSE_PART = 10
DEFAULT_SPREAD = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Timing:
    """What an agent was told: the part of a life that is left at renewal, its jitter, and the spread."""

    ratio: float = 0.5
    jitter: float = 0.01
    spread: timedelta = DEFAULT_SPREAD


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the next request is `due`, and how many have failed in a row; pauses grow up to `longest`.

    `draw` is random, in [0, 1).
    """

    due: datetime
    failures: int = 0
    longest: timedelta = LONGEST_PAUSE

    @classmethod
    def after_success(
        cls, received_at: datetime, not_after: datetime, timing: Timing, draw: float
    ) -> Schedule:
        """After a certificate that was received then and ends then.

        The shorter its life, the shorter are the pauses after a failure, so that a CA which comes back in
        time is noticed in time.
        """
        due = renew_at(received_at, not_after, ratio=timing.ratio, jitter=timing.jitter, draw=draw)
        part = (not_after - received_at) / PAUSE_PART
        return cls(due, longest=min(LONGEST_PAUSE, max(SHORTEST_CAP, part)))

    def after_failure(self, now: datetime, draw: float) -> Schedule:
        """Return the schedule after a request that brought no certificate."""
        pause = backoff(self.failures, cap=self.longest.total_seconds(), draw=draw)
        return replace(self, due=now + timedelta(seconds=pause), failures=self.failures + 1)

    def hastened(self, now: datetime, timing: Timing, draw: float) -> Schedule:
        """After a change of the CA's roots; an agent that waits after a failure waits no longer for it."""
        return replace(self, due=min(self.due, now + timing.spread * draw))

    def wait(self, now: datetime) -> timedelta:
        """Return how long until it is due; zero or less: now.

        After a failure never longer than the longest pause: a clock that was set back must not stop retries.
        """
        left = self.due - now
        return min(left, self.longest) if self.failures else left
