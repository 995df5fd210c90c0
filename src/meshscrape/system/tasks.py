"""Tasks that run in the background for ever, and must not end in silence."""

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
    """A background task that should run for ever has ended. This is a mistake in meshscrape."""


async def guarded(work: Work, name: str) -> None:
    """Call and await `work`, which never returns by itself; unless it is cancelled, log and raise its end.

    Create it in the task group of its owner: its end is then the owner's end. A MeshscrapeError goes on as
    it is; anything else, a return included, becomes a TaskEndedError that names the task.
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
    """Starts tasks that run as long as their owner."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Work, name: str) -> asyncio.Task[None]:
        """Run `work` for ever; unless it is cancelled, its end is the owner's end. `name` is for the log."""
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
