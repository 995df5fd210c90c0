"""Reading a process's CPU time and memory from /proc, and summing up samples."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of `pid` so far, in seconds, at the scheduler's own resolution (schedstat)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    if total:
        return total / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Resident and private memory of one process, in MB (10**6 bytes)."""

    resident: float
    private: float


def memory(pid: int) -> Memory:
    """Memory of `pid` from smaps_rollup: Rss, and the sum of Private_Clean and Private_Dirty."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kb = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    private = kb["Private_Clean"] + kb["Private_Dirty"]
    return Memory(resident=kb["Rss"] * 1.024e-3, private=private * 1.024e-3)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the figure with its unit, the aim if there is one."""

    what: str
    value: float
    unit: str
    aim: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def median(samples: Sequence[float]) -> float:
    """The median; one sample of a noisy machine does not move it."""
    return statistics.median(samples)
