"""The merge in the text format, rule by rule: source in, exactly these bytes out."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, Summary
from prometheus_client.exposition import generate_latest

from meshscrape.exposition.merge import Merger
from meshscrape.exposition.patterns import MAX_LABELS
from meshscrape.exposition.scan import BUDGET, BYTES_OF_ONE, OF_MALFORMED
from meshscrape.exposition.source import MAX_DROPPED, MAX_MALFORMED, MAX_UNREADABLE, MergeLimits
from meshscrape.exposition.text import TextMerge
from support.expositions import check_text_structure, text_series


def merged(*bodies: bytes, limits: MergeLimits | None = None) -> tuple[bytes, list[TextMerge]]:
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
    "HELP at the end": b"a 1\n# HELP b text\n",
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
    """What clients write is not changed by a byte, and nothing of it is counted."""
    body = UNTOUCHED[case]
    source = Merger().source("s")
    out = source.feed(body) + source.finish()
    assert out == body
    assert (source.malformed_lines, source.dropped_families) == (0, 0)
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
def test_tolerated_lines_are_corrected(case: str) -> None:
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
    b'a{x="\x00"} 1',
    b"a\x00 1",
    b'a{x="\xff"} 1',
    b'a{x="\xed\xa0\x80"} 1',
    b'a{x="1"} 1 # {trace="1"} 1',
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


def test_metadata_is_written_once() -> None:
    """A second TYPE or HELP line of a name is left out, its samples stay: expfmt refuses a second one."""
    block = b"# HELP a text\n# TYPE a gauge\na 1\n"
    out, (source,) = merged(block + block + b"# HELP a again\nb 1\n")
    assert out == block + b"a 1\nb 1\n"
    assert source.malformed_lines == 2


def test_type_after_samples_is_dropped() -> None:
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


def test_reserved_families_are_dropped() -> None:
    """Families that are rendered at the end belong to nobody else."""
    merger = Merger()
    merger.reserve([(b"meshscrape_source_up", b"gauge")])
    source = merger.source("s")
    assert source.feed(b"meshscrape_source_up 1\nother 1\n") == b"other 1\n"
    assert source.dropped_families == 1


@pytest.mark.parametrize(("complete", "expected"), [(False, b"a 1\n"), (True, b"a 1\nb 23\n")])
def test_last_line_needs_its_end(complete: bool, expected: bytes) -> None:
    """A last line without a line feed may be half of one, unless the transport knows the body is whole."""
    source = Merger().source("s")
    assert source.feed(b"a 1\nb 23") + source.finish(complete) == expected
    assert source.truncated is not complete
    assert source.malformed_lines == int(not complete)


def test_sources_are_cut_off_at_their_limits() -> None:
    """Bytes, families, names and lines have limits; each shows in a counter."""
    limits = MergeLimits(max_bytes=200, max_families=2, max_name_bytes=100, max_line=50)
    body = b"a 1\nb 2\nc 3\n" + b'd{x="' + b"y" * 60 + b'"} 1\n' + b"a 4\n" + b"b 5\n" * 50
    out, (source,) = merged(body, limits=limits)
    assert out.startswith(b"a 1\nb 2\na 4\nb 5\n")
    assert (source.bytes_in, bool(source.cut_off), source.dropped_families, source.malformed_lines) == (
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


@pytest.mark.parametrize("labels", [1, 2, MAX_LABELS, MAX_LABELS + 1, 1000])
def test_line_may_have_any_number_of_labels(labels: int) -> None:
    """Lines of many labels come through; one that repeats a label, wherever, is left out."""
    names = [b"l%d" % number for number in range(labels)]
    line = b"a{%s} 1\n" % b",".join(name + b'="1"' for name in names)
    repeated = b"".join(
        b"a{%s} 2\n" % b",".join(name + b'="1"' for name in [*names[:place], names[0], *names[place:]])
        for place in {1, labels // 2, labels}
        if place
    )
    out, (source,) = merged(b"# TYPE a gauge\n" + line + repeated + line)
    assert out == b"# TYPE a gauge\n" + line + line
    assert source.malformed_lines == repeated.count(b"\n")


@pytest.mark.parametrize("chunk", [50, 700, 10**6])
@pytest.mark.parametrize("before", [0, 1, 60, 200])
def test_marks_in_values_hide_no_family(before: int, chunk: int) -> None:
    """However many `#` stand in values, a family behind them is found, and a later source's copy left out."""
    values = b"".join(b'a{x="%d # TYPE b gauge"} 1\n' % number for number in range(before))
    body = b"# TYPE a gauge\n" + values + b"# HELP b text\n# TYPE b gauge\nb 1\n# TYPE c gauge\nc 1\n"
    merger = Merger()
    first, second = merger.source("one"), merger.source("two")
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)]
    assert b"".join([first.feed(piece) for piece in pieces]) + first.finish() == body
    assert first.series == before + 2
    assert second.feed(b"# TYPE b gauge\nb 2\n# TYPE d gauge\nd 1\n") == b"# TYPE d gauge\nd 1\n"


