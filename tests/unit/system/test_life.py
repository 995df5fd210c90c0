"""The life of a process: until its end, its failure, or a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from meshscrape.errors import InputError
from meshscrape.system import life


async def _signalled(number: signal.Signals, ended: list[str]) -> None:
    """Send the own process a signal, twice; note how the work ends."""
    try:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()
    finally:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        ended.append("tidied up")


@pytest.mark.parametrize("number", life.STOPS)
def test_a_signal_cancels_once_and_is_returned(number: signal.Signals) -> None:
    """The work tidies up to its end, also when the signal comes again meanwhile."""
    ended: list[str] = []
    told: list[signal.Signals] = []
    assert life.run(_signalled(number, ended), told.append) is number
    assert (ended, told) == (["tidied up"], [number])


def test_a_result_is_returned() -> None:
    """Work that ends by itself gives its result."""

    async def work() -> int:
        return 7

    assert life.run(work()) == 7


def test_the_failure_that_a_user_can_act_on_is_raised() -> None:
    """Of a group of failures, however deep, it is raised alone."""

    async def fail(error: Exception) -> None:
        raise error

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(ValueError("a consequence")))
            tasks.create_task(fail(InputError("the cause")))

    with pytest.raises(InputError):
        life.run(work())


def test_nohup_keeps_sighup_ignored() -> None:
    """A process that was started with SIGHUP ignored goes on without its terminal."""
    program = (
        "import asyncio, os, signal\n"
        "from meshscrape.system import life\n"
        "async def work():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    await asyncio.sleep(0.05)\n"
        "    return 'went on'\n"
        "print(life.run(work()))\n"
    )
    command = ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n", done.stderr
