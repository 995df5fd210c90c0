"""Wait for an observable state, with a bound; never for a time to pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

BOUND = 30.0
# The pauses between two looks grow with the time waited, so that a long wait costs little processor time. It
# ends at most a twentieth later for that.
SHORTEST, LONGEST, SHARE = 0.02, 0.1, 20


def eventually(observe: Callable[[], T], *, within: float = BOUND, what: str = "the state") -> T:
    """Call `observe` until it returns something true, and return that; fail after `within` seconds.

    An AssertionError or OSError of `observe` counts as not yet; the last one is shown on failure.
    """
    began = time.monotonic()
    last: BaseException | None = None
    while time.monotonic() < began + within:
        try:
            if seen := observe():
                return seen
        except (AssertionError, OSError) as error:
            last = error
        time.sleep(_pause(began))
    raise AssertionError(f"{what} did not come within {within} s (last: {last!r})")


async def eventually_async(
    observe: Callable[[], Awaitable[T]], *, within: float = BOUND, what: str = "the state"
) -> T:
    """`eventually` for a coroutine function."""
    began = time.monotonic()
    last: BaseException | None = None
    while time.monotonic() < began + within:
        try:
            if seen := await observe():
                return seen
        except (AssertionError, OSError) as error:
            last = error
        await asyncio.sleep(_pause(began))
    raise AssertionError(f"{what} did not come within {within} s (last: {last!r})")


def _pause(began: float) -> float:
    """Return the seconds until the next look of a wait that began at `began`."""
    return min(max((time.monotonic() - began) / SHARE, SHORTEST), LONGEST)
