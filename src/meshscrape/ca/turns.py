"""Let identities take turns, so that an identity with many requests does not make the others wait for all."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Give one turn in each round of the event loop, to one identity after the other.

    A certificate costs a millisecond of the processor, in one piece. Requests that arrive together would
    otherwise be served in their order of arrival, and one workload can send thousands.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._planned = False

    async def turn(self, holder: str) -> None:
        """Wait for the turn of `holder`."""
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(mine)
        self._plan()
        await mine

    def _plan(self) -> None:
        if self._waiting and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        self._planned = False
        while self._waiting:
            holder = next(iter(self._waiting))
            own = self._waiting.pop(holder)
            first = own.popleft()
            if own:
                # Move the identity behind all others: dictionaries keep their order.
                self._waiting[holder] = own
            # Skip an identity whose request was cancelled meanwhile.
            if not first.done():
                first.set_result(None)
                break
        self._plan()
