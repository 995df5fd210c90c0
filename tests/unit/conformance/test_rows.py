"""The page of what was seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import rows

TESTS = Path(__file__).parents[2]


def _row(scenario: str, what: str = "w") -> rows.Row:
    return rows.Row(scenario, what, "a | b", "core", "processes", "v1", "2026-01-01")


def test_page_is_read_back(tmp_path: Path) -> None:
    """Rows survive the page, bars in cells included, and the text above them stays."""
    file = tmp_path / "page.md"
    file.write_text(f"# Title\n\nText.\n\n{rows.MARK}\n")
    rows.write(file, [_row("t.py::b"), _row("t.py::a")], {"t.py::a", "t.py::b"})
    assert file.read_text().startswith("# Title\n\nText.\n\n")
    assert rows.parse(file.read_text()) == [_row("t.py::a"), _row("t.py::b")]


def test_failed_scenario_loses_its_rows(tmp_path: Path) -> None:
    """A scenario that ran without rows is not claimed any more; one that did not run keeps its rows."""
    file = tmp_path / "page.md"
    file.write_text(rows.MARK)
    rows.write(file, [_row("kept"), _row("failed")], {"kept", "failed"})
    rows.write(file, [], {"failed"})
    assert [row.scenario for row in rows.parse(file.read_text())] == ["kept"]


def test_page_without_mark_is_refused(tmp_path: Path) -> None:
    """A page that this module did not write is not overwritten."""
    file = tmp_path / "page.md"
    file.write_text("# Other\n")
    with pytest.raises(ValueError, match=r"page\.md"):
        rows.write(file, [_row("a")], {"a"})
    assert file.read_text() == "# Other\n"


SCENARIOS = """
def test_passes(local_row):
    local_row("what passes", "this")

def test_fails(local_row):
    local_row("what fails", "that")
    raise AssertionError("its reason\\nand more")
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "a worker"])
def test_rows_of_passed_scenarios_reach_the_page(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """The page is written once, with what was seen wherever a scenario ran."""
    (tmp_path / "test_scenarios.py").write_text(SCENARIOS)
    file = tmp_path / "page.md"
    file.write_text(
        rows.page([_row("test_scenarios.py::test_fails"), _row("test_other.py::test_kept")], "# Page")
    )
    options = (
        "-q",
        "-p",
        "conformance.conftest",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rows",
        file,
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *workers, tmp_path],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "test_scenarios.py::test_fails: call: AssertionError: its reason\n" in done.stdout
    assert [row.what for row in rows.parse(file.read_text())] == ["w", "what passes"]
