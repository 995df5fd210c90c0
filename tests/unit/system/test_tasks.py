"""Background tasks end loudly, or with their owner."""

from __future__ import annotations

import asyncio

import pytest

from meshscrape.errors import InputError
from meshscrape.system.tasks import TaskEndedError, background


async def forever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise ValueError("something unforeseen")


async def returns() -> None:
    return None


async def complains() -> None:
    raise InputError("the file is odd", where="a.yaml")


@pytest.mark.parametrize("work", [fails, returns])
def test_a_task_that_ends_ends_its_owner(work: object, caplog: pytest.LogCaptureFixture) -> None:
    """An exception and a return alike stop the block and are logged once, with the task's name."""

    async def owner() -> None:
        async with background() as tasks:
            tasks.start(forever, "waiting")
            tasks.start(work, "the follower")  # type: ignore[arg-type]
            await forever()

    with pytest.raises(TaskEndedError) as caught:
        asyncio.run(owner())
    assert "the follower" in caught.value.what
    assert len(caplog.messages) == 1 and "the follower" in caplog.messages[0]


def test_an_error_for_the_user_stays_as_it_is() -> None:
    """What a user can act on reaches them unchanged, not inside a group."""

    async def owner() -> None:
        async with background() as tasks:
            tasks.start(complains, "the reader")
            await forever()

    with pytest.raises(InputError, match=r"a\.yaml: the file is odd"):
        asyncio.run(owner())


def test_leaving_the_block_cancels_its_tasks(caplog: pytest.LogCaptureFixture) -> None:
    """A block that is done takes its tasks along, also one that has not begun yet, without a word."""
    cancelled: list[bool] = []

    async def waits() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def owner() -> None:
        async with background() as tasks:
            tasks.start(waits, "waiting")
            await asyncio.sleep(0)
            tasks.start(waits, "not begun")

    asyncio.run(owner())
    assert cancelled == [True] and caplog.messages == []


def test_a_task_can_be_replaced() -> None:
    """Cancelling one task is no failure of its owner."""

    async def owner() -> str:
        async with background() as tasks:
            tasks.start(forever, "first").cancel()
            tasks.start(forever, "second")
            await asyncio.sleep(0)
            return "done"

    assert asyncio.run(owner()) == "done"
