"""Run a mesh in the background: start `up` in a session of its own, wait until it is ready, stop it.

No process is left behind. Parent-death signals bind the mesh's processes to `up`. If the command that starts
`up` is stopped before the mesh is ready, it stops the mesh.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.local.mesh import READY
from meshscrape.local.session import READY_BOUND, UP_BOUND
from meshscrape.local.state import StateDirectory, claim_log, is_running, read_status
from meshscrape.system.files import DirectoryLock

STOP_BOUND = 30.0
_LOOK = 0.1


async def start_detached(arguments: Sequence[str], state: Path, *, targets: bool) -> dict[str, Any]:
    """Start `meshscrape up ARGUMENTS` in the background; return the status document once the mesh is ready.

    With `targets`, also wait until Prometheus scrapes every target. Raises InputError when a mesh already
    runs in `state`, and the error of the mesh when the mesh ends. Raises UnavailableError when the mesh is
    not ready in time, and stops it. Raises UnavailableError when targets stay down; then the mesh goes on. A
    cancellation stops the mesh.
    """
    directory = StateDirectory.at(state)
    process = _start(arguments, directory)
    try:
        document = await _ready(process, directory)
    except BaseException:
        await _end(process)
        raise
    return await _scraped(directory, document) if targets else document


def _start(arguments: Sequence[str], state: StateDirectory) -> subprocess.Popen[bytes]:
    # With -P, a directory `meshscrape` in the user's working directory is not taken for the package.
    command = [
        sys.executable,
        "-P",
        "-m",
        "meshscrape",
        "up",
        "--quiet",
        "--state",
        str(state.path),
        *arguments,
    ]
    with claim_log(state) as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


async def _ready(process: subprocess.Popen[bytes], state: StateDirectory) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(int(READY_BOUND / _LOOK)):
        if process.poll() is not None:
            raise MeshscrapeError(_last_line(state) or f"`up` ended with exit status {process.returncode}")
        with suppress(MeshscrapeError):
            document = read_status(state.path)
        if document.get("pid") == process.pid and document["phase"] == READY:
            return document
        await asyncio.sleep(_LOOK)
    waiting = [
        f"{workload['namespace']}/{workload['name']}: {workload['message']}"
        for workload in document.get("workloads", ())
        if not workload["ready"]
    ]
    raise UnavailableError(
        f"not every workload is ready after {READY_BOUND:g} s",
        where="; ".join(waiting),
        remedy=f"see {state.log}, or run it without --detach",
    )


async def _scraped(state: StateDirectory, document: dict[str, Any]) -> dict[str, Any]:
    down: list[str] = []
    for _ in range(int(UP_BOUND / _LOOK)):
        down = _not_up(document)
        if not document["prometheus"] or not down:
            return document
        await asyncio.sleep(_LOOK)
        document = read_status(state.path)
    raise UnavailableError(
        f"not up after {UP_BOUND:g} s: {', '.join(down)}",
        where=str(state.path),
        remedy="the mesh goes on: see `meshscrape explain`, or stop it with `meshscrape down`",
    )


def _not_up(document: Mapping[str, Any]) -> list[str]:
    targets = [target for workload in document["workloads"] for target in workload["targets"]]
    return [target["url"] for target in targets if target["health"] != "up"]


def _last_line(state: StateDirectory) -> str:
    with suppress(OSError):
        lines = state.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("meshscrape: ") if lines else ""
    return ""


async def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    for _ in range(int(STOP_BOUND / _LOOK)):
        if process.poll() is not None:
            return
        await asyncio.sleep(_LOOK)
    process.kill()
    process.wait()


async def stop_mesh(state: Path) -> bool:
    """Stop the mesh that runs in `state`, and wait until all of its processes have ended.

    Returns False when no mesh runs there. Raises UnavailableError when the mesh still runs after 30 s.
    """
    directory = StateDirectory.at(state)
    if not is_running(directory):
        return False
    pid = DirectoryLock.owner(directory.path) or read_status(directory.path)["pid"]
    with suppress(ProcessLookupError):
        # The number of a process that has ended may be given to another process. A descriptor prevents that.
        descriptor = os.pidfd_open(pid)
        try:
            if is_running(directory):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)
    for _ in range(int(STOP_BOUND / _LOOK)):
        if not is_running(directory):
            return True
        await asyncio.sleep(_LOOK)
    raise UnavailableError(
        f"the mesh (pid {pid}) has not stopped within {STOP_BOUND:g} s",
        where=str(directory.path),
        remedy=f"see its log; `kill -9 {pid}` ends all of it",
    )
