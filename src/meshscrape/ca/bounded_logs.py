"""Limit log lines that any peer on the network can cause, so that they do not fill the disk."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime, timedelta

from meshscrape.ca.admission import Cause, ConnectionStage

log = logging.getLogger(__name__)

_NO_TROUBLE = (Cause.PEER, Cause.SERVER)


class BoundedLog:
    """Write at most LINES warnings a minute, and count the rest."""

    LINES = 60

    def __init__(self) -> None:
        self._since: datetime | None = None
        self._said = self._unsaid = 0

    def say(self, now: datetime, line: str) -> None:
        """Log `line`, unless the limit for this minute is reached."""
        # A clock that was set back must not block the log.
        if self._since is None or not timedelta(0) <= now - self._since < timedelta(minutes=1):
            if self._unsaid:
                log.warning("%d more were not logged", self._unsaid)
            self._since, self._said, self._unsaid = now, 0, 0
        if self._said < self.LINES:
            self._said += 1
            log.warning("%s", line)
        else:
            self._unsaid += 1


class PressureLog:
    """Log at most every ten seconds which connections the CA ended, why, and the most frequent address."""

    EVERY = timedelta(seconds=10)
    _MOST_ADDRESSES = 1000

    def __init__(self) -> None:
        self._last: datetime | None = None
        self._causes: Counter[tuple[ConnectionStage, Cause]] = Counter()
        self._addresses: Counter[str] = Counter()

    def note(self, stage: ConnectionStage, cause: Cause, address: str) -> None:
        """Count a connection that has ended in `stage`."""
        if cause in _NO_TROUBLE:
            return
        self._causes[stage, cause] += 1
        if address in self._addresses or len(self._addresses) < self._MOST_ADDRESSES:
            self._addresses[address] += 1

    def say(self, now: datetime) -> None:
        """Log the ended connections since the last line, unless that was less than ten seconds ago."""
        if not self._causes or (self._last is not None and timedelta(0) <= now - self._last < self.EVERY):
            return
        self._last = now
        log.warning("%s", self._line())
        self._causes.clear()
        self._addresses.clear()

    def _line(self) -> str:
        total = sum(self._causes.values())
        causes = ", ".join(
            f"{number} {cause} while {stage}" for (stage, cause), number in self._causes.most_common(6)
        )
        address, number = self._addresses.most_common(1)[0]
        crowded = any(
            cause is Cause.EVICTED and stage is not ConnectionStage.PROVEN for stage, cause in self._causes
        )
        advice = (
            "; too many peers prove no identity: limit the network access to this port" if crowded else ""
        )
        return f"ended {total} connections: {causes}; {number} came from {address}{advice}"
