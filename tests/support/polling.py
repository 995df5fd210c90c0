"""Wait for an observable state, with a bound; never for a time to pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

BOUND = 30.0
STEP = 0.02


def eventually(observe: Callable[[], T], *, within: float = BOUND, what: str = "the state") -> T:
    """Call `observe` until it returns something true, and return that; fail after `within` seconds.

    An AssertionError or OSError of `observe` counts as not yet; the last one is shown on failure.
    """
    deadline = time.monotonic() + within
    last: BaseException | None = None
    while time.monotonic() < deadline:
        try:
            if seen := observe():
                return seen
        except (AssertionError, OSError) as error:
            last = error
        time.sleep(STEP)
    raise AssertionError(f"{what} did not come within {within} s (last: {last!r})")


async def eventually_async(
    observe: Callable[[], Awaitable[T]], *, within: float = BOUND, what: str = "the state"
) -> T:
    """`eventually` for a coroutine function."""
    deadline = time.monotonic() + within
    last: BaseException | None = None
    while time.monotonic() < deadline:
        try:
            if seen := await observe():
                return seen
        except (AssertionError, OSError) as error:
            last = error
        await asyncio.sleep(STEP)
    raise AssertionError(f"{what} did not come within {within} s (last: {last!r})")
