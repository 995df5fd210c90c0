"""Decide when an agent sends its next request to the CA. Pure: time and randomness are arguments.

There are three rules. A certificate is renewed in the middle of its life. After a failure, the agent tries
again after a pause that grows. After a change of the CA's roots, the next request comes early, spread over
some time, so that the agents of a mesh do not all ask at once. Tests simulate thousands of agents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from meshscrape.spiffe.renewal import backoff, renew_at

LONGEST_PAUSE = timedelta(seconds=30)
SHORTEST_CAP = timedelta(seconds=0.5)
# The longest pause between retries, as a share of the certificate's life. Half of the life is left when they
# begin.
PAUSE_PART = 10
DEFAULT_SPREAD = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Timing:
    """The settings of renewal: the share of the life left at renewal, its jitter, and the spread."""

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
        """Return the schedule after a certificate was received.

        A shorter life gives shorter pauses after a failure, so that the agent notices in time when the CA
        comes back.
        """
        due = renew_at(received_at, not_after, ratio=timing.ratio, jitter=timing.jitter, draw=draw)
        part = (not_after - received_at) / PAUSE_PART
        return cls(due, longest=min(LONGEST_PAUSE, max(SHORTEST_CAP, part)))

    def after_failure(self, now: datetime, draw: float) -> Schedule:
        """Return the schedule after a failed request."""
        pause = backoff(self.failures, cap=self.longest.total_seconds(), draw=draw)
        return replace(self, due=now + timedelta(seconds=pause), failures=self.failures + 1)

    def hastened(self, now: datetime, timing: Timing, draw: float) -> Schedule:
        """Return the schedule after a change of the CA's roots. It never delays a retry after a failure."""
        return replace(self, due=min(self.due, now + timing.spread * draw))

    def wait(self, now: datetime) -> timedelta:
        """Return how long to wait until the next request; zero or less means now.

        After a failure it is at most the longest pause: a clock that was set back must not stop retries.
        """
        left = self.due - now
        return min(left, self.longest) if self.failures else left
