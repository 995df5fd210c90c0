"""Read targets from their sources, and keep the last usable targets of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from meshscrape.errors import InputError, MeshscrapeError, UnauthenticatedError
from meshscrape.prometheus.target_files import parse_target_file
from meshscrape.prometheus.targets import Target
from meshscrape.system.clock import utcnow
from meshscrape.system.followed import FollowedFile, Problem
from meshscrape.system.tasks import guarded

# How often a file source is checked (seconds).
LOOK = 0.2

# HTTP's status of a request without valid credentials, or without the right.
_REFUSALS = (401, 403)

Targets = Mapping[str, tuple[Target, ...]]
# Targets, and whether they are divisible (see `Snapshot`).
Check = Callable[[Sequence[Target], bool], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All targets of a source by job. With a `problem`, some of them may be the last known ones.

    Targets that did not change are the same objects as before, if the source can tell. `divisible`: two
    identities at one address cost the scrapes of that address only; else they make the snapshot unusable.
    """

    targets: Targets
    problem: MeshscrapeError | None = None
    as_of: float = 0.0
    divisible: bool = False


class Source(Protocol):
    """A source of the targets of one or more jobs."""

    @property
    def name(self) -> str:
        """Return its name, for logs and as a label."""

    @property
    def jobs(self) -> Sequence[str]:
        """Return the jobs that it has targets for."""

    def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield the targets at once, and again whenever they or the source's problem change; never end.

        MeshscrapeError before the first snapshot if the source is unusable.
        """


class FileSource:
    """A source in one file; `parse` gets its bytes and its path and returns targets."""

    def __init__(self, path: Path, jobs: Sequence[str], parse: Callable[[bytes, str], Targets]) -> None:
        self.jobs = tuple(jobs)
        self._file = FollowedFile(path, "the targets", parse)

    @property
    def name(self) -> str:
        return str(self._file.path)

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """See `Source.snapshots`."""
        yield Snapshot(self._file.read())
        while True:
            await asyncio.sleep(LOOK)
            before = self._file.problem.error
            if self._file.changed() or self._file.problem.error is not before:
                yield Snapshot(self._file.value, self._file.problem.error)


def target_file_source(path: Path, job: str) -> FileSource:
    """Return a source of `job` from a target file (see `prometheus.target_files`)."""
    return FileSource(path, (job,), lambda data, where: {job: parse_target_file(data, where)})


@dataclass(slots=True)
class SourceState:
    """The last usable targets of a source, and its current problem."""

    source: Source
    snapshots: AsyncIterator[Snapshot]
    problem: Problem
    targets: Targets = field(default_factory=dict)
    as_of: float = 0.0
    remembered: bool = False

    @property
    def refused(self) -> str:
        """Return why it has only targets of an earlier run, if waiting will not help; else an empty text.

        Credentials or rights are wrong then. A source that is away may come back.
        """
        error = self.problem.error
        wrong = any(
            isinstance(cause, InputError | UnauthenticatedError) or getattr(cause, "status", 0) in _REFUSALS
            for cause in (error, getattr(error, "__cause__", None))
        )
        return str(error) if self.remembered and wrong else ""


class Discovery:
    """All sources together; an unusable source keeps its last targets."""

    def __init__(self, sources: Iterable[Source], check: Check = lambda targets, divisible: None) -> None:
        """Begin with no targets. `check` raises InputError for targets of one source that are unusable."""
        self.states = [
            SourceState(
                source, source.snapshots(), Problem(f"some targets of {source.name} stay as they were")
            )
            for source in sources
        ]
        self.changed = asyncio.Event()
        self._check = check

    async def start(self) -> None:
        """Wait for the first targets of every source. Raise MeshscrapeError if a source is unusable."""
        for state in self.states:
            snapshot = await anext(state.snapshots)
            self._check_all(snapshot)
            state.targets = snapshot.targets
            _date(state, snapshot)
            if snapshot.problem is not None:
                state.problem.note(snapshot.problem)

    async def follow(self) -> None:
        """Follow the sources for ever; set `changed` whenever targets may have changed."""
        async with asyncio.TaskGroup() as tasks:
            for state in self.states:
                tasks.create_task(guarded(partial(self._follow, state), f"source {state.source.name}"))

    async def _follow(self, state: SourceState) -> None:
        async for snapshot in state.snapshots:
            if self._take(state, snapshot):
                self.changed.set()

    def _take(self, state: SourceState, snapshot: Snapshot) -> bool:
        """Store a snapshot; return whether the source's targets have changed."""
        try:
            self._check_all(snapshot)
        except MeshscrapeError as error:
            state.problem.note(snapshot.problem or error)
            return False
        if snapshot.problem is not None:
            # A part of the source may be unreachable. The targets of the other parts still take effect.
            state.problem.note(snapshot.problem)
        else:
            state.problem.clear()
        _date(state, snapshot)
        changed, state.targets = snapshot.targets != state.targets, snapshot.targets
        return changed

    def _check_all(self, snapshot: Snapshot) -> None:
        self._check([target for part in snapshot.targets.values() for target in part], snapshot.divisible)

    @property
    def jobs(self) -> tuple[str, ...]:
        """Return the jobs of all sources."""
        return tuple(dict.fromkeys(job for state in self.states for job in state.source.jobs))

    def by_job(self) -> dict[str, list[Sequence[Target]]]:
        """Return what the sources tell now by job, every job present, without a copy."""
        by_job: dict[str, list[Sequence[Target]]] = {job: [] for job in self.jobs}
        for state in self.states:
            for job, targets in state.targets.items():
                by_job[job].append(targets)
        return by_job

    def __iter__(self) -> Iterator[Target]:
        """Return all targets of all sources."""
        return (target for state in self.states for part in state.targets.values() for target in part)

    def targets(self) -> dict[str, list[Target]]:
        """Return all targets by job, every job present."""
        by_job: dict[str, list[Target]] = {job: [] for job in self.jobs}
        for state in self.states:
            for job, targets in state.targets.items():
                by_job[job].extend(targets)
        return by_job


def _date(state: SourceState, snapshot: Snapshot) -> None:
    """Note when the source last told all its targets, and whether that was in this run."""
    state.remembered = bool(snapshot.as_of)
    if snapshot.as_of:
        state.as_of = snapshot.as_of
    elif snapshot.problem is None:
        state.as_of = utcnow().timestamp()