def test_labels_of_the_line_before_do_not_leak() -> None:
    """A line with other labels is judged anew, whatever labels the lines before it had."""
    body = (
        b'# TYPE a gauge\na{b="1",c="2",d="3",e="4"} 1\na{e="1"} 1\na{e="1",c="2",d="3",e="4"} 1\n'
        b'a{"="1"} 1\na{b="1","="2"} 1\na{b="1",,c="2"} 1\na{,b="1"} 1\na{b="1",} 1\na{,} 1\n'
        b'a{c="1"} 1\na{c="1",c="2"} 1\na 1\na{c="1",c="2"} 1\n'
    )
    out, (source,) = merged(body)
    assert out == b'# TYPE a gauge\na{b="1",c="2",d="3",e="4"} 1\na{e="1"} 1\na{b="1",} 1\na{c="1"} 1\na 1\n'
    assert source.malformed_lines == 8


FLOODS = {
    "blank lines": (b"\n", b""),
    "spaces": (b" \t\n", b""),
    "comments": (b"# nothing\n", b""),
    "ends of OpenMetrics": (b"# EOF\n", b""),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_blank_lines_and_comments_are_not_malformed(flood: str) -> None:
    """Any number of them between valid lines is left out at once and not counted."""
    line, kept = FLOODS[flood]
    body = b"a 1\n" + line * 200_000 + b"b 2\n"
    out, (source,) = merged(body)
    assert out == b"a 1\n" + kept + b"b 2\n"
    assert (source.malformed_lines, source.problem) == (0, "")


@pytest.mark.parametrize(
    ("valid", "malformed", "cut"),
    [
        (1, MAX_UNREADABLE, False),
        (1, MAX_UNREADABLE + 1, True),
        (10 * MAX_UNREADABLE + 10, MAX_UNREADABLE + 1, False),
        (10 * MAX_UNREADABLE + 10, MAX_UNREADABLE + 2, True),
    ],
)
def test_source_with_many_malformed_lines_is_cut_off(valid: int, malformed: int, cut: bool) -> None:
    """At more than a number and more than a share of them; each is counted, and nothing more is read."""
    source = Merger().source("s")
    out = source.feed(b"a 1\n" * valid + b"x\n" * malformed)
    assert (out.count(b"\n"), source.malformed_lines) == (valid, malformed)
    problem = f"sent more than {MAX_UNREADABLE} malformed lines, and one for ten series"
    assert source.problem == (problem if cut else "")


@pytest.mark.parametrize(("extra", "cut"), [(0, False), (1, True)])
def test_source_that_only_repeats_metadata_is_cut_off(extra: int, cut: bool) -> None:
    """Prometheus reads it, so there may be more of it; what was read before stays."""
    line = b"# TYPE a gauge\n"
    source = Merger().source("s")
    assert source.feed(line + b"a 1\n" + line * (MAX_MALFORMED + extra)) == line + b"a 1\n"
    assert source.malformed_lines == MAX_MALFORMED + extra
    assert source.problem == ("sent more malformed lines than valid ones" if cut else "")


def test_repeated_metadata_between_samples_is_not_cut_off() -> None:
    """As several expositions one after the other have it."""
    count = 2 * MAX_MALFORMED
    out, (source,) = merged(b"# TYPE a gauge\na 1\n" * count)
    assert out == b"# TYPE a gauge\n" + b"a 1\n" * count
    assert (source.malformed_lines, source.problem) == (count - 1, "")


ODD = b"a " + b"0" * (2 * BYTES_OF_ONE) + b"1\n"
"""A valid line that is parsed alone: its number is too long for the pattern. It takes 3 of the budget."""


def test_lines_are_mended_up_to_a_budget() -> None:
    """Those that are parsed alone: what comes after the budget is spent counts as malformed."""
    mended = BUDGET // 3
    out, (source,) = merged(ODD * (mended + 2) + b"b 1\n")
    assert out == ODD * mended + b"b 1\n"
    assert (source.malformed_lines, source.problem) == (2, "")


SPENT_BY = -(-BUDGET // (1 + OF_MALFORMED))
"""So many malformed lines spend the budget."""


@pytest.mark.parametrize(("malformed", "kept"), [(SPENT_BY - 1, 1), (SPENT_BY, 0)])
def test_malformed_lines_spend_the_budget(malformed: int, kept: int) -> None:
    """Sooner than mended ones; each is counted all the same, in whichever chunk."""
    source = Merger().source("s")
    out = source.feed(b"a 1\nx\n" * malformed) + source.feed(ODD + b"a 2\n")
    assert out == b"a 1\n" * malformed + ODD * kept + b"a 2\n"
    assert source.malformed_lines == malformed + 1 - kept


def test_spaces_are_mended_in_any_number_of_lines() -> None:
    """They take nothing of the budget, also when it is spent."""
    count = 2 * BUDGET
    out, (source,) = merged((b'a 1\na  2\n\ta{ x = "1, 2" , } 3\n' + b"x\n") * count + b"a 1\n" * 11 * count)
    assert out == b'a 1\na 2\na{x="1, 2",} 3\n' * count + b"a 1\n" * 11 * count
    assert (source.malformed_lines, source.problem) == (count, "")


@pytest.mark.parametrize("metadata", [b"", b"# TYPE %d gauge\n"], ids=["samples alone", "typed"])
@pytest.mark.parametrize(("families", "cut"), [(MAX_DROPPED, False), (MAX_DROPPED + 1, True)])
def test_source_with_too_many_hidden_families_is_cut_off(metadata: bytes, families: int, cut: bool) -> None:
    """Each takes time, so their number is limited; what follows is not judged."""
    merger = Merger()
    first, second = merger.source("one"), merger.source("two")
    body = b"".join(metadata.replace(b"%d", b"a%d" % n) + b"a%d 1\n" % n for n in range(families))
    assert first.feed(body) == body
    assert second.feed(b"own 1\n" + body + b"more 1\n") == b"own 1\n" + (b"" if cut else b"more 1\n")
    assert second.dropped_families == families
    assert second.problem == ("sent too many families that must be left out" if cut else "")


def test_samples_of_kept_and_dropped_families_may_alternate() -> None:
    """Each is judged by its name, however often the name changes, in this chunk and the next."""
    merger = Merger()
    first, second = merger.source("one"), merger.source("two")
    assert first.feed(b"# TYPE h histogram\nh_sum 1\na 1\n") == b"# TYPE h histogram\nh_sum 1\na 1\n"
    body = b'b 1\na 2\nb{x="#"} 2\nh_count 3\nc 4\n\n'
    kept = b'b 1\nb{x="#"} 2\nc 4\n'
    assert second.feed(body) == second.feed(body) == kept
    assert second.feed(body + b"# TYPE d gauge\nd 1\n" + body) == kept + b"# TYPE d gauge\nd 1\n" + kept
    assert (second.dropped_families, second.hidden) == (2, {"one": 2})
    assert second.series == 13


def test_backslash_that_begins_no_escape_is_doubled() -> None:
    """A Windows path is taken as Prometheus takes it, and written so that every parser reads it."""
    out, (source,) = merged(rb"""# HELP a C:\\d \ok \n
a{p="C:\temp",q="\\d \" \e"} 1
""")
    expected = rb"""# HELP a C:\\d \\ok \n
a{p="C:\\temp",q="\\d \" \\e"} 1
"""
    assert out == expected
    assert source.malformed_lines == 0


@pytest.mark.parametrize("body", [b"up 1\n", b"# TYPE up gauge\nup 1 9999999999999\n", b'up{a="1"} 1\n'])
def test_source_does_not_write_series_of_the_scrape(body: bytes) -> None:
    """`up` is Prometheus's own; a source that federates a Prometheus may write it where that is allowed."""
    out, (source,) = merged(body + b"# TYPE upper gauge\nupper 2\n")
    assert out == b"# TYPE upper gauge\nupper 2\n"
    assert source.hidden == {"prometheus": 1}
    assert source.hidden_names == [("up", "prometheus")]
    federating = Merger(allow_scrape_series=True).source("s")
    assert federating.feed(body) == body


def test_hidden_families_are_counted_by_the_source_with_the_same_names() -> None:
    """A family of a later source is counted for the earlier source that has its name."""
    merger = Merger(MergeLimits(max_families=2))
    merger.reserve([(b"ours", b"gauge")])
    first = merger.source("application:1")
    first.feed(b"# TYPE a gauge\na 1\n")
    second = merger.source("application:2")
    second.feed(b"# TYPE a gauge\na 1\n# TYPE ours gauge\nours 1\nb 1\nc 1\nd 1\n")
    assert second.hidden == {"application:1": 1, "agent": 1, "limit": 1}
    assert second.hidden_names == [("a", "application:1"), ("ours", "agent"), ("d", "limit")]
    assert (first.hidden, second.dropped_families) == ({}, 3)


def test_series_of_a_source_are_limited() -> None:
    """The source is cut at the sample that is one too many; families and comments do not count."""
    body = b"".join(
        b'# HELP m%d x\n# TYPE m%d gauge\nm%d{a="1"} 1\nm%d{a="2"} 1\n' % (n, n, n, n) for n in range(9)
    )
    out, (source,) = merged(body, limits=MergeLimits(max_series=5))
    assert (out.count(b" 1\n"), source.series) == (5, 5)
    assert source.problem == "sent more than 5 series"


def test_trusted_source_is_judged_by_its_families_only() -> None:
    """Envoy's lines are not read; its families are still nobody else's, and theirs are not Envoy's."""
    merger = Merger()
    merger.reserve([(b"ours", b"gauge")])
    envoy = merger.source("envoy", trusted=True)
    odd = b"# TYPE e counter\ne{odd line} 1\n"
    assert envoy.feed(odd) == odd
    assert envoy.feed(b"e{} 2\n# TYPE f gauge\nf{} 1\n") == b"e{} 2\n# TYPE f gauge\nf{} 1\n"
    assert envoy.feed(b"# TYPE ours gauge\nours{} 1\n# TYPE g gauge\ng{} 1\n") == b"# TYPE g gauge\ng{} 1\n"
    assert envoy.feed(b"# TYPE ours gauge\n") == envoy.feed(b"ours{} 2\n") == b""
    assert envoy.feed(b"ours{} 3\n# TYPE h gauge\nh{} 1\n") == b"# TYPE h gauge\nh{} 1\n"
    envoy.finish()
    later = merger.source("application:1")
    assert later.feed(b"f 1\nown 1\n") == b"own 1\n"
    assert later.hidden == {"envoy": 1}


@pytest.mark.parametrize(
    ("body", "expected", "problem"),
    [
        (b"a 1\nb 2\n", b"a 1\nb 2\n", False),
        (b"", b"", False),
        (b"<html>up 1</html>\na 1\n", b"", True),
        (b'{"up": 1}\n', b"", True),
    ],
)
def test_doubtful_source_must_be_an_exposition(body: bytes, expected: bytes, problem: bool) -> None:
    """What declares a type of anything is merged if every line of it is one of an exposition."""
    source = Merger().source("s", doubtful=True)
    assert source.feed(body) + source.finish() == expected
    assert bool(source.problem) is problem


OPENMETRICS = (
    b"# HELP a Jobs.\n# TYPE a counter\n# UNIT a jobs\n"
    b'a_total{x=" # {y}"} 1 # {trace_id="abc"} 1.0 1700000000.5\na_created 1.5\n'
    b'# TYPE h histogram\nh_bucket{le="+Inf"} 3 # {t="d"} 0.5\nh_sum 2\nh_count 3\n'
    b"# TYPE g gauge\ng 1 1700000000.123\n# TYPE u unknown\nu 1 -3\n"
)
MADE_TEXT = (
    b"# HELP a Jobs.\n# TYPE a counter\n"
    b'a_total{x=" # {y}"} 1\na_created 1.5\n'
    b'# TYPE h histogram\nh_bucket{le="+Inf"} 3\nh_sum 2\nh_count 3\n'
    b"# TYPE g gauge\ng 1 1700000000123\n# TYPE u untyped\n"
)


@pytest.mark.parametrize("chunk", [1, 13, 10_000])
def test_openmetrics_becomes_text(chunk: int) -> None:
    """Samples keep names and values; exemplars and units go, seconds become milliseconds."""
    body = OPENMETRICS + b"# EOF\nafter 1\n"
    source = Merger().source("s", openmetrics=True)
    out = b"".join(source.feed(body[i : i + chunk]) for i in range(0, len(body), chunk)) + source.finish(True)
    assert out == MADE_TEXT
    assert (source.malformed_lines, source.problem) == (1, "")
    check_text_structure(out)


@pytest.mark.parametrize(
    ("end", "whole"), [(b"# EOF\n", True), (b"# EOF", True), (b"", False), (b"b 2", False)]
)
def test_openmetrics_without_its_end_is_cut_off(end: bytes, whole: bool) -> None:
    """Only `# EOF` says that OpenMetrics is whole, whatever the transport says."""
    source = Merger().source("s", openmetrics=True)
    assert source.feed(b"a 1\n" + end) + source.finish(True) == b"a 1\n"
    assert (source.problem == "") is whole
    assert source.truncated is not whole


def test_output_of_a_client_library_is_unchanged() -> None:
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


def test_empty_source_is_up_and_junk_is_down() -> None:
    """An application without metrics is healthy; one that says nothing of an exposition is not."""
    _, (empty, junk) = merged(b"", b"<html>\n<body>\n")
    assert empty.problem == ""
    assert junk.problem == "sent no valid line of an exposition"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"b 1\n# TYPE a gauge\na 1\n# HELP a late\n", b"b 1\n# TYPE a gauge\na 1\n"),
        (
            b"b 1\n# HELP a text\n# TYPE a gauge\n# HELP a again\na 1\n",
            b"b 1\n# HELP a text\n# TYPE a gauge\na 1\n",
        ),
    ],
    ids=["after the samples", "a second time"],
)
def test_help_that_comes_too_late_is_malformed(body: bytes, expected: bytes) -> None:
    """It may follow its TYPE line directly, once."""
    out, (source,) = merged(body)
    assert (out, source.malformed_lines) == (expected, 1)


