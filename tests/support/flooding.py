"""Floods of the CA by a process of its own, and what they reached."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from support.polling import eventually

ROOT = Path(__file__).parents[2]


@dataclass
class Reached:
    """What the generator has reached, second by second; complete when the flood is over."""

    seconds: list[dict[str, int]] = field(default_factory=list)

    @property
    def silent(self) -> int:
        """Silent connections that were open, as the median of all seconds."""
        return int(median(one["silent"] for one in self.seconds))

    @property
    def handshakes(self) -> int:
        """Complete handshakes a second, as the median of all seconds."""
        return int(median(one["handshakes"] for one in self.seconds))

    def __str__(self) -> str:
        return f"{self.silent} silent connections and {self.handshakes} handshakes a second"


@contextmanager
def flooded(address: str, log: Path, *, silent: int = 2000, rate: int = 500) -> Iterator[Reached]:
    """The CA at `address` under a flood that has begun; `log` gets what the generator prints."""
    command = [sys.executable, "-m", "bench.flood", address, "--seconds", "3600"]
    command += ["--silent", str(silent), "--rate", str(rate)]
    reached = Reached()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)

    def begun() -> bool:
        assert process.poll() is None, log.read_text()
        return len(log.read_text().splitlines()) >= 2

    try:
        eventually(begun, within=30, what="the flood")
        yield reached
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(10)
    reached.seconds += [json.loads(line) for line in log.read_text().splitlines()]
