"""Where targets come from, and what is known of each source now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from meshscrape.errors import MeshscrapeError
from meshscrape.prometheus.target_files import parse_target_file
from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.files import read_input

logger = logging.getLogger(__name__)

Targets = Mapping[str, tuple[Target, ...]]


class Source(Protocol):
    """Tells the targets of one or more jobs."""

    @property
    def name(self) -> str:
        """What it is, for people and as a label."""

    @property
    def jobs(self) -> Sequence[str]:
        """The jobs whose targets it tells."""

    def read(self) -> Targets | None:
        """All its targets by job; None when they are as at the last call. Raises MeshscrapeError."""


class WatchedFile:
    """A source that is one file, read again whenever it is another one: `parse` makes targets of it."""

    def __init__(self, path: Path, jobs: Sequence[str], parse: Callable[[bytes, str], Targets]) -> None:
        self.path = path
        self.jobs = tuple(jobs)
        self._parse = parse
        self._stamp: tuple[int, int, int] | None = None
        self._data: bytes | None = None

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> Targets | None:
        """See `Source.read`; a content that could not be used is not tried again until it changes."""
        try:
            seen = self.path.stat()
            stamp = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
        except OSError:
            stamp = (0, 0, 0)
        if stamp == self._stamp:
            return None
        before, self._stamp, self._data = self._data, None, None
        data = read_input(self.path, "the targets")
        self._stamp, self._data = stamp, data
        return None if data == before else self._parse(data, str(self.path))


def target_file_source(path: Path, job: str) -> WatchedFile:
    """The targets of `job` from a target file (see `scrape.target_files`)."""
    return WatchedFile(path, (job,), lambda data, where: {job: parse_target_file(data, where)})


@dataclass(slots=True)
class SourceState:
    """The last targets of a source that could be used, and what is wrong with it now (empty: nothing)."""

    source: Source
    targets: Targets
    problem: str = ""
    failures: int = 0


class Discovery:
    """All sources together; a source that cannot be used keeps its last targets."""

    def __init__(
        self, sources: Iterable[Source], check: Callable[[Iterable[Target]], None] = lambda targets: None
    ) -> None:
        """`check` raises InputError for targets of one source that can never be used."""
        self.states = [SourceState(source, {}) for source in sources]
        self._check = check

    def start(self) -> None:
        """Read every source for the first time. Raises MeshscrapeError for one that cannot be used."""
        for state in self.states:
            state.targets = self._read(state.source) or {}

    def look(self) -> bool:
        """Read what has changed; whether targets may be others than before."""
        changed = False
        for state in self.states:
            try:
                found = self._read(state.source)
            except MeshscrapeError as error:
                # A file that cannot be read is tried at every look: once is enough to say so.
                if str(error) != state.problem:
                    state.failures += 1
                    state.problem = str(error)
                    logger.error("the targets stay as they were: %s", error)
                continue
            if found is not None:
                changed = changed or found != state.targets
                state.targets, state.problem = found, ""
        return changed

    def _read(self, source: Source) -> Targets | None:
        found = source.read()
        if found is not None:
            self._check(target for targets in found.values() for target in targets)
        return found

    @property
    def jobs(self) -> tuple[str, ...]:
        """Every job that some source tells."""
        return tuple(dict.fromkeys(job for state in self.states for job in state.source.jobs))

    def targets(self) -> dict[str, list[Target]]:
        """All targets by job, every job present."""
        found: dict[str, list[Target]] = {job: [] for job in self.jobs}
        for state in self.states:
            for job, targets in state.targets.items():
                found[job].extend(targets)
        return found


def uncontested(targets: Mapping[str, Sequence[Target]]) -> tuple[dict[str, list[Target]], tuple[str, ...]]:
    """The targets without those at addresses where two sources expect different identities; these addresses.

    Nobody can tell which source is right, so nobody is scraped there; all other targets go on.
    """
    expected: dict[str, SpiffeId] = {}
    contested: set[str] = set()
    for found in targets.values():
        for target in found:
            if expected.setdefault(target.authority, target.spiffe_id) != target.spiffe_id:
                contested.add(target.authority)
    if not contested:
        return {job: list(found) for job, found in targets.items()}, ()
    kept = {
        job: [each for each in found if each.authority not in contested] for job, found in targets.items()
    }
    return kept, tuple(sorted(contested))
