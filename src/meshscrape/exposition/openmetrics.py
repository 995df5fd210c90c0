"""OpenMetrics 1.0: its lines, what makes a family of each type valid, and how text becomes it.

The specification: https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md. Where a
family does not meet what its type asks for, it is exposed as families of type unknown, one per series name:
no sample is lost for the sake of a type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meshscrape.exposition.grammar import IN_BRACES, NAME, is_number, parse_labels

UNKNOWN = b"unknown"
TYPES = (b"counter", b"gauge", b"histogram", b"gaugehistogram", b"summary", b"info", b"stateset", UNKNOWN)
MAX_EXEMPLAR = 128  # characters of label names and values together

_TIME = rb"-?[0-9]{1,18}(?:\.[0-9]{1,9})?"
_LABELS = rb"\{(%s)\}" % IN_BRACES
_VALUE = rb" ([^\s{}#\"]+)(?: (%s))?" % _TIME
_SAMPLE = re.compile(rb"(%s)(?:%s)?%s(?: # %s%s)?" % (NAME, _LABELS, _VALUE, _LABELS, _VALUE))
_METADATA = re.compile(rb"# (HELP|TYPE|UNIT) (%s)(?: ([^\n]*))?" % NAME)
_HELP = re.compile(rb'(?:[^\\\n\x00]|\\[\\n"])*')
_UNIT = re.compile(rb"[a-zA-Z0-9_:]+")
_QUOTE = re.compile(rb'\\.|"', re.DOTALL)

Labels = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One sample: `time` in seconds as written (empty: none), `exemplar` rendered from its ` # ` on."""

    name: bytes
    labels: Labels
    value: bytes
    time: bytes = b""
    exemplar: bytes = b""

    def render(self) -> bytes:
        """The line with its line feed."""
        labels = b"{%s}" % b",".join(b'%s="%s"' % pair for pair in self.labels) if self.labels else b""
        time = b" " + self.time if self.time else b""
        return b"%s%s %s%s%s\n" % (self.name, labels, self.value, time, self.exemplar)

    def number(self) -> float:
        """The value as a number."""
        return float(self.value)

    def label(self, name: bytes) -> bytes | None:
        """A label's value, still escaped."""
        return dict(self.labels).get(name)

    def without(self, name: bytes) -> Labels:
        """The labels, sorted, but for one: what a group of samples has in common."""
        return tuple(sorted(pair for pair in self.labels if pair[0] != name))


@dataclass(frozen=True, slots=True)
class PointFamily:
    """A family as it is exposed; `help` escaped."""

    name: bytes
    kind: bytes
    points: Sequence[Point]
    help: bytes | None = None
    unit: bytes = b""

    def render(self) -> bytes:
        """Metadata and samples."""
        head = [b"# TYPE %s %s\n" % (self.name, self.kind)]
        if self.unit:
            head.append(b"# UNIT %s %s\n" % (self.name, self.unit))
        if self.help is not None:
            head.append(b"# HELP %s %s\n" % (self.name, self.help))
        return b"".join((*head, *(point.render() for point in self.points)))


def parse_metadata(line: bytes) -> tuple[bytes, bytes, bytes] | None:
    """(keyword, name, text) of a HELP, TYPE or UNIT line in OpenMetrics; None for other or malformed ones."""
    match = _METADATA.fullmatch(line)
    if match is None:
        return None
    keyword, name, text = match[1], match[2], match[3] or b""
    valid = {
        b"HELP": _HELP.fullmatch(text) is not None,
        b"TYPE": text in TYPES,
        b"UNIT": not text or _UNIT.fullmatch(text) is not None,
    }
    return (keyword, name, text) if valid[keyword] else None


def parse_point(line: bytes) -> Point | None:
    """A sample line in OpenMetrics (without its line feed), None if malformed. A bad exemplar is left out."""
    match = _SAMPLE.fullmatch(line)
    if match is None or not is_number(match[3]):
        return None
    labels = parse_labels(match[2] or b"")
    if labels is None:
        return None
    exemplar = b"" if match[6] is None else _exemplar(match[5], match[6], match[7])
    return Point(match[1], labels, match[3], match[4] or b"", exemplar)


def _exemplar(labels: bytes, value: bytes, time: bytes | None) -> bytes:
    pairs = parse_labels(labels)
    if pairs is None or not is_number(value) or rb"\"" in labels:
        return b""
    if sum(len(name) + len(text.decode()) for name, text in pairs) > MAX_EXEMPLAR:
        return b""
    inside = b",".join(b'%s="%s"' % pair for pair in pairs)
    return b" # {%s} %s%s" % (inside, value, b" " + time if time else b"")


def seconds(milliseconds: bytes) -> bytes:
    """The text format's timestamp as OpenMetrics writes it."""
    if not milliseconds:
        return b""
    whole, part = divmod(int(milliseconds), 1000)
    return b"%d.%03d" % (whole, part) if part else b"%d" % whole


def escaped_help(text: bytes) -> bytes:
    """A HELP text of either format, escaped as OpenMetrics wants it: quotes too."""
    return _QUOTE.sub(lambda match: rb"\"" if match[0] == b'"' else match[0], text)


def distinct(points: Sequence[Point], seen: set[int]) -> list[Point]:
    """`points` without those whose name and labels came before: OpenMetrics knows a series once.

    `seen` are the hashes of those that came before, to which these are added.
    """
    kept = []
    for point in points:
        key = hash((point.name, tuple(sorted(point.labels))))
        if key not in seen:
            seen.add(key)
            kept.append(point)
    return kept


