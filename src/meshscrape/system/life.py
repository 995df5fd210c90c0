"""How a process of ours lives: until a signal, or until what it does fails."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

from meshscrape.errors import MeshscrapeError

logger = logging.getLogger(__name__)


def run_until_signal(life: Coroutine[Any, Any, None]) -> None:
    """Run `life` until SIGTERM or SIGINT, which cancel it. Raises its failure, of a group `first_failure`."""
    asyncio.run(_until_signal(life))


def first_failure(failures: BaseExceptionGroup[Any]) -> BaseException:
    """What to show of a group of groups: the first that a user can act on, else the first."""
    chosen: BaseException = failures.subgroup(MeshscrapeError) or failures
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    return chosen


async def _until_signal(life: Coroutine[Any, Any, None]) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(life)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        logger.info("stopped")
    except BaseExceptionGroup as failures:
        raise first_failure(failures) from None
