"""Set up one run of a mesh, and clean up after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from meshscrape.errors import UnavailableError
from meshscrape.local.addresses import claim_subnet
from meshscrape.local.mesh import LocalMesh, MeshOptions
from meshscrape.local.state import StateDirectory, hold_state

READY_BOUND = 60.0
UP_BOUND = 45.0
_LOOK = 0.1


@asynccontextmanager
async def prepared_mesh(
    options: MeshOptions, state: Path, report: Callable[[str], None]
) -> AsyncIterator[LocalMesh]:
    """Yield a checked mesh that is ready to run; hold its addresses and state directory until the end.

    Errors in the input are raised before anything is written or started.
    """
    with claim_subnet() as subnet:
        mesh = LocalMesh(options, StateDirectory.at(state), subnet, report)
        await mesh.prepare()
        with hold_state(state):
            yield mesh


async def wait_until_ready(mesh: LocalMesh, bound: float = READY_BOUND) -> None:
    """Wait until every workload is ready. Raise UnavailableError after `bound` seconds names the others."""
    try:
        async with asyncio.timeout(bound):
            await mesh.ready.wait()
    except TimeoutError:
        missing = [
            f"{w['namespace']}/{w['name']}: {w['message']}"
            for w in mesh.document()["workloads"]
            if not w["ready"]
        ]
        raise UnavailableError(
            f"not every workload is ready after {bound:g} s",
            where="; ".join(missing),
            remedy="see the logs in the state directory's run/workloads while the mesh runs",
        ) from None


async def wait_until_up(
    mesh: LocalMesh, report: Callable[[str], None], bound: float = UP_BOUND
) -> list[tuple[str, str, str]]:
    """Wait until Prometheus reports every target up, for at most `bound` seconds.

    Return (job, URL, what Prometheus reports) for each target that is not up; empty if all are up.
    """
    loop = asyncio.get_running_loop()
    deadline, told = loop.time() + bound, -1
    while mesh.prometheus_plan is not None:
        total = sum(len(targets) for targets in mesh.files.targets.values())
        missing = mesh.awaited_targets()
        if total - len(missing) != told:
            told = total - len(missing)
            report(f"{told} of {total} targets are up")
        if total and not missing:
            return []
        if loop.time() >= deadline:
            return missing
        await asyncio.sleep(_LOOK)
    return []
