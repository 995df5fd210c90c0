"""What every source's part of a merge has in common: limits, counters, and which families it owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from meshscrape.exposition.families import FamilyTable
from meshscrape.exposition.lines import LineBuffer


@dataclass(frozen=True, slots=True)
class MergeLimits:
    """Per source: bytes of its body, families, bytes of their names together, bytes of one line."""

    max_bytes: int = 256 << 20
    max_families: int = 20_000
    max_name_bytes: int = 2 << 20
    max_line: int = 1 << 18


class SourceMerge(ABC):
    """One source's part of a merge: feed its body as it arrives, send what comes back."""

    def __init__(self, name: str, families: FamilyTable, owner: int, limits: MergeLimits) -> None:
        self.name = name
        self.bytes_in = 0
        self.dropped_families = 0
        self.truncated = False
        self._malformed = 0
        self._families = families
        self._owner = owner
        self._limits = limits
        self._lines = LineBuffer(limits.max_line)
        self._dropped: dict[bytes, bytes] = {}
        self._families_left = limits.max_families
        self._name_bytes_left = limits.max_name_bytes
        self._dropped_bytes = 0
        self._any_valid = False
        self._over = False

    @property
    def malformed_lines(self) -> int:
        """Lines left out because they are malformed, too long or unfinished."""
        return self._malformed + self._lines.too_long

    @property
    def full(self) -> bool:
        """Whether the source sent more than the limit on bytes: nothing more is taken."""
        return self._over

    @property
    def problem(self) -> str:
        """Why what was fed is not a whole exposition, empty if it is."""
        if self.full:
            return f"sent more than {self._limits.max_bytes} bytes"
        if self.truncated:
            return "ended in the middle of a line"
        if self.malformed_lines and not self._any_valid:
            return "sent no line of an exposition"
        return ""

    def feed(self, chunk: bytes) -> bytes:
        """The valid lines that this chunk completes, ready to be sent."""
        room = self._limits.max_bytes - self.bytes_in
        if len(chunk) > room:
            self.truncated = self._over = True
            chunk = chunk[:room]
        self.bytes_in += len(chunk)
        return self._merged(self._lines.feed(chunk))

    def finish(self, complete: bool = False) -> bytes:
        """What is left, at the body's end. A last line without its line feed is left out and counted, unless
        the transport is sure that the body is `complete` (then only the line feed is missing)."""
        rest = self._lines.rest()
        if rest and not (complete and not self.truncated):
            self._malformed += 1
            self.truncated = True
            rest = b""
        return self._merged(rest + b"\n" if rest else b"", last=True)

    @abstractmethod
    def _merged(self, lines: bytes, *, last: bool = False) -> bytes:
        """What of `lines` (whole ones) is sent on, with what was held back if they are the `last`."""

    def _own(self, name: bytes, kind: bytes) -> None:
        self._families.add(name, kind, self._owner)
        self._families_left -= 1
        self._name_bytes_left -= len(name)

    def _drop(self, name: bytes, kind: bytes) -> None:
        """Count a family that is left out, once."""
        if self._is_dropped(name):
            return
        self.dropped_families += 1
        self._dropped_bytes += len(name)
        if (
            len(self._dropped) < self._limits.max_families
            and self._dropped_bytes <= self._limits.max_name_bytes
        ):
            self._dropped[name] = kind

    def _is_dropped(self, name: bytes) -> bool:
        """Whether this source's family of this name, or the one that has it among its series, was dropped."""
        base, _, suffix = name.rpartition(b"_")
        kind = self._dropped.get(base, b"")
        return name in self._dropped or b"_" + suffix in self._families.suffixes.get(kind, ())

    def _has_room(self, name: bytes) -> bool:
        return self._families_left > 0 and len(name) <= self._name_bytes_left