def test_a_dropped_family_stays_dropped_in_every_chunk() -> None:
    """Its TYPE line comes again, and its samples arrive in a chunk of their own."""
    merger = Merger()
    first = merger.source("first")
    assert first.feed(b"# TYPE a counter\na 1\n") + first.finish() == b"# TYPE a counter\na 1\n"
    second = merger.source("second")
    chunks = (b"# TYPE a gauge\na 2\n", b"# TYPE a gauge\na 3\n", b"a 4\n")
    assert b"".join(map(second.feed, chunks)) + second.finish() == b""
    assert second.dropped_families == 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_family_continues_in_the_next_chunk_as_it_began(kept: bool) -> None:
    """Its samples are kept or left out, also if that chunk has families that end otherwise."""
    merger = Merger()
    merger.source("one").feed(b"# TYPE theirs gauge\ntheirs 1\n")
    second = merger.source("two")
    name, other = (b"own", b"theirs") if kept else (b"theirs", b"own")
    began = b"# TYPE %s gauge\n%s 1\n" % (name, name)
    assert second.feed(began) == began * kept
    following = b"# TYPE %s gauge\n%s 3\n" % (other, other)
    assert second.feed(b"%s 2\n" % name + following) == (b"own 2\n" if kept else following)


def test_families_beyond_the_limit_are_left_out() -> None:
    """With their metadata, while the families before them stay."""
    body = b"# TYPE a gauge\na 1\n# TYPE b gauge\nb 2\n"
    out, (source,) = merged(body, limits=MergeLimits(max_families=1))
    assert (out, source.dropped_families) == (b"# TYPE a gauge\na 1\n", 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"a_sum 1\n# TYPE a summary\na_count 2\n", b"a_count 3\n"),
        (b'a 1\n# TYPE a histogram\na_bucket{le="+Inf"} 2\n', b"a_sum 3\n"),
    ],
    ids=["a series came before", "another type came before"],
)
def test_a_type_that_comes_late_still_owns_its_series(first: bytes, second: bytes) -> None:
    """The TYPE line itself cannot stay, but no other source may expose a series of that family."""
    out, (_, other) = merged(first, second)
    assert b" 3" not in out
    assert (other.dropped_families, other.series) == (1, 0)


