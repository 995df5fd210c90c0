"""The table of what was seen: rows of passed scenarios, kept in docs/conformance.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "<!-- rows: written by the run, never by hand -->"
COLUMNS = ("what", "seen", "tier", "on", "versions", "when")


@dataclass(frozen=True)
class Row:
    """One thing that a scenario saw."""

    scenario: str  # the test; not shown, keeps rows of a test together
    what: str
    seen: str
    tier: str
    on: str
    versions: str
    when: str

    def line(self) -> str:
        """Return the row of the table; the scenario is a comment that no reader sees."""
        cells = [getattr(self, column).replace("|", "\\|") for column in COLUMNS]
        return f"| {' | '.join(cells)} <!-- {self.scenario} --> |"


def parse(text: str) -> list[Row]:
    """Return the rows of a page that `page` wrote."""
    rows = []
    for line in text.partition(MARK)[2].splitlines():
        if not line.startswith("| ") or not line.endswith(" --> |"):
            continue
        cells, _, scenario = line[2 : -len(" --> |")].rpartition(" <!-- ")
        values = cells.replace("\\|", "\0").split(" | ")
        rows.append(Row(scenario, *(value.replace("\0", "|") for value in values)))
    return rows


def merge(old: Iterable[Row], new: Iterable[Row], ran: Iterable[str]) -> list[Row]:
    """Return the rows after a run: those of scenarios that ran are replaced, those of others stay.

    A scenario that ran and failed has no new rows, so its old ones go.
    """
    gone = set(ran)
    kept = [row for row in old if row.scenario not in gone]
    return sorted([*kept, *new], key=lambda row: (row.scenario, row.tier))


def page(rows: Iterable[Row], introduction: str) -> str:
    """Return the whole page."""
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    return f"{introduction.rstrip()}\n\n{MARK}\n\n{head}\n" + "".join(f"{row.line()}\n" for row in rows)


def write(file: Path, new: Iterable[Row], ran: Iterable[str]) -> None:
    """Write the page again with what a run saw; the text above the rows stays."""
    text = file.read_text()
    head, mark, _ = text.partition(MARK)
    if not mark:
        raise ValueError(f"{file}: the line {MARK} is missing")
    file.write_text(page(merge(parse(text), new, ran), head))
