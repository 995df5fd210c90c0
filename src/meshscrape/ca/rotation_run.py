"""Drive a rotation through its stages. A stage ends only when every root user has followed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshscrape.ca.roots import RotationRecord, known_roots, published_bundle
from meshscrape.ca.roots_in_use import RootUser, use_of_roots
from meshscrape.ca.rotation import Rotation, RotationStage, unconfirmed
from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.system.clock import utcnow

LOOK = 0.5


class NotConfirmed(MeshscrapeError):
    """A root user did not follow in time; the rotation stays in its stage."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a rotation, one line for each user that lags behind, and how many users were checked."""

    rotation: Rotation
    missing: tuple[str, ...]
    seen: int


async def look(directory: Path, rotation: Rotation, users: Sequence[RootUser]) -> Progress:
    """Return which users lag behind the rotation of the CA in `directory`; change nothing."""
    roots = known_roots(directory)
    both = [roots[name] for name in (rotation.old, rotation.new) if name in roots]
    uses = await use_of_roots(users, both)
    missing = unconfirmed(rotation, published_bundle(directory), uses)
    return Progress(rotation, tuple(missing), len(uses))


@dataclass(frozen=True, slots=True)
class RotationRun:
    """How to rotate: the CA's directory, the root users (listed anew at each check), seconds per stage."""

    directory: Path
    record: RotationRecord
    users: Callable[[], Sequence[RootUser]]
    patience: float
    report: Callable[[Progress], None] = lambda progress: None

    async def rotate(self, until: RotationStage | None = None) -> Rotation | None:
        """Begin or continue a rotation until the stage `until` is confirmed, and return its state.

        Without `until`, go to the end and return None. A rotation that is being aborted continues to abort.
        Raises NotConfirmed if a stage takes longer than `patience` seconds.
        """
        rotation = self.record.present
        if rotation is not None and rotation.aborting and until is not None:
            raise InputError("the rotation is being aborted", remedy="run it without --to to finish aborting")
        if rotation is None:
            rotation = self.record.begin(utcnow())
        return await self._go_on(rotation, until)

    async def abort(self) -> None:
        """Go back to the old root, with the same checks; do nothing if no rotation is in progress."""
        rotation = self.record.present
        if rotation is None:
            return
        back = rotation.aborted()
        if back != rotation:
            self.record.write(back)
        await self._go_on(back, None)

    async def _go_on(self, rotation: Rotation, until: RotationStage | None) -> Rotation | None:
        while rotation.stage is not RotationStage.FINISH:
            if until is not None and rotation.reached(until) and rotation.stage is not until:
                return rotation
            await self._confirm(rotation)
            if rotation.stage is until:
                return rotation
            rotation = rotation.advanced()
            self.record.write(rotation)
        self.record.finish(rotation)
        return None

    async def _confirm(self, rotation: Rotation) -> None:
        deadline = time.monotonic() + self.patience
        while (progress := await look(self.directory, rotation, self.users())).missing:
            self.report(progress)
            if time.monotonic() >= deadline:
                raise NotConfirmed(
                    f"stage {rotation.stage} is not confirmed after {self.patience:g} s: "
                    f"{'; '.join(progress.missing)}",
                    remedy="repair these and run `meshscrape ca rotate` again, or go back with --abort",
                )
            await asyncio.sleep(LOOK)
        self.report(progress)
