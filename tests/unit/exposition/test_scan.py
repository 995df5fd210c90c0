"""Odd lines: what is mended, what is left out, and what is remembered of the first malformed one."""

from __future__ import annotations

import pytest

from meshscrape.exposition.scan import BUDGET, BYTES_OF_ONE, SHOWN_BYTES, Mender

HISTOGRAM = b"# TYPE h histogram\n"
ODD_NUMBER = b"1e+100"
"""A valid number that the pattern of usual lines does not match."""


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
        (HISTOGRAM + b'h_bucket{le="wide"} %s\n', 1),
        (HISTOGRAM + b'h_bucket{le="0.5"} %s\n', 0),
        (HISTOGRAM + b'h_bucket{path="wide"} %s\n', 0),
        (b'h_bucket{le="wide"} %s\n', 0),
    ],
    ids=["no number", "number", "another label", "no histogram"],
)
@pytest.mark.parametrize("value", [b"1", ODD_NUMBER], ids=["usual value", "value that is parsed alone"])
def test_bounds_of_distributions_are_numbers(lines: bytes, malformed: int, value: bytes) -> None:
    """A parser would refuse the whole exposition for one `le` that is no number."""
    canonical, found = Mender().canonical(lines % value)
    assert found == malformed
    assert canonical.count(b"h_bucket") == 1 - malformed


@pytest.mark.parametrize(
    ("line", "canonical"),
    [
        (b"# TYPE a GAUGE\n", b"# TYPE a gauge\n"),
        (b"# TYPE a gauge \n", b"# TYPE a gauge\n"),
        (b"# TYPE a Unknown\n", b"# TYPE a untyped\n"),
        (b"# TYPE a Info\n", b"# TYPE a untyped\n"),
        (b"# TYPE a StateSet\n", b"# TYPE a untyped\n"),
        (b"# TYPE a gaugehistogram\n", b"# TYPE a untyped\n"),
    ],
)
def test_types_are_mended_alone(line: bytes, canonical: bytes) -> None:
    """Spaces behind them, capitals and names of OpenMetrics."""
    assert Mender().canonical(line) == (canonical, 0)


def test_a_sample_that_is_parsed_alone_keeps_its_time() -> None:
    """Whether it has one or not."""
    lines = b"a %s 5\nb %s\n" % (ODD_NUMBER, ODD_NUMBER)
    assert Mender().canonical(lines) == (lines, 0)


def test_the_budget_is_spent_to_its_last_line() -> None:
    """A short line takes 1 of it."""
    line = b"a %s\n" % ODD_NUMBER
    assert Mender().canonical(line * (BUDGET + 1)) == (line * BUDGET, 1)


def test_a_line_longer_than_the_budget_is_remembered_and_spends_it() -> None:
    """No line is parsed alone after it, and its beginning stays the remembered one."""
    mender = Mender()
    line = b"?" * (BUDGET * BYTES_OF_ONE)
    assert mender.canonical(b"a 1\n" + line + b"\n") == (b"a 1\n", 1)
    assert mender.first_malformed == line[:SHOWN_BYTES]
    assert mender.canonical(b"a 1e+100\n") == (b"", 1)
    assert mender.first_malformed == line[:SHOWN_BYTES]


def test_the_first_line_without_a_budget_is_remembered() -> None:
    """Whole, if it is short, and without the line after it."""
    mender = Mender()
    mended = b"a 1e+100\n" * BUDGET
    assert mender.canonical(mended) == (mended, 0)
    assert mender.canonical(b"a b\na 1\n") == (b"a 1\n", 1)
    assert mender.first_malformed == b"a b"
