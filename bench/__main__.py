"""`python -m bench`: every measurement in one run on one machine, as a table and as build/bench.json."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench import (
    ablation,
    agents,
    authority,
    flooded,
    listeners,
    merge,
    pilot,
    plan,
    pods,
    proxy,
    scrapes,
    verify,
)
from bench.measure import Row
from bench.tables import BUSY, markdown

SUITES: dict[str, Callable[[int], list[Row]]] = {
    "scrapes": scrapes.run,
    "merge": merge.run,
    "pilot": pilot.run,
    "listeners": listeners.run,
    "ablation": ablation.run,
    "agents": agents.run,
    "authority": authority.run,
    "flooded": flooded.run,
    "plan": plan.run,
    "proxy": proxy.run,
    "pods": pods.run,
    "verify": verify.run,
}


def main() -> None:
    """Run the named suites (all by default) and print what they measured."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("suites", nargs="*", choices=[[], *SUITES], help="which; all by default")
    parser.add_argument("--rounds", type=int, default=30, help="scrapes per figure for small bodies")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    parser.add_argument("--markdown", action="store_true", help="print tables as in docs/benchmarks.md")
    arguments = parser.parse_args()
    loads: dict[str, float] = {}
    document: dict[str, object] = {"machine": _machine(), "load": loads}
    for name in arguments.suites or SUITES:
        loads[name] = os.getloadavg()[0]
        began = time.monotonic()
        print(f"measuring {name}, load {loads[name]:.1f}", file=sys.stderr)
        rows = _alone(name, arguments.rounds)
        print(f"measured {name} in {time.monotonic() - began:.0f} s", file=sys.stderr)
        if rows and arguments.markdown:
            print(markdown(name, rows, loads[name]))
        elif rows:
            _print(name, rows, loads[name])
        document[name] = [row.as_dict() for row in rows]
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    print(f"written to {arguments.json}", file=sys.stderr)


def _alone(name: str, rounds: int) -> list[Row]:
    """A suite in a process of its own: a child's peak memory begins with that of who forks it."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(SUITES[name], rounds).result()


def _machine() -> dict[str, object]:
    cpus = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpus": len(cpus),
        "model": cpus[0] if cpus else "unknown",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _print(name: str, rows: Sequence[Row], load: float) -> None:
    width = max(len(row.what) for row in rows)
    print(f"\n{name}" + (f" (other work was running: load {load:.1f})" if load > BUSY else ""))
    for row in rows:
        aim = f"aim {row.aim}" if row.aim else ""
        print(f"  {row.what:<{width}}  {row.value:10.2f} {row.unit:<6} {aim:<12} {row.note}".rstrip())


if __name__ == "__main__":
    main()
