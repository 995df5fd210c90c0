"""Single lines: what their parts are."""

from __future__ import annotations

from meshscrape.exposition.grammar import Metadata, Sample, parse_metadata, parse_sample


def test_help_may_be_empty() -> None:
    """With a space behind the name or without."""
    for line in (b"# HELP a", b"# HELP a "):
        assert parse_metadata(line) == Metadata(b"HELP", b"a", b"")


def test_a_type_needs_its_kind() -> None:
    """Without one, the line says nothing."""
    assert parse_metadata(b"# TYPE a") is None


def test_parts_of_a_sample() -> None:
    """A sample without a time has an empty one."""
    assert parse_sample(b"a 1") == Sample(b"a", (), b"1", b"")
    assert parse_sample(b'a{b="c"} 1 5') == Sample(b"a", ((b"b", b"c"),), b"1", b"5")
