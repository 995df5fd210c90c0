"""What is restarted, when it is given up, and what is then shown."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from meshscrape.system.processes import Process, spawn
from meshscrape.system.supervisor import ComponentFailed, GiveUp, Policy, Restart, Supervisor, decide
from support.polling import eventually_async

POLICY = Policy(restarts=3, window=60.0, base=1.0, cap=3.0)


def test_waits_double_up_to_the_cap() -> None:
    """One death waits the base, the next ones twice as long each, never longer than the cap."""
    assert decide([0.0], 0.0, POLICY) == Restart(1.0)
    assert decide([0.0, 1.0], 1.0, POLICY) == Restart(2.0)
    assert decide([0.0, 1.0, 2.0], 2.0, POLICY) == Restart(3.0)


def test_gives_up_at_the_bound() -> None:
    """More deaths within the window than restarts allowed end it."""
    assert decide([0.0, 1.0, 2.0, 3.0], 3.0, POLICY) == GiveUp(4)


def test_deaths_before_the_window_are_forgotten() -> None:
    """A component that ran well since starts afresh, with the shortest wait."""
    assert decide([0.0, 1.0, 2.0, 100.0], 100.0, POLICY) == Restart(1.0)


def test_a_component_that_always_dies_ends_with_its_output(tmp_path: Path) -> None:
    """ComponentFailed names the component, its exit status and its last lines."""

    async def scenario() -> Supervisor:
        argv = ["/bin/sh", "-c", "echo cannot bind; exit 3"]
        supervisor = Supervisor(
            "envoy", lambda: spawn(argv, env={}, cwd=tmp_path), policy=Policy(restarts=2, base=0.01)
        )
        with pytest.raises(ComponentFailed, match=r"envoy: ended 3 times.*exit status 3.*: cannot bind"):
            await supervisor.run()
        return supervisor

    assert asyncio.run(scenario()).restarts == 2


def test_a_killed_component_is_started_again(tmp_path: Path) -> None:
    """After KILL from outside there is a new process, and the restart is counted."""

    async def scenario() -> None:
        argv = ["/bin/sleep", "60"]
        policy = Policy(base=0.01)
        supervisor = Supervisor("sleep", lambda: spawn(argv, env={}, cwd=tmp_path), policy=policy)
        task = asyncio.create_task(supervisor.run())

        async def pid() -> int | None:
            return supervisor.pid

        first = await eventually_async(pid)
        os.kill(first or 0, 9)

        async def other() -> bool:
            return supervisor.pid not in (None, first)

        await eventually_async(other)
        assert supervisor.restarts == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert supervisor.pid is None

    asyncio.run(scenario())


def test_an_order_to_stop_is_not_lost_while_a_component_ends(tmp_path: Path) -> None:
    """However the order falls together with the component's own end, nothing is started after it."""

    async def stopped_after(steps: int) -> None:
        started: list[Process] = []

        async def start() -> Process:
            started.append(await spawn(["/bin/true"], env={}, cwd=tmp_path))
            return started[-1]

        task = asyncio.create_task(Supervisor("true", start, policy=Policy(base=60, cap=60)).run())
        while not started or started[0].returncode is None:  # noqa: ASYNC110 - every step of the loop counts
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        assert task.cancelled(), f"lost when given {steps} steps after the end"

    for steps in range(8):
        asyncio.run(stopped_after(steps))