def arranged(kind: bytes, name: bytes, points: Sequence[Point]) -> list[Point] | None:
    """`points` (distinct) in the order that the type asks for; None if they do not make a family of it."""
    group_of, check, may_have_exemplar = _RULES[kind]
    groups: dict[Labels, list[Point]] = {}
    for point in points:
        groups.setdefault(group_of(name, point), []).append(_bare(point, name, may_have_exemplar))
    result: list[Point] = []
    for group in groups.values():
        ordered = check(name, group)
        if ordered is None or len({point.time for point in ordered}) > 1:
            return None
        result += ordered
    return result


def demoted(points: Sequence[Point]) -> list[tuple[bytes, list[Point]]]:
    """The same samples as families of type unknown: (name, points) of each."""
    families: dict[bytes, list[Point]] = {}
    for point in points:
        families.setdefault(point.name, []).append(replace(point, exemplar=b""))
    return list(families.items())


def _bare(point: Point, name: bytes, may_have_exemplar: tuple[bytes, ...]) -> Point:
    if point.exemplar and point.name[len(name) :] not in may_have_exemplar:
        return replace(point, exemplar=b"")
    return point


def _all_labels(_: bytes, point: Point) -> Labels:
    return point.without(b"")


def _buckets_apart(name: bytes, point: Point) -> Labels:
    return point.without(b"le" if point.name == name + b"_bucket" else b"")


def _quantiles_apart(name: bytes, point: Point) -> Labels:
    return point.without(b"quantile" if point.name == name else b"")


def _states_apart(name: bytes, point: Point) -> Labels:
    return point.without(name)


def _plain(_: bytes, group: list[Point]) -> list[Point] | None:
    return group


def _counter(name: bytes, group: list[Point]) -> list[Point] | None:
    total = [point for point in group if point.name == name + b"_total"]
    created = [point for point in group if point.name == name + b"_created"]
    return total + created if total and total[0].number() >= 0 else None


def _one_group(_: bytes, __: Point) -> Labels:
    return ()


def _info(_: bytes, group: list[Point]) -> list[Point] | None:
    return group if all(point.number() == 1 for point in group) else None


def _stateset(name: bytes, group: list[Point]) -> list[Point] | None:
    valid = all(point.number() in (0, 1) and point.label(name) is not None for point in group)
    return group if valid else None


def _summary(name: bytes, group: list[Point]) -> list[Point] | None:
    for point in group:
        number = point.number()
        if point.name == name:
            quantile = point.label(b"quantile")
            if quantile is None or not is_number(quantile) or not 0 <= float(quantile) <= 1 or number < 0:
                return None
        elif not _is_count_or_sum(name, point):
            return None
    return group


def _is_count_or_sum(name: bytes, point: Point) -> bool:
    """Whether the value suits what a summary's sample beside its quantiles is."""
    if point.name == name + b"_created":
        return True
    return point.number() >= 0 and (point.name != name + b"_count" or point.number().is_integer())


def _histogram(name: bytes, group: list[Point]) -> list[Point] | None:
    """Buckets in ascending order up to +Inf with growing whole counts, then sum and count, which agree."""
    ordered = _buckets(name, group)
    if ordered is None:
        return None
    by_name = {point.name[len(name) :]: point for point in group}
    gauge = b"_gcount" in by_name or b"_gsum" in by_name
    count, total = (
        by_name.get(b"_gcount" if gauge else b"_count"),
        by_name.get(b"_gsum" if gauge else b"_sum"),
    )
    if (count is None) != (total is None):
        return None
    if count is not None and total is not None:
        if count.number() != ordered[-1].number() or not total.number() >= 0:
            return None
        if float(ordered[0].label(b"le") or b"0") < 0:
            return None
        ordered += [count, total]
    return ordered + [point for suffix, point in by_name.items() if suffix == b"_created"]


def _buckets(name: bytes, group: list[Point]) -> list[Point] | None:
    buckets: list[tuple[float, Point]] = []
    for point in group:
        if point.name != name + b"_bucket":
            continue
        bound, number = point.label(b"le"), point.number()
        if bound is None or not is_number(bound) or not (number >= 0 and number.is_integer()):
            return None
        value = float(bound)
        if value == float("inf"):
            point = replace(point, labels=tuple((n, b"+Inf" if n == b"le" else v) for n, v in point.labels))
        buckets.append((value, point))
    buckets.sort(key=lambda pair: pair[0])
    bounds = [bound for bound, _ in buckets]
    if not buckets or bounds[-1] != float("inf") or len(set(bounds)) != len(bounds):
        return None
    numbers = [point.number() for _, point in buckets]
    return [point for _, point in buckets] if numbers == sorted(numbers) else None


_Check = Callable[[bytes, list[Point]], list[Point] | None]
# Per type: what a group of samples has in common, whether it is whole, which suffixes may have an exemplar.
_RULES: dict[bytes, tuple[Callable[[bytes, Point], Labels], _Check, tuple[bytes, ...]]] = {
    b"counter": (_all_labels, _counter, (b"_total",)),
    b"gauge": (_all_labels, _plain, ()),
    UNKNOWN: (_all_labels, _plain, ()),
    b"histogram": (_buckets_apart, _histogram, (b"_bucket",)),
    b"gaugehistogram": (_buckets_apart, _histogram, (b"_bucket",)),
    b"summary": (_quantiles_apart, _summary, ()),
    b"info": (_one_group, _info, ()),
    b"stateset": (_states_apart, _stateset, ()),
}
