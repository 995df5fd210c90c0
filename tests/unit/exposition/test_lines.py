"""Whole lines of limited length, however a body is cut into chunks."""

from __future__ import annotations

from itertools import product

import pytest

from meshscrape.exposition.lines import LineBuffer

MAX_LINE = 2
BODIES = [bytes(body) for length in range(9) for body in product(b"a\n", repeat=length)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_of_limited_length_come_through_whole(size: int) -> None:
    """Longer lines are left out and counted, and the unfinished last line is kept apart."""
    for body in BODIES:
        buffer = LineBuffer(MAX_LINE)
        lines = b"".join(buffer.feed(body[start : start + size]) for start in range(0, len(body), size))
        *whole, last = body.split(b"\n")
        assert lines == b"".join(line + b"\n" for line in whole if len(line) <= MAX_LINE), body
        assert buffer.taken_too_long() == sum(len(line) > MAX_LINE for line in (*whole, last)), body
        assert buffer.taken_too_long() == 0
        assert buffer.rest() == (last if len(last) <= MAX_LINE else b""), body
        assert buffer.rest() == b""
