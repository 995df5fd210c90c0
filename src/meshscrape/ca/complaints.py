"""Log lines that anybody on the network can cause, without letting them fill the disk."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

log = logging.getLogger(__name__)


class BoundedLog:
    """Warnings that anybody can cause: at most LINES a minute are written, the rest is counted."""

    LINES = 60

    def __init__(self) -> None:
        self._since: datetime | None = None
        self._said = self._unsaid = 0

    def say(self, now: datetime, line: str) -> None:
        """Log `line`, unless this minute has had enough."""
        # A clock that was set back must not keep the log shut.
        if self._since is None or not timedelta(0) <= now - self._since < timedelta(minutes=1):
            if self._unsaid:
                log.warning("%d more were not logged", self._unsaid)
            self._since, self._said, self._unsaid = now, 0, 0
        if self._said < self.LINES:
            self._said += 1
            log.warning("%s", line)
        else:
            self._unsaid += 1
