"""What every source's part of a merge has in common: limits, counters, and which families it owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshscrape.exposition.families import SUFFIXES, FamilyTable
from meshscrape.exposition.lines import LineBuffer
from meshscrape.exposition.openmetrics import OpenMetricsText

# A source of which more lines than these, and more than half of its lines, are malformed is cut off.
MAX_MALFORMED = 10_000
# How many names of hidden families are kept to be shown.
SHOWN_FAMILIES = 5
LIMIT = "limit"
# Tells the name of the source that has this number.
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
    """One source's part of a merge: feed its body as it arrives, send what comes back."""

    def __init__(self, families: FamilyTable, owner: int, limits: MergeLimits, owner_name: OwnerName) -> None:
        self.bytes_in = 0
        self.series = 0
        self.malformed_lines = 0
        self.first_malformed = b""  # the beginning of the first malformed line, where one is known
        self.dropped_families = 0
        self.truncated = False
        # Why the source is cut off: nothing more of it is read. Empty while it is not.
        self.cut_off = ""
        # Families left out of this scrape, by the owner of their names; the first few by name.
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
        """Return why what was fed is not a whole exposition; empty if it is."""

    @abstractmethod
    def feed(self, chunk: bytes) -> bytes:
        """Return what this chunk adds to the merged exposition."""

    @abstractmethod
    def finish(self, complete: bool = False) -> bytes:
        """Return what is left at the body's end; `complete`: the transport knows that the body is whole."""

    def _within_bytes(self, chunk: bytes) -> bytes:
        """Return what of the chunk is within the limit on bytes."""
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
        """Own all these (name, type) and return True, or nothing of them if one is not free."""
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
        """Count a family that is left out, once."""
        if self._is_dropped(name):
            return
        self.dropped_families += 1
        owners = self._families.owners(name, kind) - {self._owner}
        by = self._owner_name(min(owners)) if owners else LIMIT
        self.hidden[by] += 1
        if len(self.hidden_names) < SHOWN_FAMILIES:
            self.hidden_names.append((name.decode(), by))
        self._dropped_bytes += len(name)
        if (
            len(self._dropped) < self._limits.max_families
            and self._dropped_bytes <= self._limits.max_name_bytes
        ):
            self._dropped[name] = kind

    def _is_dropped(self, name: bytes) -> bool:
        """Return whether this source's family of this name, or one with a series of it, is dropped."""
        base, _, suffix = name.rpartition(b"_")
        kind = self._dropped.get(base, b"")
        return name in self._dropped or b"_" + suffix in SUFFIXES.get(kind, ())

    def _has_room(self, name: bytes) -> bool:
        return self._families_left > 0 and len(name) <= self._name_bytes_left


class LineMerge(SourceMerge):
    """A source that is read line by line."""

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
        """A `doubtful` source declares a type of anything: its first malformed line ends it."""
        super().__init__(families, owner, limits, owner_name)
        self._openmetrics = OpenMetricsText() if openmetrics else None
        self._lines = LineBuffer(limits.max_line)
        self._doubtful = doubtful
        self._any_valid = False

    @property
    def problem(self) -> str:
        """See SourceMerge."""
        if self.cut_off:
            return self.cut_off
        if self._openmetrics is not None and not self._openmetrics.ended:
            return "ended without # EOF, so that its OpenMetrics is not whole"
        if self.truncated:
            return "ended in the middle of a line"
        if self.malformed_lines and not self._any_valid:
            return "sent no line of an exposition"
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
            self.malformed_lines += 1
            self.truncated = True
            rest = b""
        return self._bounded(self._merged(rest + b"\n" if rest else b"", last=True))

    @abstractmethod
    def _merged(self, lines: bytes, *, last: bool = False) -> bytes:
        """Return what of `lines` (whole ones) is sent on, with what was held back if they are the `last`."""

    @abstractmethod
    def _series(self, lines: bytes) -> int:
        """Return how many of the lines that `_merged` returned last are samples."""

    def _bounded(self, lines: bytes) -> bytes:
        """Count what is sent on; return what of it is within the limit on series."""
        self.malformed_lines += self._lines.taken_too_long()
        if self._doubtful and self.malformed_lines and not self.cut_off:
            self._cut("sent a line that is none of an exposition, and declares no type of expositions")
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
        return lines


def _without_last(lines: bytes, samples: int) -> bytes:
    """Return the lines before the last so many samples."""
    kept = lines.splitlines(keepends=True)
    while samples:
        samples -= not kept.pop().startswith(b"# ")
    return b"".join(kept)
