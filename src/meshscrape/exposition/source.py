"""The common base of each source's part of a merge: limits, counters, and the families it owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshscrape.exposition.families import SUFFIXES, FamilyTable
from meshscrape.exposition.lines import LineBuffer
from meshscrape.exposition.openmetrics import OpenMetricsText

# A source is cut off when more lines than this are malformed, and more than half of its lines.
MAX_MALFORMED = 10_000
# The same for lines that Prometheus cannot read either (it reads repeated metadata): for one, it would refuse
# the whole scrape. A source may have this many, and more if it has ten times as many series.
MAX_UNREADABLE = 1_000
# A source is cut off when more of its families than this are left out: each costs 5 µs, whatever its size.
MAX_DROPPED = 5_000
TOO_MANY_DROPPED = "sent too many families that must be left out"
# How many names of hidden families are kept for the health metrics.
SHOWN_FAMILIES = 5
LIMIT = "limit"
# Maps the number of a source to its name.
OwnerName = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class MergeLimits:
    """Per source: bytes of its body, series, families, bytes of their names together, bytes of one line."""

    max_bytes: int = 256 << 20
    max_series: int = 1_000_000
    max_families: int = 20_000
    max_name_bytes: int = 2 << 20
    max_line: int = 1 << 18


class SourceMerge(ABC):
    """One source's part of a merge: feed its body as it arrives, and send on what `feed` returns."""

    def __init__(self, families: FamilyTable, owner: int, limits: MergeLimits, owner_name: OwnerName) -> None:
        self.bytes_in = 0
        self.series = 0
        self.malformed_lines = 0
        self.first_malformed = b""  # the beginning of the first malformed line, where one is known
        self.dropped_families = 0
        self.truncated = False
        # Why the source is cut off, which means that the rest of its body is ignored. Empty if it is not.
        self.cut_off = ""
        # Families left out of this scrape, counted per owner of their names; the first few also by name.
        self.hidden: Counter[str] = Counter()
        self.hidden_names: list[tuple[str, str]] = []
        self._families = families
        self._owner = owner
        self._owner_name = owner_name
        self._limits = limits
        self._dropped: dict[bytes, bytes] = {}
        self._families_left = limits.max_families
        self._name_bytes_left = limits.max_name_bytes
        self._dropped_bytes = 0

    @property
    @abstractmethod
    def problem(self) -> str:
        """Return why the body is not a whole exposition; empty if it is."""

    @abstractmethod
    def feed(self, chunk: bytes) -> bytes:
        """Return what this chunk adds to the merged exposition."""

    @abstractmethod
    def finish(self, complete: bool = False) -> bytes:
        """Return what the end of the body adds. `complete`: the transport knows that the body is whole."""

    def _within_bytes(self, chunk: bytes) -> bytes:
        """Return the part of the chunk that is within the limit on bytes."""
        room = self._limits.max_bytes - self.bytes_in
        if len(chunk) > room:
            self._cut(f"sent more than {self._limits.max_bytes} bytes")
            chunk = chunk[:room]
        self.bytes_in += len(chunk)
        return chunk

    def _cut(self, why: str) -> None:
        self.truncated = True
        self.cut_off = why

    def _own(self, name: bytes, kind: bytes) -> None:
        self._families.add(name, kind, self._owner)
        self._families_left -= 1
        self._name_bytes_left -= len(name)

    def _own_all(self, found: Sequence[tuple[bytes, bytes]]) -> bool:
        """Take ownership of all these (name, type) and return True. If one is not free, take none."""
        size = sum([len(name) for name, _ in found])
        if len(found) > self._families_left or size > self._name_bytes_left:
            return False
        if self._dropped and any(self._is_dropped(name) for name, _ in found):
            return False
        if not self._families.add_all(found, self._owner):
            return False
        self._families_left -= len(found)
        self._name_bytes_left -= size
        return True

    def _drop(self, name: bytes, kind: bytes) -> None:
        """Count a family that is left out; each family counts once."""
        if self._is_dropped(name):
            return
        self.dropped_families += 1
        self._dropped[name] = kind
        owners = self._families.owners(name, kind) - {self._owner}
        by = self._owner_name(min(owners)) if owners else LIMIT
        self.hidden[by] += 1
        if len(self.hidden_names) < SHOWN_FAMILIES:
            self.hidden_names.append((name.decode(), by))
        self._dropped_bytes += len(name)
        if self._too_many_dropped:
            self._cut(TOO_MANY_DROPPED)

    @property
    def _too_many_dropped(self) -> bool:
        return self.dropped_families > MAX_DROPPED or self._dropped_bytes > self._limits.max_name_bytes

    def _is_dropped(self, name: bytes) -> bool:
        """Return whether a dropped family of this source has this name, or a series of this name."""
        base, _, suffix = name.rpartition(b"_")
        kind = self._dropped.get(base, b"")
        return name in self._dropped or b"_" + suffix in SUFFIXES.get(kind, ())

    def _has_room(self, name: bytes) -> bool:
        return self._families_left > 0 and len(name) <= self._name_bytes_left


