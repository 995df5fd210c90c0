"""The page of what was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance import rows


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
