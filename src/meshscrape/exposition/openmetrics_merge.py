"""One source's part of a merge in OpenMetrics, whichever of the two formats the source speaks.

Line by line and a family at a time, because OpenMetrics asks for more than lines can say. A family larger
than PART_BYTES is sent on in parts where each of its samples stands alone; a distribution larger than
HELD_BYTES is left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from meshscrape.exposition import grammar
from meshscrape.exposition.families import OPENMETRICS_SUFFIXES, TEXT_SUFFIXES, FamilyTable
from meshscrape.exposition.negotiate import Format
from meshscrape.exposition.openmetrics import (
    UNKNOWN,
    Point,
    PointFamily,
    arranged,
    demoted,
    distinct,
    escaped_help,
    parse_metadata,
    parse_point,
    seconds,
)
from meshscrape.exposition.source import MergeLimits, SourceMerge

HELD_BYTES = 2 << 20
# A part keeps the event loop for 50 ms.
PART_BYTES = 1 << 18


@dataclass(slots=True)
class _Open:
    """The family whose lines are coming, in the source's own terms."""

    name: bytes
    kind: bytes | None = None
    help: bytes | None = None
    unit: bytes | None = None
    points: list[Point] = field(default_factory=list)
    size: int = 0
    too_large: bool = False
    # Of what was sent on already: the series (their hashes), and the type that the family got.
    seen: set[int] = field(default_factory=set)
    exposed_as: bytes | None = None


