"""The last targets of a source on disk: a start while the source is away uses them, for a bounded time."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.prometheus.target_rows import parse_target_row, target_row
from meshscrape.proxy.discovery import Snapshot, Source, Targets
from meshscrape.system.clock import utcnow
from meshscrape.system.files import read_input, write_atomic

logger = logging.getLogger(__name__)

# How long the last targets may be used without their source, in seconds.
AGE = 3600.0
# Writing ten thousand targets takes a moment: changes that come together are written once.
WRITE_SECONDS = 20.0
REFRESH_SECONDS = 60.0
RETRY_SECONDS = 2.0


class RememberedSource:
    """A source whose last targets are in a file. It is the source itself for as long as that answers."""

    def __init__(self, source: Source, path: Path, age: float = AGE) -> None:
        self.jobs: Sequence[str] = source.jobs
        self._source = source
        self._path = path
        self._age = age
        self._written = 0.0

    @property
    def name(self) -> str:
        """Return the source's own name."""
        return self._source.name

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """See `Source.snapshots`. If the first list fails, remembered targets that are young enough serve."""
        inner = self._source.snapshots()
        try:
            first = await anext(inner)
        except MeshscrapeError as error:
            known = self._read()
            if known is None or utcnow().timestamp() - known.as_of > self._age:
                raise
            logger.error("the targets of an earlier run are used: %s", error)
            known = replace(known, problem=error)
            yield known
            while True:
                await asyncio.sleep(RETRY_SECONDS)
                inner = self._source.snapshots()
                try:
                    first = await anext(inner)
                    break
                except MeshscrapeError as again:
                    if utcnow().timestamp() - known.as_of > self._age:
                        yield Snapshot(dict.fromkeys(self.jobs, ()), _too_old(again), known.as_of)
                    elif str(again) != str(known.problem):
                        known = replace(known, problem=again)
                        yield known
        yield first
        async for snapshot in self._kept(first, inner):
            yield snapshot

    async def _kept(self, last: Snapshot, inner: AsyncIterator[Snapshot]) -> AsyncIterator[Snapshot]:
        """Yield what the source tells; write it down, and again from time to time while it stays true."""
        self._write(last)
        changed = False
        coming = asyncio.ensure_future(anext(inner))
        try:
            while True:
                await asyncio.wait({coming}, timeout=WRITE_SECONDS)
                if coming.done():
                    last, changed = coming.result(), True
                    coming = asyncio.ensure_future(anext(inner))
                    yield last
                since = time.monotonic() - self._written
                if since >= (WRITE_SECONDS if changed else REFRESH_SECONDS):
                    self._write(last)
                    changed = False
        finally:
            coming.cancel()
            await asyncio.wait({coming})
            if isinstance(inner, AsyncGenerator):
                await inner.aclose()

    def _write(self, snapshot: Snapshot) -> None:
        if snapshot.problem is not None:
            return
        self._written = time.monotonic()
        try:
            write_atomic(self._path, encode(snapshot.targets, utcnow().timestamp()))
        except (OSError, MeshscrapeError) as error:
            logger.warning("the targets cannot be kept for the next start: %s", error)

    def _read(self) -> Snapshot | None:
        """Return the targets of an earlier run; None without any, as at the very first start."""
        if not self._path.exists():
            return None
        try:
            return decode(read_input(self._path, "the last targets"), str(self._path))
        except InputError as error:
            logger.warning("the targets of an earlier run cannot be used: %s", error)
            return None


def encode(targets: Targets, now: float) -> bytes:
    """Return the content of the file; `now` is Unix time."""
    # Write target by target into one buffer. The lists of twenty thousand at once, or several copies of the
    # text, would set the peak of the process's memory.
    text = BytesIO()
    text.write(f'{{"asOf": {now!r}, "targets": {{'.encode())
    for number, (job, rows) in enumerate(targets.items()):
        text.write(f"{', ' if number else ''}{json.dumps(job)}: [".encode())
        for place, target in enumerate(rows):
            text.write(f"{', ' if place else ''}{json.dumps(target_row(target))}".encode())
        text.write(b"]")
    text.write(b"}}")
    return text.getvalue()


def decode(data: bytes, where: str = "") -> Snapshot:
    """Return what `encode` wrote. Raise InputError for anything else."""
    try:
        document = json.loads(data)
        targets = {
            str(job): tuple(parse_target_row(row, where) for row in rows)
            for job, rows in document["targets"].items()
        }
        return Snapshot(targets, None, float(document["asOf"]), divisible=True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"these are not targets ({type(error).__name__})", where=where) from None


def _too_old(error: MeshscrapeError) -> MeshscrapeError:
    old = UnavailableError(
        f"the targets of an earlier run are too old now ({error.what})",
        where=error.where,
        remedy=error.remedy,
    )
    old.__cause__ = error
    return old
