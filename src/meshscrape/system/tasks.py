"""Run background tasks that must never end, and report it when one does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

from meshscrape.errors import MeshscrapeError
from meshscrape.system.life import first_failure

log = logging.getLogger(__name__)

# Pass a function, not its coroutine: if a task is cancelled before it starts, its coroutine is never awaited.
Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class TaskEndedError(MeshscrapeError):
    """A background task that should run for ever has ended. This is a bug of meshscrape."""


async def guarded(work: Work, name: str) -> None:
    """Run `work`, which must never end by itself. If it ends without being cancelled, log that and raise.

    Run it in its owner's task group, so that its end also ends the owner. A MeshscrapeError is raised
    unchanged. Any other error, and a return, becomes a TaskEndedError that names the task.
    """
    try:
        await work()
    except MeshscrapeError:
        raise
    except Exception as error:
        problem = f"{name} ended unexpectedly: {type(error).__name__}: {error}"
        log.error("%s", problem, exc_info=log.isEnabledFor(logging.DEBUG))
        raise TaskEndedError(problem, remedy="report this as a bug") from error
    problem = f"{name} ended unexpectedly"
    log.error("%s", problem)
    raise TaskEndedError(problem, remedy="report this as a bug")


class Background:
    """Start tasks that run as long as their owner."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Work, name: str) -> asyncio.Task[None]:
        """Start `work`, which must run for ever; if it ends without being cancelled, its owner ends too.

        `name` is for the log.
        """
        task = self._group.create_task(guarded(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        """Cancel every task that still runs."""
        for task in tuple(self._tasks):
            task.cancel()


@contextlib.asynccontextmanager
async def background() -> AsyncIterator[Background]:
    """Run tasks during a block. Leaving the block cancels them, and a task that ends cancels the block.

    The failure is raised by itself, not as a group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = Background(group)
            yield tasks
            tasks.cancel()
    except BaseExceptionGroup as failures:
        raise first_failure(failures) from None
