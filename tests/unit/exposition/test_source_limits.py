"""The limits of one source, to the last byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshscrape.exposition.merge import Merger
from meshscrape.exposition.source import MergeLimits


def typed(*names: bytes) -> bytes:
    """Return families as client libraries write them."""
    return b"".join(b"# TYPE %s gauge\n%s 1\n" % (name, name) for name in names)


def bare(*names: bytes) -> bytes:
    """Return samples alone."""
    return b"".join(b"%s 1\n" % name for name in names)


def test_bytes_are_counted_over_all_chunks() -> None:
    """The last byte that is allowed is read, and none after it."""
    source = Merger(limits=MergeLimits(max_bytes=8)).source("s")
    assert source.first_malformed == b""
    assert source.feed(b"a 1\n") + source.feed(b"b 1\n") == b"a 1\nb 1\n"
    assert source.problem == ""
    assert source.feed(b"c 1\n") == b""
    assert (source.bytes_in, source.problem) == (8, "sent more than 8 bytes")


def test_a_line_that_is_cut_off_is_left_out() -> None:
    """Although the transport says that the body is whole: `b 12` must not become `b 1`."""
    source = Merger(limits=MergeLimits(max_bytes=7)).source("s")
    assert source.feed(b"a 1\nb 12\n") == b"a 1\n"
    assert source.finish(complete=True) == b""


@pytest.mark.parametrize("families", [typed, bare])
@pytest.mark.parametrize(
    "limits", [MergeLimits(max_name_bytes=4), MergeLimits(max_families=2)], ids=["bytes of names", "families"]
)
def test_names_are_limited(families: Callable[..., bytes], limits: MergeLimits) -> None:
    """The names that fill the limit are kept, and those after them are left out, also in later chunks."""
    source = Merger(limits=limits).source("s")
    assert source.feed(families(b"aa", b"bb")) == families(b"aa", b"bb")
    assert source.dropped_families == 0
    assert source.feed(families(b"c")) == b""
    assert source.dropped_families == 1
    source = Merger(limits=limits).source("s")
    assert source.feed(families(b"aa", b"bb", b"c")) == families(b"aa", b"bb")


def test_names_of_families_that_are_left_out_are_limited() -> None:
    """They are kept to recognise their samples, so their bytes are limited too."""
    merger = Merger(limits=MergeLimits(max_name_bytes=4))
    for name, families in (("one", (b"aa", b"bb")), ("two", (b"cc", b"d"))):
        assert merger.source(name).feed(typed(*families)) == typed(*families)
    third = merger.source("three")
    third.feed(typed(b"aa", b"bb"))
    assert (third.dropped_families, third.problem) == (2, "")
    third.feed(typed(b"d"))
    assert third.problem == "sent too many families that must be left out"


def test_help_takes_no_family() -> None:
    """A family with HELP is one family, like one without."""
    source = Merger(limits=MergeLimits(max_families=3)).source("s")
    first = b"# HELP a text\n" + typed(b"a")
    assert source.feed(first) == first
    assert source.feed(bare(b"b", b"c", b"d")) == bare(b"b", b"c")
