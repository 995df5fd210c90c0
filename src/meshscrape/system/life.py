"""Run a coroutine until its end, its first failure, or a signal that asks for a stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from meshscrape.errors import MeshscrapeError

T = TypeVar("T")

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    work: Coroutine[Any, Any, T], stopping: Callable[[signal.Signals], None] = lambda number: None
) -> T | signal.Signals:
    """Run `work`, and return its result, or the signal that has ended it.

    SIGINT, SIGTERM and SIGHUP cancel it. Only the first signal counts; after it, the orderly stop of `work`
    is awaited. `stopping` is called at once when the signal comes. Of a group of failures, `first_failure` is
    raised.
    """
    return asyncio.run(_until_signal(work, stopping))


def exit_code(number: signal.Signals) -> int:
    """Return the exit code of a process that a signal has ended, as shells report it."""
    return 128 + number


def first_failure(failures: BaseExceptionGroup[Any]) -> BaseException:
    """Return the failure of a nested group to show: the first that a user can act on, else the first."""
    chosen: BaseException = failures.subgroup(MeshscrapeError) or failures
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    return chosen


async def _until_signal(
    work: Coroutine[Any, Any, T], stopping: Callable[[signal.Signals], None]
) -> T | signal.Signals:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if not received:
            received.append(number)
            stopping(number)
            task.cancel()

    for number in STOPS:
        # nohup(1) ignores SIGHUP for its command, which then goes on without its terminal.
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return received[0]
    except BaseExceptionGroup as failures:
        # Show one failure: the others are mostly its consequences.
        raise first_failure(failures) from None
