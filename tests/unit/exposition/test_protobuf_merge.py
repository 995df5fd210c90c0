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
    MAX_BUCKETS,
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


HALF = "ended in the middle of a family"
TOO_LARGE = "sent a family that is too large, or no protobuf"
BROKEN = {
    "not protobuf": (b"up 1\n" * 10, HALF),
    "not UTF-8": (delimited(b"\x0a\x01\xff"), "sent something that is not protobuf"),
    "a length without end": (b"\xff" * 20, TOO_LARGE),
    "a length of five bytes without end": (b"\x80" * 5, TOO_LARGE),
    "a length of six bytes": (b"\x81\x80\x80\x80\x80\x00", TOO_LARGE),
    "half a length": (b"\x80" * 4, HALF),
    "too large": (b"\xff\xff\xff\xff\x07", TOO_LARGE),
    "too large by one": (b"\x81\x80\x80\x08", TOO_LARGE),
    "as large as is allowed": (b"\x80\x80\x80\x08", HALF),
    "too many metrics": (
        delimited(MetricFamily(name="a", type=1, metric=list(gauge("a").metric) * (MAX_METRICS + 1))),
        f"sent a family with more than {MAX_METRICS} metrics in protobuf",
    ),
    "half": (delimited(gauge("a"))[:-1], HALF),
}


@pytest.mark.parametrize("before", [b"", delimited(gauge("before"))], ids=["at once", "later"])
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_source_is_cut_off(fault: str, before: bytes) -> None:
    """What came before it is merged; the source is down."""
    body, why = BROKEN[fault]
    out, (source,) = merged(before + body)
    assert out == before
    assert source.problem == why
    assert source.truncated
    assert source.malformed_lines == (1 if fault == "not UTF-8" else 0)


@pytest.mark.parametrize("length", [5, 127, 128, 1000])
def test_length_may_be_spelled_in_five_bytes(length: int) -> None:
    """Protobuf allows leading zeros."""
    family = MetricFamily(name="a", type=1, help="x" * (length - 5 if length > 5 else 0))
    body = family.SerializeToString()
    padded = bytes([len(body) & 0x7F | 0x80, len(body) >> 7 | 0x80, 0x80, 0x80, 0]) + body
    out, (source,) = merged(padded)
    assert (out, source.problem) == (padded, "")


def test_trusted_source_is_judged_by_its_names_only() -> None:
    """Envoy's families are not validated; they may have as many metrics as are allowed."""
    odd = MetricFamily(name="a.b", type=1)
    large = MetricFamily(name="large", type=1, metric=[type(odd.metric.add())()] * MAX_METRICS)
    merger = Merger()
    body = delimited(odd, large)
    source = merger.protobuf_source("envoy", trusted=True)
    assert source.feed(body) == body
    assert (source.series, source.problem) == (MAX_METRICS + 1, "")
    assert source.feed(delimited(large, gauge("up"), gauge("b"))) == delimited(gauge("b"))


def test_dropped_family_stays_dropped_under_another_type() -> None:
    """A family that is no histogram any more would be half of one that was left out."""
    first = delimited(gauge("h_sum"))
    second = delimited(histogram("h"), gauge("h"), gauge("own"))
    out, (_, source) = merged(first, second)
    assert out == first + delimited(gauge("own"))
    assert source.hidden == {"application:0": 1}


def test_metric_may_have_fields_of_other_types() -> None:
    """Prometheus reads only the field of the family's type."""
    family = gauge("a")
    family.metric[0].histogram.schema = 99
    assert merged(delimited(family))[0] == delimited(family)


