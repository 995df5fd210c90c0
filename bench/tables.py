"""The figures of a run as the tables of docs/benchmarks.md: `python -m bench.tables [build/bench.json]`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measure import Row

# Above this, other work on the machine shows in the figures; below, it may be a suite before.
BUSY = 2.0
_OURS = re.compile(r"ours (\d+) MB")


def markdown(name: str, rows: Sequence[Row], load: float) -> str:
    """Return a suite's rows as a table, with the load of the machine when it began."""
    shapes = {"pilot": _pilot, "listeners": _compared("ours"), "ablation": _compared("the whole")}
    shape = shapes.get(name, _list)
    busy = " **Other work was running: measure again.**" if load > BUSY else ""
    return f"{name}, load {load:.1f} at its start.{busy}\n\n{shape(rows)}\n"


def _pilot(rows: Sequence[Row]) -> str:
    """Return a line for each body and framing, a column for each size: the ratio (our MB per CPU second)."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    others = []
    for row in rows:
        if row.unit != "ratio":
            others.append(row)
            continue
        body, size, framing = row.what.rpartition(": ")[2].split(", ")
        speed = _OURS.search(row.note)
        ours = f" ({speed[1]})" if speed else ""
        cells.setdefault((body, framing), {})[size] = f"{row.value:.2f}{ours}"
    sizes = list(dict.fromkeys(size for line in cells.values() for size in line))
    lines = [[*key, *(line.get(size, "") for size in sizes)] for key, line in cells.items()]
    return _table(["body", "framing", *sizes], lines) + "\n\n" + _list(others)


def _compared(base: str) -> Callable[[Sequence[Row]], str]:
    """Return what makes a line for each peer of `base`, and a column for each kind of scrape."""

    def shape(rows: Sequence[Row]) -> str:
        cells: dict[str, dict[str, str]] = {}
        for row in rows:
            what, _, scrape = row.what.partition(": ")
            peer = what.partition(f"{base}, ")[2] or base
            value = f"1 ({row.value:.2f} ms)" if peer == base else f"{row.value:.2f}"
            cells.setdefault(peer, {})[scrape] = value
        scrapes = list(cells[base]) if cells else []
        return _table(["", *scrapes], [[peer, *line.values()] for peer, line in cells.items()])

    return shape


def _list(rows: Sequence[Row]) -> str:
    lines = [[row.what, f"{row.value:.2f} {row.unit}", row.aim, row.note] for row in rows]
    return _table(["what", "figure", "aim", "note"], lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def main(path: Path) -> None:
    """Print the tables of a run's file."""
    document: Mapping[str, Any] = json.loads(path.read_text())
    for name, load in document["load"].items():
        print(markdown(name, [Row(**row) for row in document[name]], load))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/bench.json"))
