"""An Envoy in a process or container of its own, which outlives the process that keeps its routes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.system.envoy_admin import EnvoyAdmin
from meshscrape.system.envoy_process import check_watches

# How often the other side is looked at.
LOOK = 0.5


class SeparateEnvoy:
    """Watches an Envoy that something else starts; it has the view of a `Supervisor`."""

    def __init__(self, admin: EnvoyAdmin, restarted: Callable[[], None]) -> None:
        """`restarted` is called when another Envoy answers than before."""
        self.restarts = 0
        self._admin = admin
        self._restarted = restarted
        self._began: float | None = None
        self._answers = False

    @property
    def running(self) -> bool:
        """Return whether it answered last time."""
        return self._answers

    def tail(self, lines: int = 10) -> str:
        """Return its last output: none, because it goes elsewhere."""
        return ""

    async def run(self) -> None:
        """Look at it for ever."""
        while True:
            began = await self._beginning()
            self._answers = began is not None
            if began is not None:
                # Both clocks run on between two polls, so a difference of a second does not show a restart.
                if self._began is not None and began > self._began + 1.5:
                    self.restarts += 1
                    self._restarted()
                self._began = began
            await asyncio.sleep(LOOK)

    async def _beginning(self) -> float | None:
        try:
            status, body = await self._admin.get("/server_info")
            uptime = json.loads(body)["uptime_current_epoch"] if status == 200 else None
            return None if uptime is None else time.monotonic() - float(str(uptime).removesuffix("s"))
        except (MeshscrapeError, ValueError, KeyError):
            return None


def make_pipe(path: Path) -> None:
    """Make the named pipe for Envoy's log, unless it is there. Raise InputError when the name is taken."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    if not stat.S_ISFIFO(path.lstat().st_mode):
        raise InputError("this is not a named pipe", where=str(path), remedy="remove it")


def become_envoy(
    binary: Path, arguments: Sequence[str], directory: Path, names: tuple[str, str, str], patience: float
) -> None:
    """Become the Envoy whose files another process writes into `directory`; never return.

    `names` are those of the bootstrap, the admin socket and the log's pipe. Raises UnavailableError when
    there is no bootstrap within `patience` seconds. Files of an earlier run suffice: Envoy starts with their
    routes.
    """
    bootstrap, admin, pipe = names
    deadline = time.monotonic() + patience
    while not (directory / bootstrap).exists():
        if time.monotonic() > deadline:
            raise UnavailableError(
                "there is no configuration for Envoy",
                where=str(directory / bootstrap),
                remedy="start `meshscrape proxy --role routes` with the same --dir",
            )
        time.sleep(LOOK)
    check_watches()
    make_pipe(directory / pipe)
    (directory / admin).unlink(missing_ok=True)
    # Open for reading too, and never blocking: without a reader, lines are lost and Envoy goes on.
    descriptor = os.open(directory / pipe, os.O_RDWR | os.O_NONBLOCK)
    os.dup2(descriptor, 1)
    os.chdir(directory)
    os.execv(str(binary), [str(binary), *arguments])  # noqa: S606