def native(*, zero: float = 0, count: float = 0, **fields: Any) -> Any:
    """Return a family of one native histogram of these fields; its counts may be fractions."""
    family = MetricFamily(name="h", type=4)
    made = family.metric.add().histogram
    whole = isinstance(zero, int) and isinstance(count, int)
    for name, value in (("zero_count", zero), ("sample_count", count)):
        setattr(made, name if whole else f"{name}_float", value)
    made.schema = fields.pop("schema", 0)
    for name, items in fields.items():
        if name.endswith("span"):
            for offset, length in items:
                getattr(made, name).add(offset=offset, length=length)
        else:
            getattr(made, name).extend(items)
    return family


def buckets(count: int) -> dict[str, Any]:
    """Return a span of empty buckets, as a histogram of fractions has them."""
    return {"positive_span": [(0, count)], "positive_count": [0.0] * count}


HISTOGRAMS = {
    "the coarsest schema": (native(schema=-4), native(schema=-5)),
    "the finest schema": (native(schema=8), native(schema=9)),
    "empty": (native(positive_span=[(0, 1)], positive_delta=[0]), native(positive_span=[(0, 1)])),
    "a gap between spans": (
        native(positive_span=[(-3, 1), (0, 1)], positive_delta=[1, 0], count=2),
        native(positive_span=[(-3, 1), (-1, 1)], positive_delta=[1, 0], count=2),
    ),
    "negative values": (
        native(negative_span=[(0, 1)], negative_delta=[2], count=2),
        native(negative_span=[(0, 1)], negative_delta=[2], count=1),
    ),
    "fractions": (
        native(positive_span=[(0, 2)], positive_count=[0.25, 0.5], zero=0.5, count=1.25),
        native(positive_span=[(0, 2)], positive_count=[0.25, 0.5], zero=0.5, count=1.0),
    ),
    "fractions of nothing": (
        native(positive_span=[(0, 1)], positive_count=[0.5], zero=0.0, count=0.5),
        native(positive_span=[(0, 1)], positive_count=[float("nan")], zero=0.0, count=0.5),
    ),
    "no buckets": (native(zero=2, count=1), native(zero=2, count=1, positive_span=[(0, 0)])),
    "many deltas": (
        native(positive_span=[(0, MAX_BUCKETS)], positive_delta=[0] * MAX_BUCKETS),
        native(positive_span=[(0, MAX_BUCKETS + 1)], positive_delta=[0] * (MAX_BUCKETS + 1)),
    ),
    "many counts": (native(**buckets(MAX_BUCKETS)), native(**buckets(MAX_BUCKETS + 1))),
    "many spans": (
        native(positive_span=[(0, 0)] * MAX_BUCKETS),
        native(positive_span=[(0, 0)] * (MAX_BUCKETS + 1)),
    ),
}


@pytest.mark.parametrize("case", HISTOGRAMS)
def test_native_histogram_is_valid_as_in_prometheus(case: str) -> None:
    """The first of a pair is, and the second is beyond a rule."""
    valid, refused = map(delimited, HISTOGRAMS[case])
    assert merged(valid)[0] == valid
    out, (source,) = merged(refused)
    assert (out, source.malformed_lines) == (b"", 1)


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
        assert source.cut_off == source.problem != ""
        assert source.truncated
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
    assert delimited(*map(MetricFamily.FromString, [out[1 : 1 + out[0]], out[2 + out[0] :]])) == out
    first = MetricFamily.FromString(out[1 : 1 + out[0]])
    assert (first.name, first.help, first.type) == ("a_total", "A.", 0)
    assert first.metric[0].counter.value == 2.5
    assert (first.metric[0].label[0].name, first.metric[0].label[0].value) == ("x", 'q"')


@pytest.mark.parametrize("length", [127, 128, 129, 20_000])
def test_own_families_come_after_their_length(length: int) -> None:
    """In as few bytes as it takes."""
    family = MetricFamily(name="a", type=1, metric=gauge("a").metric)
    while family.ByteSize() < length:
        family.help += "x" * max(1, (length - family.ByteSize()) // 2)
    assert family.ByteSize() == length
    assert render_protobuf([Family("a", "gauge", family.help, [({}, 1)])]) == delimited(family)
