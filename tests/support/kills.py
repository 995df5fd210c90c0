"""kill -9 of processes of a mesh, and whether it is whole again afterwards."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from support.mesh import Up
from support.polling import eventually

BACK_WITHIN = 15.0
"""docs/failures.md promises this, in seconds, for each part alone."""


def pids(up: Up, title: str) -> dict[str, Any]:
    """The processes of a workload, as the status document has them."""
    return dict(up.workload(title)["pids"])


def kill(pid: int) -> None:
    """kill -9, of a process of this mesh."""
    os.kill(pid, signal.SIGKILL)


def programs(up: Up) -> Counter[str]:
    """How many processes of the mesh run which program, and where."""
    found: Counter[str] = Counter()
    for pid in up.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            where = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        found[f"{b' '.join(words[:4]).decode()} in {where}"] += 1
    return found


def orphans(up: Up) -> list[int]:
    """Processes of the mesh whose parent is none of it."""
    family = up.processes()
    return [pid for pid in family - {up.process.pid} if _parent(pid) not in family | {None}]


def _parent(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[1])


def assert_whole(up: Up, before: Counter[str]) -> None:
    """The mesh has exactly the processes that it had, each with a parent of its own kin, and is ready."""
    eventually(lambda: programs(up) == before, within=BACK_WITHIN, what="the same processes as before")
    assert orphans(up) == []
    eventually(lambda: all(each["ready"] for each in up.document()["workloads"]), within=BACK_WITHIN)


def prometheus_pid(up: Up) -> int:
    """Prometheus itself, not its guard."""
    found = [pid for pid in up.processes() if _command(pid).endswith("/prometheus")]
    assert len(found) == 1
    return found[0]


def _command(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""
