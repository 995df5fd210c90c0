"""The protobuf format: MetricFamily messages, each after its length. Only it carries native histograms.

A family is parsed and judged, then passed on unchanged. Message classes are built from descriptors when this
module is imported, so there is no generated code. Source: prometheus/client_model `metrics.proto`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from meshscrape.exposition.families import FamilyTable
from meshscrape.exposition.grammar import LABEL_NAME, NAME
from meshscrape.exposition.health import Family
from meshscrape.exposition.source import MAX_DROPPED, TOO_MANY_DROPPED, MergeLimits, OwnerName, SourceMerge

# A source is cut off at a larger family (bytes), because a message is held in memory until it is whole.
MAX_MESSAGE = 16 << 20
_TOO_LARGE = MAX_MESSAGE + 1
# A family is judged in one step, which must not block the event loop for long. So its metrics are limited,
# and the buckets of a native histogram.
MAX_METRICS = 50_000
MAX_BUCKETS = 10_000
# A source is cut off at more malformed families: each costs some microseconds, even if it is empty. For one,
# Prometheus would refuse the whole scrape.
MAX_MALFORMED_FAMILIES = 1_000
_MAX_LENGTH_BYTES = 5

_PACKAGE = "io.prometheus.client"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "double": _Field.TYPE_DOUBLE,
    "uint64": _Field.TYPE_UINT64,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "int32": _Field.TYPE_INT32,
    "sint32": _Field.TYPE_SINT32,
    "sint64": _Field.TYPE_SINT64,
}
# Per message: number, type and name of each field; a type with * is repeated. The syntax is proto3, because
# its parser checks that strings are UTF-8.
_MESSAGES = {
    "LabelPair": "1 string name, 2 string value",
    "Timestamp": "1 int64 seconds, 2 int32 nanos",
    "Exemplar": "1 LabelPair* label, 2 double value, 3 Timestamp timestamp",
    "Gauge": "1 double value",
    "Counter": "1 double value, 2 Exemplar exemplar, 3 Timestamp created_timestamp",
    "Quantile": "1 double quantile, 2 double value",
    "Summary": (
        "1 uint64 sample_count, 2 double sample_sum, 3 Quantile* quantile, 4 Timestamp created_timestamp"
    ),
    "Untyped": "1 double value",
    "Bucket": (
        "1 uint64 cumulative_count, 2 double upper_bound, 3 Exemplar exemplar, "
        "4 double cumulative_count_float"
    ),
    "BucketSpan": "1 sint32 offset, 2 uint32 length",
    "Histogram": (
        "1 uint64 sample_count, 2 double sample_sum, 3 Bucket* bucket, 4 double sample_count_float, "
        "5 sint32 schema, 6 double zero_threshold, 7 uint64 zero_count, 8 double zero_count_float, "
        "9 BucketSpan* negative_span, 10 sint64* negative_delta, 11 double* negative_count, "
        "12 BucketSpan* positive_span, 13 sint64* positive_delta, 14 double* positive_count, "
        "15 Timestamp created_timestamp, 16 Exemplar* exemplars"
    ),
    "Metric": (
        "1 LabelPair* label, 2 Gauge gauge, 3 Counter counter, 4 Summary summary, 5 Untyped untyped, "
        "6 int64 timestamp_ms, 7 Histogram histogram"
    ),
    "MetricFamily": "1 string name, 2 string help, 3 int32 type, 4 Metric* metric, 5 string unit",
}
# Number of MetricType → the type in the text format, and the field of the metric that holds the value.
_KINDS = {
    0: (b"counter", "counter"),
    1: (b"gauge", "gauge"),
    2: (b"summary", "summary"),
    3: (b"untyped", "untyped"),
    4: (b"histogram", "histogram"),
    5: (b"histogram", "histogram"),
}
_NUMBERS = {"counter": 0, "gauge": 1}
_NAME = re.compile(NAME.decode())
_LABEL_NAME = re.compile(LABEL_NAME.decode())


def _field_of(spelled: str) -> descriptor_pb2.FieldDescriptorProto:
    number, kind, name = spelled.split()
    repeated = kind.endswith("*")
    kind = kind.removesuffix("*")
    field = _Field(
        name=name,
        number=int(number),
        label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
        type=_SCALARS.get(kind, _Field.TYPE_MESSAGE),
    )
    if kind not in _SCALARS:
        field.type_name = f".{_PACKAGE}.{kind}"
    return field


def _metric_family_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        message.field.extend(_field_of(field) for field in fields.split(", "))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.MetricFamily"))


MetricFamily = _metric_family_class()


class ProtobufMerge(SourceMerge):
    """One source's part of a merge in protobuf. Valid families with free names pass unchanged."""

    def __init__(
        self,
        families: FamilyTable,
        owner: int,
        limits: MergeLimits,
        owner_name: OwnerName,
        *,
        trusted: bool = False,
    ) -> None:
        """Begin a source. A `trusted` source writes valid families, so only their names are judged."""
        super().__init__(families, owner, limits, owner_name)
        self._trusted = trusted
        self._held = bytearray()
        self._left_out = 0

    @property
    def problem(self) -> str:
        """See SourceMerge."""
        return self.cut_off or ("ended in the middle of a family" if self.truncated else "")

    def feed(self, chunk: bytes) -> bytes:
        """See SourceMerge."""
        self._held += self._within_bytes(chunk)
        over = self.cut_off  # by the limit on bytes: the families within the limit are still merged
        pieces: list[bytes] = []
        for begin, start, end in self._messages():
            pieces.append(self._judged(bytes(self._held[begin:end]), start - begin))
            if self.cut_off != over:
                break
        return b"".join(pieces)

    def finish(self, complete: bool = False) -> bytes:
        """See SourceMerge."""
        self.truncated = self.truncated or bool(self._held)
        return b""

    def _messages(self) -> Iterator[tuple[int, int, int]]:
        """Yield where each whole message's length begins, where it begins and ends; then forget them."""
        position = 0
        while True:
            read = _length(self._held, position)
            if read is None:
                break
            length, start = read
            if length > MAX_MESSAGE:
                self._cut("sent a family that is too large, or no protobuf")
                break
            if start + length > len(self._held):
                break
            yield position, start, start + length
            position = start + length
        del self._held[:position]

    def _judged(self, message: bytes, start: int) -> bytes:
        """Return the message if it is valid and its names are free; else nothing.

        It begins at `start`, behind its length.
        """
        try:
            family = MetricFamily.FromString(message[start:])
        except DecodeError:
            # After one malformed message, the boundaries of the following ones are unknown.
            self._cut("sent something that is not protobuf")
            self.malformed_lines += 1
            return b""
        count = len(family.metric)
        if count > MAX_METRICS:
            self._cut(f"sent a family with more than {MAX_METRICS} metrics in protobuf")
            return b""
        if self.series + count > self._limits.max_series:
            self._cut(f"sent more than {self._limits.max_series} series")
            return b""
        if not (self._trusted or _is_valid(family)):
            self.malformed_lines += 1
            if self.malformed_lines > MAX_MALFORMED_FAMILIES:
                self._cut(f"sent more than {MAX_MALFORMED_FAMILIES} malformed families")
            return b""
        name, kind = family.name.encode(), _KINDS[family.type][0]
        if self._is_dropped(name) or self._families.conflicts(name, kind) or not self._has_room(name):
            self._drop(name, kind)
            self._left_out += 1  # also if it is the same family as before
            if self._left_out > MAX_DROPPED:
                self._cut(TOO_MANY_DROPPED)
            return b""
        self._own(name, kind)
        self.series += count
        return message