HELP_ALONE = {
    "of a dropped family": ((b"a 1\n", b"b 1\n# TYPE a gauge\n# HELP a text\na 2\n"), b"a 1\nb 1\n", 0, 1),
    "of the family of the samples before": ((b"a 1\n# HELP a late\na 2\n",), b"a 1\na 2\n", 1, 0),
    "after a late TYPE line": ((b"a 1\n# TYPE a gauge\n# HELP a late\na 2\n",), b"a 1\na 2\n", 2, 0),
    "twice, without a TYPE line": (
        (b"# HELP a text\n# HELP a again\na 1\n",),
        b"# HELP a text\na 1\n",
        1,
        0,
    ),
    "twice after its TYPE line": (
        (b"# TYPE a gauge\n# HELP a text\n# HELP a again\na 1\n",),
        b"# TYPE a gauge\n# HELP a text\na 1\n",
        1,
        0,
    ),
    "of an earlier family": ((b"a 1\nb 2\n# HELP a late\n",), b"a 1\nb 2\n", 1, 0),
    "of another source's family": ((b"a 1\n", b"b 1\n# HELP a other\n"), b"a 1\nb 1\n", 0, 1),
    "of a family that comes": ((b"b 1\n# HELP a text\n", b"a 2\n"), b"b 1\n# HELP a text\n", 0, 1),
}


