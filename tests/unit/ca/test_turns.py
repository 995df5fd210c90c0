"""Turns between identities."""

from __future__ import annotations

import asyncio

import pytest

from meshscrape.ca.turns import Turns

pytestmark = pytest.mark.timeout(30)


def served(*holders: str, cancelled: int | None = None) -> list[str]:
    """Return in which order requests of these holders, all there at once, get their turns."""

    async def run() -> list[str]:
        turns, order = Turns(), list[str]()

        async def request(holder: str) -> None:
            await turns.turn(holder)
            order.append(holder)

        tasks = [asyncio.ensure_future(request(holder)) for holder in holders]
        await asyncio.sleep(0)
        if cancelled is not None:
            tasks[cancelled].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order

    return asyncio.run(run())


def test_a_holder_of_many_requests_does_not_delay_another() -> None:
    """The one request that came last is served second."""
    assert served(*["flood"] * 100, "honest")[:2] == ["flood", "honest"]


def test_holders_alternate_while_they_all_have_requests() -> None:
    """Each has one turn in a round, in the order of their first requests."""
    assert served("a", "a", "a", "b", "b", "c") == ["a", "b", "c", "a", "b", "a"]


def test_a_cancelled_request_takes_no_turn() -> None:
    """Those behind it are served."""
    assert served("a", "a", "b", cancelled=1) == ["a", "b"]
    assert served("a", "b", cancelled=0) == ["b"]


def test_a_request_that_comes_alone_is_served_at_once() -> None:
    """Also when another one was served before it."""

    async def run() -> None:
        turns = Turns()
        for _ in range(3):
            await turns.turn("a")

    asyncio.run(run())