def render_protobuf(families: Iterable[Family]) -> bytes:
    """Return `families` as delimited messages, without the families that have no samples."""
    pieces: list[bytes] = []
    for family in families:
        if not family.samples:
            continue
        message = MetricFamily(name=family.name, help=family.help, type=_NUMBERS[family.kind])
        for labels, value in family.samples:
            metric = message.metric.add()
            if isinstance(labels, str):
                raise TypeError("rendered labels cannot be converted to protobuf")
            for name, text in labels.items():
                metric.label.add(name=name, value=text)
            getattr(metric, family.kind).value = value
        body = message.SerializeToString()
        pieces += (_varint(len(body)), body)
    return b"".join(pieces)


def _length(data: bytearray, position: int) -> tuple[int, int] | None:
    """Return the varint at `position` and where it ends; None if it is incomplete.

    A varint of too many bytes counts as a length beyond MAX_MESSAGE.
    """
    value = shift = 0
    for place in range(position, min(len(data), position + _MAX_LENGTH_BYTES)):
        value |= (data[place] & 0x7F) << shift
        shift += 7
        if data[place] < 0x80:
            return value, place + 1
    return None if len(data) - position < _MAX_LENGTH_BYTES else (_TOO_LARGE, position)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _is_valid(family: Any) -> bool:
    """Return whether Prometheus ingests the family. If it refuses one family, the whole scrape fails."""
    if family.type not in _KINDS or not _NAME.fullmatch(family.name):
        return False
    field = _KINDS[family.type][1]
    return all(metric.HasField(field) and _has_valid_labels(metric) for metric in family.metric) and (
        field != "histogram" or all(_is_valid_histogram(metric.histogram) for metric in family.metric)
    )


def _has_valid_labels(metric: Any) -> bool:
    names = [label.name for label in metric.label]
    return len(set(names)) == len(names) and all(_LABEL_NAME.fullmatch(name) for name in names)


def _is_valid_histogram(histogram: Any) -> bool:
    """Return whether a native histogram passes Prometheus's checks. A classic histogram always does."""
    if not (-4 <= histogram.schema <= 8):
        return False
    sides = (
        (histogram.positive_span, histogram.positive_delta, histogram.positive_count),
        (histogram.negative_span, histogram.negative_delta, histogram.negative_count),
    )
    total: float = histogram.zero_count_float or histogram.zero_count
    for spans, deltas, counts in sides:
        if len(deltas) > MAX_BUCKETS or len(counts) > MAX_BUCKETS or len(spans) > MAX_BUCKETS:
            return False
        if any(span.offset < 0 for span in spans[1:]):
            return False
        buckets = list(counts) or _summed(deltas)
        if len(buckets) != sum(span.length for span in spans) or any(not count >= 0 for count in buckets):
            return False
        total += sum(buckets)
    if not (any(spans for spans, _, _ in sides)):
        return True
    # If some observations are NaN, the count is larger than the sum of all buckets.
    return bool(total <= (histogram.sample_count_float or histogram.sample_count) * (1 + 1e-9))


def _summed(deltas: Iterable[int]) -> list[int]:
    total, counts = 0, []
    for delta in deltas:
        total += delta
        counts.append(total)
    return counts
