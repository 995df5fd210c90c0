"""The merge in protobuf: families in, the valid and free ones out byte by byte."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.exposition.health import Family
from meshscrape.exposition.merge import Merger
from meshscrape.exposition.protobuf import (
    MAX_MALFORMED_FAMILIES,
    MAX_MESSAGE,
    MAX_METRICS,
    MetricFamily,
    ProtobufMerge,
    render_protobuf,
)
from meshscrape.exposition.source import MAX_DROPPED, MergeLimits


def delimited(*families: Any) -> bytes:
    """Return messages, each behind its length."""
    out = b""
    for family in families:
        body = family if isinstance(family, bytes) else family.SerializeToString()
        length, prefix = len(body), b""
        while length > 0x7F:
            prefix, length = prefix + bytes([length & 0x7F | 0x80]), length >> 7
        out += prefix + bytes([length]) + body
    return out


def gauge(name: str, **labels: str) -> Any:
    """Return a family of one gauge."""
    family = MetricFamily(name=name, type=1, help="é")
    metric = family.metric.add()
    metric.gauge.value = 1
    for label, value in labels.items():
        metric.label.add(name=label, value=value)
    return family


def histogram(name: str = "h", deltas: tuple[int, ...] = (1, 1, -1), count: int = 5, spans: int = 3) -> Any:
    """Return a family of one native histogram with buckets 1, 2, 1 and one observation of zero."""
    family = MetricFamily(name=name, type=4)
    native = family.metric.add().histogram
    native.sample_count, native.sample_sum, native.schema = count, 3.5, 3
    native.zero_threshold, native.zero_count = 1e-128, 1
    native.positive_span.add(offset=-2, length=spans)
    native.positive_delta.extend(deltas)
    return family


def merged(*bodies: bytes, limits: MergeLimits | None = None) -> tuple[bytes, list[ProtobufMerge]]:
    """Return the merge of whole bodies, and the sources with their counters."""
    merger = Merger(limits)
    out, sources = b"", []
    for number, body in enumerate(bodies):
        source = merger.protobuf_source(f"application:{number}")
        out += source.feed(body) + source.finish(True)
        sources.append(source)
    return out, sources


@given(st.lists(st.integers(0, 300), max_size=5))
def test_families_pass_byte_by_byte_however_they_are_cut(cuts: list[int]) -> None:
    """Native and classic histograms, exemplars and units come through as they are."""
    classic = MetricFamily(name="c_seconds", type=4, unit="seconds")
    bucket = classic.metric.add().histogram.bucket.add(cumulative_count=1, upper_bound=float("inf"))
    bucket.exemplar.label.add(name="trace_id", value="abc")
    body = delimited(gauge("a", x="1", y="é"), histogram(), classic, MetricFamily(name="empty", type=0))
    source = Merger().protobuf_source("s")
    places = [0, *sorted(cut % len(body) for cut in cuts), len(body)]
    pieces = [body[start:end] for start, end in pairwise(places)]
    assert b"".join(source.feed(piece) for piece in pieces) + source.finish() == body
    assert (source.problem, source.series, source.malformed_lines) == ("", 3, 0)


REFUSED = {
    "a name": gauge("1a"),
    "a name beyond the classic ones": gauge("a.b"),
    "no name": gauge(""),
    "a label's name": gauge("a", **{"1": "x"}),
    "a reserved label": gauge("a", __name__="b"),
    "an unknown type": MetricFamily(name="a", type=9),
    "a metric of another type": MetricFamily(name="a", type=0, metric=gauge("a").metric),
    "buckets without spans": histogram("a", spans=2),
    "a negative bucket": histogram("a", deltas=(1, -2, 3)),
    "more in buckets than in all": histogram("a", count=4),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_family_that_prometheus_would_refuse_is_left_out(fault: str) -> None:
    """It costs itself; in Prometheus it would cost the whole scrape."""
    before, after = delimited(gauge("before")), delimited(gauge("after"))
    out, (source,) = merged(before + delimited(REFUSED[fault]) + after)
    assert out == before + after
    assert (source.malformed_lines, source.problem) == (1, "")


FLOODS = {
    "malformed families": (b"\x00", MAX_MALFORMED_FAMILIES, "sent more than 1000 malformed families"),
    "one family again and again": (
        delimited(gauge("own")),
        MAX_DROPPED,
        "sent too many families that must be left out",
    ),
}


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("flood", FLOODS)
def test_source_with_too_many_families_to_leave_out_is_cut_off(flood: str, extra: int) -> None:
    """Each costs time, however small it is; what follows the last one is not read."""
    message, most, why = FLOODS[flood]
    own, after = delimited(gauge("own")), delimited(gauge("after"))
    out, (source,) = merged(own + message * (most + extra) + after)
    assert out == (own if extra else own + after)
    assert source.problem == (why if extra else "")


def test_repeated_label_is_refused() -> None:
    """Prometheus refuses a scrape with such a series."""
    family = gauge("a", x="1")
    family.metric[0].label.add(name="x", value="2")
    assert merged(delimited(family))[0] == b""


BROKEN = {
    "not protobuf": b"up 1\n" * 10,
    "not UTF-8": delimited(b"\x0a\x01\xff"),
    "a length without end": b"\xff" * 20,
    "too large": delimited(gauge("a"))[:0] + b"\xff\xff\xff\xff\x07",
    "too many metrics": delimited(
        MetricFamily(name="a", type=1, metric=list(gauge("a").metric) * (MAX_METRICS + 1))
    ),
    "half": delimited(gauge("a"))[:-1],
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_source_is_cut_off(fault: str) -> None:
    """What came before it is merged; the source is down."""
    before = delimited(gauge("before"))
    out, (source,) = merged(before + BROKEN[fault])
    assert out == before
    assert source.problem
    assert source.truncated


def test_family_belongs_to_its_first_source() -> None:
    """Also the series that a histogram's text form would have, and the names that are Prometheus's own."""
    first = delimited(gauge("a"), histogram("h"))
    second = delimited(gauge("a"), gauge("h_sum"), gauge("up"), gauge("own"))
    out, (_, source) = merged(first, second)
    assert out == first + delimited(gauge("own"))
    assert source.hidden == {"application:0": 2, "prometheus": 1}


def test_sources_are_cut_off_at_their_limits() -> None:
    """Bytes, series and families have the limits of the text format."""
    body = delimited(*(gauge(f"m{n}") for n in range(10)))
    for limits in (MergeLimits(max_series=4), MergeLimits(max_bytes=len(body) * 4 // 10)):
        out, (source,) = merged(body, limits=limits)
        assert out == delimited(*(gauge(f"m{n}") for n in range(4)))
        assert source.cut_off
    out, (source,) = merged(body, limits=MergeLimits(max_families=4))
    assert (out, source.hidden) == (delimited(*(gauge(f"m{n}") for n in range(4))), {"limit": 6})
    assert MergeLimits().max_bytes > MAX_MESSAGE


def test_own_families_are_read_back() -> None:
    """Counters and gauges of the agent, with their labels."""
    families = [
        Family("a_total", "counter", "A.", [({"x": 'q"'}, 2.5), ({}, 1)]),
        Family("none", "gauge", "", []),
        Family("b", "gauge", "B.", [({}, float("inf"))]),
    ]
    out = render_protobuf(families)
    assert merged(out)[0] == out
    first = MetricFamily.FromString(out[1 : 1 + out[0]])
    assert (first.name, first.help, first.type) == ("a_total", "A.", 0)
    assert first.metric[0].counter.value == 2.5
    assert (first.metric[0].label[0].name, first.metric[0].label[0].value) == ("x", 'q"')
