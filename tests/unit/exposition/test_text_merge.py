"""The merge in the text format, rule by rule: source in, exactly these bytes out."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, Summary
from prometheus_client.exposition import generate_latest

from meshscrape.exposition.merge import Merger
from meshscrape.exposition.scan import MAX_SHAPES, Scanner
from meshscrape.exposition.source import MergeLimits, SourceMerge
from support.expositions import check_text_structure, text_series


def merged(*bodies: bytes, limits: MergeLimits | None = None) -> tuple[bytes, list[SourceMerge]]:
    """The merge of whole bodies, and the sources with their counters."""
    merger = Merger(limits=limits)
    out, sources = b"", []
    for body in bodies:
        source = merger.source("s")
        out += source.feed(body) + source.finish()
        sources.append(source)
    check_text_structure(out)
    text_series(out)
    return out, sources


UNTOUCHED = {
    "trailing comma, as the old Java client writes": b'a{x="1",} 1\na{x="2",} 1\n',
    "no labels in braces, as Envoy writes": b"# TYPE a counter\na{} 1\n",
    "TYPE before HELP": b"# TYPE a counter\n# HELP a text\na 1\n",
    "HELP alone": b"# HELP a text\na 1\n",
    "no metadata": b'a 1\nb{x="1"} 2\n',
    "escapes": b'# HELP a b\\\\c\\n\na{x="\\\\ \\" \\n"} 1\n',
    "timestamps": b"a 1 1700000000000\nb 2 0\n",
    "numbers": b"a 1\na +1.5e-300\na .5\na 7.\na NaN\na +Inf\na -Inf\na 123456789012345678901234567890\n",
    "summary": b'# TYPE a summary\na{quantile="0.5"} NaN\na_sum 1\na_count 2\n',
    "a family that comes back": b"# TYPE a gauge\na 1\nb 2\n" + b'a{x="2"} 2\n',
    "a histogram that comes back": b'# TYPE a histogram\na_count 1\nb 2\na_bucket{le="+Inf"} 2\n',
    "the same sample twice": b"a 1\na 1\n",
    "UTF-8": 'a{x="é\U0001f600"} 1\n'.encode(),
    "a label called le": b'a{le="not a number"} 1\n',
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_valid_lines_pass_untouched(case: str) -> None:
    """What clients write is not changed by a byte once its shape is known, and nothing of it is counted."""
    body = UNTOUCHED[case]
    scanner = Scanner()
    first = Merger().source("s", scanner=scanner)
    first.feed(body)
    out = (source := Merger().source("s", scanner=scanner)).feed(body) + source.finish()
    assert out == body
    assert (first.malformed_lines, source.malformed_lines, source.dropped_families) == (0, 0, 0)
    check_text_structure(out)


MENDED = {
    "spaces and tabs": (b' a \t{ x = "1" , y="2" }\t 3  4 \n', b'a{x="1",y="2"} 3 4\n'),
    "CRLF": (b"# TYPE a gauge\r\na 1\r\n", b"# TYPE a gauge\na 1\n"),
    "comments and blank lines": (b"# a comment\n\n#\na 1\n# EOF\n# UNIT a s\n", b"a 1\n"),
    "types of OpenMetrics": (
        b"# TYPE a unknown\na 1\n# TYPE b info\n",
        b"# TYPE a untyped\na 1\n# TYPE b untyped\n",
    ),
}


@pytest.mark.parametrize("case", MENDED)
def test_what_parsers_tolerate_is_mended(case: str) -> None:
    """What some parsers read and others do not is written as all of them read it; it is not malformed."""
    body, expected = MENDED[case]
    out, (source,) = merged(body)
    assert out == expected
    assert source.malformed_lines == 0


MALFORMED = [
    b"garbage",
    b"a",
    b"a one",
    b"a 0x1p4",
    b"a 1_000",
    b"a 1e999",
    b"a " + b"9" * 400,
    b"a 1 -5",
    b"a 1 1.5",
    b"a 1 2 3",
    b"a 1 99999999999999999999",
    b"1a 1",
    b'a{x="1"',
    b'a{x="1" y="2"} 1',
    b"a{x=1} 1",
    b"a{,} 1",
    b'a{,x="1"} 1',
    b'a{x="1",,} 1',
    b'a{x="1",x="2"} 1',
    b'a{__name__="b"} 1',
    b'a{x="\\q"} 1',
    b'a{x="\x00"} 1',
    b"a\x00 1",
    b'a{x="\xff"} 1',
    b'a{x="\xed\xa0\x80"} 1',
    b'a{x="1"} 1 # {trace="1"} 1',
    b"# HELP a bad \\escape",
    b"# HELP",
    b"# TYPE a",
    b"# TYPE a thing",
    b"# TYPE 1a counter",
    b"a\r 1",
]


@pytest.mark.parametrize("line", MALFORMED)
def test_malformed_lines_are_left_out_and_counted(line: bytes) -> None:
    """One bad line costs itself; in Prometheus, or in promtool, it would cost the whole scrape."""
    out, (source,) = merged(b"before 1\n" + line + b"\nafter 2\n")
    assert out == b"before 1\nafter 2\n"
    assert source.malformed_lines == 1
    assert source.problem == ""


def test_bounds_of_distributions_are_numbers() -> None:
    """expfmt reads `le` as a number in histograms: a line that would break it is left out there only."""
    head, tail = b"# TYPE a histogram\n", b'a_bucket{le="+Inf"} 1\nb 1\n'
    body = head + b'a_bucket{le="x"} 1\n' + tail + b'a_bucket{le="y"} 1\nc{le="x"} 1\n'
    out, (source,) = merged(body)
    assert out == head + tail + b'c{le="x"} 1\n'
    assert source.malformed_lines == 2


def test_metadata_once() -> None:
    """A second TYPE or HELP line of a name is left out, its samples stay: expfmt refuses a second one."""
    block = b"# HELP a text\n# TYPE a gauge\na 1\n"
    out, (source,) = merged(block + block + b"# HELP a again\nb 1\n")
    assert out == block + b"a 1\nb 1\n"
    assert source.malformed_lines == 2


def test_type_after_samples() -> None:
    """A TYPE line that comes after samples of its name is left out: expfmt refuses it."""
    out, (source,) = merged(b"a 1\n# TYPE a counter\na 2\n")
    assert out == b"a 1\na 2\n"
    assert source.malformed_lines == 1


CLASHES = {
    "the same name": (b"a 1\n", b"# TYPE a gauge\na 2\n", 1),
    "another type": (
        b"# TYPE a gauge\na 1\n",
        b'# TYPE a histogram\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
        1,
    ),
    "a series of a histogram": (b"# TYPE a histogram\na_count 1\n", b"# TYPE a_count gauge\na_count 2\n", 1),
    "a series without a type": (b"# TYPE a summary\na_count 1\n", b"a_sum 2\na_count 3\n", 2),
    "a histogram over a series": (b"a_sum 1\n", b'# TYPE a histogram\na_bucket{le="1"} 1\na_sum 1\n', 1),
    "HELP of a taken name": (b"a 1\n", b"# HELP a other\na 2\n", 1),
}


@pytest.mark.parametrize("case", CLASHES)
def test_a_clashing_family_is_dropped_whole(case: str) -> None:
    """The first source's family stays as it is; nothing of the later one's is merged into it."""
    first, second, families = CLASHES[case]
    out, (_, source) = merged(first, second + b"own 1\n" + second.splitlines(keepends=True)[-1])
    assert out == first + b"own 1\n"
    assert source.dropped_families == families


def test_reserved_families() -> None:
    """Families that are rendered at the end belong to nobody else."""
    merger = Merger()
    merger.reserve([(b"meshscrape_source_up", b"gauge")])
    source = merger.source("s")
    assert source.feed(b"meshscrape_source_up 1\nother 1\n") == b"other 1\n"
    assert source.dropped_families == 1


@pytest.mark.parametrize(("complete", "expected"), [(False, b"a 1\n"), (True, b"a 1\nb 23\n")])
def test_the_last_line(complete: bool, expected: bytes) -> None:
    """A last line without a line feed may be half of one, unless the transport knows the body is whole."""
    source = Merger().source("s")
    assert source.feed(b"a 1\nb 23") + source.finish(complete) == expected
    assert source.truncated is not complete
    assert source.malformed_lines == int(not complete)


def test_limits() -> None:
    """Bytes, families, names and lines have limits; each shows in a counter."""
    limits = MergeLimits(max_bytes=200, max_families=2, max_name_bytes=100, max_line=50)
    body = b"a 1\nb 2\nc 3\n" + b'd{x="' + b"y" * 60 + b'"} 1\n' + b"a 4\n" + b"b 5\n" * 50
    out, (source,) = merged(body, limits=limits)
    assert out.startswith(b"a 1\nb 2\na 4\nb 5\n")
    assert (source.bytes_in, source.full, source.dropped_families, source.malformed_lines) == (
        200,
        True,
        1,
        2,
    )
    long_names = b"".join(b"n%s%d 1\n" % (b"x" * 40, n) for n in range(4))
    out, (source,) = merged(long_names, limits=limits)
    assert out.count(b"\n") == 2
    assert source.dropped_families == 2


@pytest.mark.parametrize("chunk", [1, 7, 60, 10_000])
def test_long_lines_do_not_depend_on_chunks(chunk: int) -> None:
    """A line that is too long is left out however it arrives, and the ones around it stay."""
    body = b"a 1\n" + b"x" * 500 + b" 1\n" + b"b 2\n" + b"y" * 200 + b" 2\nc 3\n"
    source = Merger(limits=MergeLimits(max_line=100)).source("s")
    out = b"".join(source.feed(body[i : i + chunk]) for i in range(0, len(body), chunk)) + source.finish()
    assert out == b"a 1\nb 2\nc 3\n"
    assert source.malformed_lines == 2


def test_more_shapes_than_are_learned() -> None:
    """A source with more sequences of label names than the automaton holds loses speed, not samples."""
    body = b"".join(b'a{l%d="1",m%d="2"} 1\n' % (n, n) for n in range(2 * MAX_SHAPES))
    scanner = Scanner()
    for _ in range(2):
        source = Merger().source("s", scanner=scanner)
        assert source.feed(body) + source.finish() == body


def test_the_largest_shapes() -> None:
    """Lines of more labels than are learned, and shapes up to the bound on their cost: nothing is lost."""
    wide = b"a{%s} 1\n" % b",".join(b'l%d="1"' % n for n in range(1000))
    many = b"".join(
        b"a{%s} 1\n" % b",".join(b'l%d_%d="1"' % (n, label) for label in range(60)) for n in range(20)
    )
    scanner = Scanner()
    for _ in range(2):
        source = Merger().source("s", scanner=scanner)
        assert source.feed(wide + many) + source.finish() == wide + many


def test_client_library() -> None:
    """What prometheus_client writes comes through byte by byte."""
    registry = CollectorRegistry()
    Counter("jobs", "Jobs.", ["kind"], registry=registry).labels("a").inc()
    Histogram("seconds", "Time.", registry=registry).observe(0.3)
    Summary("bytes", "Size.", registry=registry).observe(3)
    Info("build", "Version.", registry=registry).info({"version": "1"})
    body = generate_latest(registry)
    out, (source,) = merged(body)
    assert out == body
    assert (source.malformed_lines, source.dropped_families) == (0, 0)


def test_nothing_is_no_problem_and_junk_is() -> None:
    """An application without metrics is healthy; one that says nothing of an exposition is not."""
    _, (empty, junk) = merged(b"", b"<html>\n<body>\n")
    assert empty.problem == ""
    assert junk.problem == "sent no line of an exposition"