class OpenMetricsMerge(SourceMerge):
    """Text or OpenMetrics in, OpenMetrics (without its end) out."""

    def __init__(
        self, name: str, families: FamilyTable, owner: int, limits: MergeLimits, dialect: Format
    ) -> None:
        super().__init__(name, families, owner, limits)
        self._text = dialect is Format.TEXT
        self._suffixes = TEXT_SUFFIXES if self._text else OPENMETRICS_SUFFIXES
        self._open: _Open | None = None

    def _merged(self, lines: bytes, *, last: bool = False) -> bytes:
        pieces: list[bytes] = []
        for line in lines.split(b"\n")[:-1]:
            pieces.append(self._line(line.removesuffix(b"\r")))
        if last:
            pieces.append(self._close())
        return b"".join(pieces)

    def _line(self, line: bytes) -> bytes:
        """Take one line; the family before it, if it begins another."""
        stripped = line.strip(b" \t")
        if not _is_utf8(line):
            self._malformed += 1
        elif stripped.startswith(b"#"):
            return self._comment(stripped)
        elif stripped:
            point = self._point(line)
            if point is not None:
                return self._sample(point, len(line))
            self._malformed += 1
        return b""

    def _point(self, line: bytes) -> Point | None:
        if not self._text:
            return parse_point(line)
        sample = grammar.parse_sample(line)
        if sample is None:
            return None
        return Point(sample.name, sample.labels, sample.value, seconds(sample.timestamp))

    def _comment(self, line: bytes) -> bytes:
        metadata = self._metadata(line)
        if metadata is None:
            words = line[1:].split(maxsplit=1)
            self._malformed += bool(words) and words[0] in (b"HELP", b"TYPE", b"UNIT")
            return b""
        self._any_valid = True
        keyword, name, text = metadata
        out = b""
        if self._open is None or self._open.name != name:
            out = self._close()
            self._open = _Open(name)
        attribute = {b"HELP": "help", b"TYPE": "kind", b"UNIT": "unit"}[keyword]
        if self._open.points or getattr(self._open, attribute) is not None:
            self._malformed += 1
        else:
            setattr(self._open, attribute, text)
        return out

    def _metadata(self, line: bytes) -> tuple[bytes, bytes, bytes] | None:
        if not self._text:
            return parse_metadata(line)
        metadata = grammar.parse_metadata(line)
        return None if metadata is None else (metadata.keyword, metadata.name, metadata.text)

    def _sample(self, point: Point, size: int) -> bytes:
        self._any_valid = True
        out = b""
        if self._open is None or not self._belongs(point.name, self._open):
            out = self._close()
            self._open = _Open(point.name)
        family = self._open
        family.size += size
        if not family.too_large:
            family.points.append(point)
        if family.size > PART_BYTES and self._is_simple(family):
            family.size = 0
            return out + self._flush(family)
        if family.size > HELD_BYTES:
            family.too_large = True
            family.points.clear()
        return out

    def _is_simple(self, family: _Open) -> bool:
        """Whether each sample is a group of its own, so that the family need not be whole to be sent on."""
        return family.kind in (None, b"gauge", UNKNOWN, grammar.UNTYPED) or (
            self._text and family.kind == b"counter"
        )

    def _belongs(self, name: bytes, family: _Open) -> bool:
        """Whether a sample of this name is of the family; in OpenMetrics a counter's own name is none."""
        kind = family.kind or UNKNOWN
        suffixes = self._suffixes.get(kind, ())
        if name == family.name:
            return not suffixes or kind == b"summary"
        return name.startswith(family.name) and name[len(family.name) :] in suffixes

    def _close(self) -> bytes:
        """What is left of the open family, as it is exposed."""
        family, self._open = self._open, None
        if family is None:
            return b""
        if family.too_large:
            self._drop(family.name, family.kind or UNKNOWN)
            return b""
        return self._flush(family) if family.points else b""

    def _flush(self, family: _Open) -> bytes:
        """The held samples as they are exposed: the whole family, or (of a large simple one) a part of it."""
        points = distinct(family.points, family.seen)
        self._malformed += len(family.points) - len(points)
        family.points = []
        if family.exposed_as is None:
            family.exposed_as, out = self._begin(family, points)
            return out
        # The family has begun: what its type does not allow can only be left out now.
        allowed = [p for p in points if family.exposed_as != b"counter" or p.number() >= 0]
        if not family.exposed_as:
            return b""
        self._malformed += len(points) - len(allowed)
        return b"".join(replace(point, exemplar=b"").render() for point in allowed)

    def _begin(self, family: _Open, points: list[Point]) -> tuple[bytes, bytes]:
        """The type that the family gets (empty: it is another's, or one too many) and its text so far."""
        name, kind = self._identity(family)
        owners = self._families.owners(name, kind)
        if (owners and owners != {self._owner}) or self._is_dropped(name) or not self._has_room(name):
            self._drop(name, kind)
            return b"", b""
        ordered = None if owners else arranged(kind, name, points)
        text = None if family.help is None else escaped_help(family.help)
        if ordered is None:
            out = self._as_unknown(points, text)
            return UNKNOWN if out else b"", out
        self._own(name, kind)
        unit = family.unit or b""
        if kind in (b"info", b"stateset") or not name.endswith(b"_" + unit):
            unit = b""
        return kind, PointFamily(name, kind, ordered, text, unit).render()

    def _identity(self, family: _Open) -> tuple[bytes, bytes]:
        """Name and type in OpenMetrics: a text counter loses its `_total`, and is unknown if it has none."""
        kind = family.kind or UNKNOWN
        if not self._text:
            return family.name, kind
        if kind == b"counter":
            base = family.name.removesuffix(b"_total")
            return (base, kind) if base and base != family.name else (family.name, UNKNOWN)
        return family.name, UNKNOWN if kind == grammar.UNTYPED else kind

    def _as_unknown(self, points: list[Point], text: bytes | None) -> bytes:
        """The samples as families of type unknown, those left out whose names are taken."""
        pieces = []
        for name, members in demoted(points):
            if self._families.conflicts(name, UNKNOWN) or not self._has_room(name):
                self._drop(name, UNKNOWN)
                continue
            self._own(name, UNKNOWN)
            pieces.append(PointFamily(name, UNKNOWN, members, text).render())
        return b"".join(pieces)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
