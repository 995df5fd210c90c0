"""Benchmarks whose peers listen on fixed ports of every address: in a network namespace of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from bench.measure import Row


def isolated(module: str, rounds: int) -> list[Row]:
    """Return the rows that `python -m MODULE ROUNDS` prints as JSON, run behind a loopback of its own."""
    if not (unshare := shutil.which("unshare")) or not shutil.which("ip"):
        print(f"{module}: skipped, it needs unshare (util-linux) and ip (iproute2)", file=sys.stderr)
        return []
    inside = f'ip link set lo up && exec "{sys.executable}" -m {module} {rounds}'
    command = [unshare, "--user", "--map-root-user", "--net", "sh", "-c", inside]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return [Row(**row) for row in json.loads(done.stdout)]


def print_rows(rows: list[Row]) -> None:
    """Print rows for `isolated`."""
    print(json.dumps([row.as_dict() for row in rows]))
