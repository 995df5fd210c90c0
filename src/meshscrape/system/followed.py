"""Follow a file while a process runs; its last usable content stays in use.

Changes are found by polling, not by inotify. Polling works on every file system and for every way in which
editors and Kubernetes replace a file, and it needs no descriptor.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from meshscrape.errors import MeshscrapeError
from meshscrape.system.files import LARGEST_INPUT, read_input

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Stamp(NamedTuple):
    """The attributes of a file that change whenever it is replaced or written; one system call reads them."""

    inode: int
    modified: int
    size: int


def stamp_of(path: Path) -> Stamp | None:
    """Return the stamp of the file that `path` names now (links are followed), or None without a file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Stamp(status.st_ino, status.st_mtime_ns, status.st_size)


class Problem:
    """The current problem of something that is polled; it is logged and counted once per change.

    `error` is None while nothing is wrong.
    """

    def __init__(self, consequence: str, log: logging.Logger = logger) -> None:
        """Begin without a problem. `consequence` is its effect for the log ("the last list stays in use")."""
        self.error: MeshscrapeError | None = None
        self.count = 0
        self._consequence = consequence
        self._log = log

    @property
    def text(self) -> str:
        """Return the problem as one line, empty while nothing is wrong."""
        return str(self.error) if self.error else ""

    def note(self, error: MeshscrapeError) -> None:
        """Note that `error` is the problem now."""
        if str(error) != self.text:
            self.error = error
            self.count += 1
            self._log.error("%s: %s", self._consequence, error)

    def clear(self) -> None:
        """Note that there is no problem any more."""
        self.error = None


class FollowedFile(Generic[T]):
    """One file and the value of its last usable content; `parse` makes it of the bytes and the path.

    `what` names the content in messages, such as "the allow list". A file larger than `limit` bytes, and
    anything but a regular file, cannot be used. With `settled`, a change counts only when two polls in a row
    see the same file, so that a half-written file does not take effect.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        parse: Callable[[bytes, str], T],
        *,
        limit: int = LARGEST_INPUT,
        settled: bool = False,
        log: logging.Logger = logger,
    ) -> None:
        self.path = path
        self.problem = Problem(f"the last usable version of {what} stays in use", log)
        self._what = what
        self._parse = parse
        self._limit = limit
        self._settled = settled
        self._values: list[T] = []
        self._stamp: Stamp | None = None
        self._seen: Stamp | None = None
        self._digest = b""

    @property
    def value(self) -> T:
        """Return the value of the last usable content; `read` must have returned before."""
        return self._values[0]

    def read(self) -> T:
        """Read the file and return its value. Raise MeshscrapeError when it cannot be used."""
        # Take the stamp first: a change between the two steps is then found at the next poll, and never
        # missed.
        self._seen = stamp = stamp_of(self.path)
        content = read_input(self.path, self._what, self._limit)
        self._values = [self._parse(content, str(self.path))]
        self._stamp, self._digest = stamp, _digest(content)
        return self.value

    def changed(self) -> bool:
        """Return whether the file has new usable content; true once for each content.

        An unreadable file is tried again at every call. Unusable content is tried again when the file
        changes.
        """
        stamp, before = stamp_of(self.path), self._seen
        self._seen = stamp
        if self._settled and stamp != before:
            return False
        if stamp is not None and stamp == self._stamp:
            return False
        self._stamp = None
        try:
            content = read_input(self.path, self._what, self._limit)
            self._stamp = stamp
            new = _digest(content) != self._digest
            if new:
                self._values, self._digest = [self._parse(content, str(self.path))], _digest(content)
        except MeshscrapeError as error:
            self.problem.note(error)
            return False
        self.problem.clear()
        return new

    async def changes(self, every: float) -> AsyncIterator[T]:
        """Poll the file after `every` seconds, for ever, and yield the value of each new usable content."""
        while True:
            await asyncio.sleep(every)
            if self.changed():
                yield self.value


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
