"""The merge in OpenMetrics, rule by rule, from sources in either format."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client.openmetrics.exposition import generate_latest

from meshscrape.exposition import openmetrics_merge
from meshscrape.exposition.merge import Merger
from meshscrape.exposition.negotiate import Format
from meshscrape.exposition.source import SourceMerge
from support.expositions import openmetrics_series


def merged(body: bytes, dialect: Format = Format.TEXT) -> tuple[bytes, SourceMerge]:
    """One source's merge without its `# EOF`, after the strict parser has read it with it."""
    merger = Merger(Format.OPENMETRICS)
    source = merger.source("s", dialect=dialect)
    out = source.feed(body) + source.finish()
    openmetrics_series(out + merger.end())
    return out, source


HELD_BYTES = 20_000


@pytest.fixture
def small_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less is held than usual, for tests to be quick."""
    monkeypatch.setattr(openmetrics_merge, "HELD_BYTES", HELD_BYTES)
    monkeypatch.setattr(openmetrics_merge, "PART_BYTES", HELD_BYTES)


CONVERTED = {
    "counter with _total": (
        b'# HELP a_total The "as".\n# TYPE a_total counter\na_total{x="1"} 5\n',
        b'# TYPE a counter\n# HELP a The \\"as\\".\na_total{x="1"} 5\n',
    ),
    "counter without _total": (b"# TYPE a counter\na 5\n", b"# TYPE a unknown\na 5\n"),
    "counter that is not one": (
        b"# TYPE a_total counter\na_total -1\n",
        b"# TYPE a_total unknown\na_total -1\n",
    ),
    "untyped": (b"a 5\n", b"# TYPE a unknown\na 5\n"),
    "milliseconds": (
        b"a 5 1700000000123\nb 1 1000\n",
        b"# TYPE a unknown\na 5 1700000000.123\n# TYPE b unknown\nb 1 1\n",
    ),
    "an odd infinity": (
        b'# TYPE a histogram\na_bucket{le="inf"} 1\n',
        b'# TYPE a histogram\na_bucket{le="+Inf"} 1\n',
    ),
    "interleaved groups": (
        b'# TYPE a summary\na_sum{x="1"} 1\na_sum{x="2"} 2\na_count{x="1"} 3\na_count{x="2"} 4\n',
        b'# TYPE a summary\na_sum{x="1"} 1\na_count{x="1"} 3\na_sum{x="2"} 2\na_count{x="2"} 4\n',
    ),
    "histogram without +Inf": (
        b'# TYPE a histogram\na_bucket{le="1"} 1\na_sum 1\n',
        b'# TYPE a_bucket unknown\na_bucket{le="1"} 1\n# TYPE a_sum unknown\na_sum 1\n',
    ),
    "the same sample twice": (b"# TYPE a gauge\na 1\na 2\n", b"# TYPE a gauge\na 1\n"),
}


@pytest.mark.parametrize("case", CONVERTED)
def test_text_becomes_openmetrics(case: str) -> None:
    """What the text format may say and OpenMetrics may not is said so that no sample is lost."""
    body, expected = CONVERTED[case]
    assert merged(body)[0] == expected


def test_a_counter_and_a_gauge_of_one_name() -> None:
    """`a` and `a_total` are two families in text; in OpenMetrics the second to come gives way."""
    out, source = merged(b"# TYPE a gauge\na 1\n# TYPE a_total counter\na_total 2\n")
    assert out == b"# TYPE a gauge\na 1\n# TYPE a_total unknown\na_total 2\n"
    out, source = merged(b"# TYPE a_total counter\na_total 2\n# TYPE a gauge\na 1\n")
    assert out == b"# TYPE a counter\na_total 2\n"
    assert source.dropped_families == 1


def test_a_family_that_comes_back() -> None:
    """OpenMetrics has a family in one place: samples that come later are left out and counted."""
    out, source = merged(b"# TYPE a gauge\na 1\nb 1\n" + b'a{x="1"} 1\n')
    assert out == b"# TYPE a gauge\na 1\n# TYPE b unknown\nb 1\n"
    assert source.dropped_families == 1


def test_client_library() -> None:
    """What prometheus_client writes in OpenMetrics comes through whole, exemplars and units too."""
    registry = CollectorRegistry()
    Counter("jobs", "Jobs.", ["kind"], registry=registry).labels("a").inc(1, {"trace_id": "x"})
    Histogram("wait", "Time.", unit="seconds", registry=registry).observe(0.3, {"trace_id": "y"})
    Summary("size", "Size.", registry=registry).observe(3)
    Gauge("depth", 'A "quoted" \\ help.', registry=registry).set(-4)
    Info("build", "Version.", registry=registry).info({"version": "1"})
    Enum("state", "State.", states=["on", "off"], registry=registry).state("off")
    body = generate_latest(registry)
    out, source = merged(body, Format.OPENMETRICS)
    assert sorted(openmetrics_series(out + b"# EOF\n")) == sorted(openmetrics_series(body))
    assert b"# UNIT wait_seconds seconds\n" in out
    assert out.count(b"trace_id") == 2
    assert (source.malformed_lines, source.dropped_families, source.problem) == (0, 0, "")


def test_exemplars() -> None:
    """An exemplar stays where the type allows one; elsewhere, or too long, it goes and its sample stays."""
    body = (
        b'# TYPE a counter\na_total 1 # {t="%s"} 1\n# TYPE b gauge\nb 1 # {t="1"} 1\n' % (b"x" * 200)
        + b'# TYPE c counter\nc_total 1 # {t="1"} 0.5 3\n'
    )
    out, source = merged(body, Format.OPENMETRICS)
    assert out == (
        b"# TYPE a counter\na_total 1\n# TYPE b gauge\nb 1\n# TYPE c counter\n"
        + b'c_total 1 # {t="1"} 0.5 3\n'
    )
    assert source.malformed_lines == 0


def test_only_one_end() -> None:
    """Every source ends with `# EOF`; the merge ends with one."""
    merger = Merger(Format.OPENMETRICS)
    out = b""
    for name in (b"a", b"b"):
        source = merger.source("s", dialect=Format.OPENMETRICS)
        out += source.feed(name + b" 1\n# EOF\n") + source.finish()
    assert (out + merger.end()).count(b"# EOF") == 1


def test_reserved_counters() -> None:
    """A reserved counter is reserved under the name that its family has in OpenMetrics."""
    merger = Merger(Format.OPENMETRICS)
    merger.reserve([(b"ours_total", b"counter")])
    source = merger.source("s")
    assert source.feed(b"# TYPE ours_total counter\nours_total 1\nother 1\n") + source.finish() == (
        b"# TYPE other unknown\nother 1\n"
    )


@pytest.mark.usefixtures("small_families")
@pytest.mark.parametrize("kind", [b"gauge", b"counter", b"untyped"])
def test_a_large_family_goes_in_parts(kind: bytes) -> None:
    """A family too large to hold, of samples that stand alone, comes through but for what repeats."""
    head = b"# HELP a_total Large.\n# TYPE a_total %s\n" % kind
    lines = [b'a_total{x="%d%s"} 1\n' % (n, b"y" * 100) for n in range(2 * HELD_BYTES // 100)]
    out, source = merged(head + b"".join(lines) + lines[0] + b"b 1\n")
    assert [line for line in out.splitlines(keepends=True) if line.startswith(b"a_total{")] == lines
    assert out.endswith(b"# TYPE b unknown\nb 1\n")
    assert (source.malformed_lines, source.dropped_families) == (1, 0)


@pytest.mark.usefixtures("small_families")
def test_a_large_counter_with_a_late_flaw() -> None:
    """Once a family has begun as a counter, a sample that no counter can have is left out and counted."""
    lines = [b'a_total{x="%d%s"} 1\n' % (n, b"y" * 100) for n in range(2 * HELD_BYTES // 100)]
    out, source = merged(b"# TYPE a_total counter\n" + b"".join(lines) + b"a_total -1\n")
    assert out.count(b"\n") == 1 + len(lines)
    assert source.malformed_lines == 1


@pytest.mark.usefixtures("small_families")
def test_a_large_family_of_another_source() -> None:
    """A large family that an earlier source has is dropped in all of its parts, and counted once."""
    merger = Merger(Format.OPENMETRICS)
    merger.reserve([(b"a", b"gauge")])
    source = merger.source("s")
    line = b'a{x="%d' + b"y" * 100 + b'"} 1\n'
    body = b"# TYPE a gauge\n" + b"".join(line % n for n in range(2 * HELD_BYTES // 100)) + b"b 1\n"
    assert source.feed(body) + source.finish() == b"# TYPE b unknown\nb 1\n"
    assert source.dropped_families == 1


@pytest.mark.usefixtures("small_families")
def test_a_distribution_too_large_to_hold() -> None:
    """A histogram is held until it is whole; one that is too large for that is dropped and counted."""
    line = b'a_bucket{x="%d' + b"y" * 100 + b'",le="+Inf"} 1\n'
    body = b"# TYPE a histogram\n" + b"".join(line % n for n in range(HELD_BYTES // 100)) + b"b 1\n"
    out, source = merged(body)
    assert out == b"# TYPE b unknown\nb 1\n"
    assert source.dropped_families == 1