@pytest.mark.parametrize("case", HELP_ALONE)
def test_help_without_its_type_line(case: str) -> None:
    """It takes a free name; else it is malformed, or hidden with the family of another source."""
    bodies, expected, malformed, dropped = HELP_ALONE[case]
    out, sources = merged(*bodies)
    assert out == expected
    assert (sources[-1].malformed_lines, sources[-1].dropped_families) == (malformed, dropped)


def test_help_alone_takes_a_family() -> None:
    """So it is left out beyond the limit, with the samples of its name."""
    body = b"# TYPE a gauge\na 1\n# HELP b text\nb 1\n"
    out, (source,) = merged(body, limits=MergeLimits(max_families=1))
    assert (out, source.dropped_families) == (b"# TYPE a gauge\na 1\n", 1)


def test_a_family_with_a_late_type_continues_in_the_next_chunk() -> None:
    """Its TYPE line is left out; its samples before and after it are not."""
    source = Merger().source("s")
    assert source.feed(b"a 1\n# TYPE a gauge\na 2\n") == b"a 1\na 2\n"
    following = b"a 3\n# TYPE b gauge\nb 1\n"
    assert source.feed(following) == following


def test_a_dropped_family_that_is_typed_again_stays_dropped() -> None:
    """In the same chunk and in the next one."""
    merger = Merger()
    merger.source("one").feed(b"# TYPE a gauge\na 1\n")
    second = merger.source("two")
    assert second.feed(b"# TYPE a gauge\na 2\n# TYPE b gauge\nb 1\n") == b"# TYPE b gauge\nb 1\n"
    assert second.feed(b"# TYPE a gauge\na 3\n") == b""
    assert second.feed(b"a 4\n# TYPE c gauge\nc 1\n") == b"# TYPE c gauge\nc 1\n"
    assert second.dropped_families == 1
