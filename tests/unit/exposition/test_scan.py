"""Odd lines: what is mended, what is left out, and what is remembered of the first malformed one."""

from __future__ import annotations

import pytest

from meshscrape.exposition.scan import SHOWN_BYTES, Mender

HISTOGRAM = b"# TYPE h histogram\n"


def test_the_first_malformed_line_is_remembered() -> None:
    """Without its line feed, across chunks; later ones do not take its place."""
    mender = Mender()
    assert mender.canonical(b"a 1\nwhat is this\nb 2\n") == (b"a 1\nb 2\n", 1)
    assert mender.first_malformed == b"what is this"
    assert mender.canonical(b"nor this\n") == (b"", 1)
    assert mender.first_malformed == b"what is this"


def test_no_more_than_its_beginning_is_remembered() -> None:
    """A malformed line may be as long as the body."""
    mender = Mender()
    line = b"?" * (2 * SHOWN_BYTES)
    mender.canonical(b"a 1\n" + line + b"\n")
    assert mender.first_malformed == line[:SHOWN_BYTES]


@pytest.mark.parametrize(
    ("lines", "malformed"),
    [
        (HISTOGRAM + b'h_bucket{le="wide"}  1\n', 1),
        (HISTOGRAM + b'h_bucket{le="0.5"}  1\n', 0),
        (HISTOGRAM + b'h_bucket{path="wide"}  1\n', 0),
        (b'h_bucket{le="wide"}  1\n', 0),
    ],
    ids=["no number", "number", "another label", "no histogram"],
)
def test_bounds_of_distributions_are_numbers(lines: bytes, malformed: int) -> None:
    """A parser would refuse the whole exposition for one `le` that is no number."""
    canonical, found = Mender().canonical(lines)
    assert found == malformed
    assert canonical.count(b"h_bucket") == 1 - malformed
