"""Whole lines of OpenMetrics as text."""

from __future__ import annotations

import pytest

from meshscrape.exposition.openmetrics import OpenMetricsText


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (b"a 1\n# EOF\nb 1\n", b"a 1\n"),
        (b"# EOF\nb 1\n", b""),
        (b"\n# EOF\nb 1\n", b"\n"),
    ],
    ids=["behind a sample", "first", "behind a blank line"],
)
def test_nothing_is_read_after_the_end_mark(lines: bytes, text: bytes) -> None:
    """Neither in the same chunk nor in a later one."""
    converter = OpenMetricsText()
    assert converter.text(lines) == text
    assert converter.ended
    assert converter.text(b"c 1\n") == b""


def test_lines_before_the_end_mark_are_converted_chunk_by_chunk() -> None:
    """A comment that only looks like the mark ends nothing."""
    converter = OpenMetricsText()
    assert converter.text(b"# EOFX\na 1 2.5\n") == b"# EOFX\na 1 2500\n"
    assert not converter.ended
    assert converter.text(b'a 2 # {t="x"} 1\n') == b"a 2\n"