class LineMerge(SourceMerge):
    """A source whose format consists of lines."""

    def __init__(
        self,
        families: FamilyTable,
        owner: int,
        limits: MergeLimits,
        owner_name: OwnerName,
        *,
        doubtful: bool = False,
        openmetrics: bool = False,
    ) -> None:
        """Begin a source. A `doubtful` source declares a generic type: it is cut off at a malformed line."""
        super().__init__(families, owner, limits, owner_name)
        self._openmetrics = OpenMetricsText() if openmetrics else None
        self._lines = LineBuffer(limits.max_line)
        self._doubtful = doubtful
        self._any_valid = False
        self._unreadable = 0

    @property
    def problem(self) -> str:
        """See SourceMerge."""
        if self.cut_off:
            return self.cut_off
        if self._openmetrics is not None and not self._openmetrics.ended:
            return "ended without # EOF, so its OpenMetrics is incomplete"
        if self.truncated:
            return "ended in the middle of a line"
        if self.malformed_lines and not self._any_valid:
            return "sent no valid line of an exposition"
        return ""

    def feed(self, chunk: bytes) -> bytes:
        """See SourceMerge: the valid lines that this chunk completes."""
        lines = self._lines.feed(self._within_bytes(chunk))
        if self._openmetrics is not None:
            lines = self._openmetrics.text(lines)
        return self._bounded(self._merged(lines))

    def finish(self, complete: bool = False) -> bytes:
        """See SourceMerge. A last line without its line feed is left out and counted, unless `complete`."""
        rest = self._lines.rest()
        if self._openmetrics is not None:
            self._openmetrics.ended |= rest == b"# EOF"
            self.truncated |= not self._openmetrics.ended
            rest = b"" if self._openmetrics.ended else rest
        if rest and not (complete and not self.truncated):
            self._count_unreadable(1)
            self.truncated = True
            rest = b""
        return self._bounded(self._merged(rest + b"\n" if rest else b"", last=True))

    @abstractmethod
    def _merged(self, lines: bytes, *, last: bool = False) -> bytes:
        """Return the part of `lines` (whole lines) to send on. With `last`, also what was held back."""

    @abstractmethod
    def _series(self, lines: bytes) -> int:
        """Return the number of samples in the lines that `_merged` has just returned."""

    def _count_unreadable(self, lines: int) -> None:
        self.malformed_lines += lines
        self._unreadable += lines

    def _bounded(self, lines: bytes) -> bytes:
        """Count the lines to send on; return those within the limit on series."""
        self._count_unreadable(self._lines.taken_too_long())
        if self._doubtful and self.malformed_lines and not self.cut_off:
            self._cut("sent a malformed line, and its Content-Type is not one of expositions")
            return b""
        if lines:
            self._any_valid = True
            self.series += self._series(lines)
            excess = self.series - self._limits.max_series
            if excess > 0:
                self._cut(f"sent more than {self._limits.max_series} series")
                self.series -= excess
                lines = _without_last(lines, excess)
        if self.malformed_lines > max(MAX_MALFORMED, self.series):
            self._cut("sent more malformed lines than valid ones")
        elif self._unreadable > max(MAX_UNREADABLE, self.series // 10):
            self._cut(f"sent more than {MAX_UNREADABLE} malformed lines, and one for ten series")
        return lines


def _without_last(lines: bytes, samples: int) -> bytes:
    """Return the lines without the last `samples` samples."""
    kept = lines.splitlines(keepends=True)
    while samples:
        samples -= not kept.pop().startswith(b"# ")
    return b"".join(kept)
