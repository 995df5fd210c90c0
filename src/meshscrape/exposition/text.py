"""One source's part of a merge in the text format: whole chunks validated, then judged family by family."""

from __future__ import annotations

import re

from meshscrape.exposition.families import FamilyTable
from meshscrape.exposition.grammar import NAME, UNTYPED
from meshscrape.exposition.scan import Scanner
from meshscrape.exposition.source import MergeLimits, SourceMerge

# One family's lines, as long as they are together. It runs over canonical lines only, where a name is known
# by what follows it. Which group closed last tells what was found: h, s or p (the type's name), lone or bare.
_BLOCK = re.compile(
    rb"""
    (?:\#\ HELP\ (?P<help>NAME)\ [^\n]*\n(?=\#\ TYPE\ (?P=help)\ ))?
    \#\ TYPE\ (?P<name>NAME)\ (?:
        (?P<h>histogram)\n(?:(?P=name)_(?:bucket|sum|count)[{\ ][^\n]*\n)*
      | (?P<s>summary)\n(?:(?P=name)(?:_sum|_count)?[{\ ][^\n]*\n)*
      | (?P<p>counter|gauge|untyped)\n(?:(?P=name)[{\ ][^\n]*\n)*
    )
  | \#\ HELP\ (?P<lone>NAME)\ [^\n]*\n
  | (?P<bare>NAME)[{\ ][^\n]*\n(?:(?P=bare)[{\ ][^\n]*\n)*
    """.replace(b"NAME", NAME),
    re.VERBOSE,
)
_NAME, _BARE, _LONE = (_BLOCK.groupindex[group] for group in ("name", "bare", "lone"))


class TextMerge(SourceMerge):
    """Text in, text out: valid lines pass as they are, at the speed of two regular expressions.

    Samples that the source exposes twice pass too, as they would without the merge (Prometheus keeps the
    first and warns): knowing them would cost memory per series.
    """

    def __init__(
        self,
        name: str,
        families: FamilyTable,
        owner: int,
        limits: MergeLimits,
        scanner: Scanner,
    ) -> None:
        super().__init__(name, families, owner, limits)
        self._scanner = scanner
        # The family whose lines came last, its type, whether it is kept, and whether a HELP may still come.
        self._current: tuple[bytes, bytes] | None = None
        self._keeping = False
        self._help_open = False
        self._held_help = b""

    def _merged(self, lines: bytes, *, last: bool = False) -> bytes:
        """`lines` (whole ones) without the malformed, and without the families that are not this source's."""
        if not lines:
            return b""
        canonical, malformed = self._scanner.canonical(lines, self._families.is_distribution)
        self._malformed += malformed
        self._any_valid = self._any_valid or bool(canonical)
        data = self._held_help + canonical
        self._held_help = b""
        if not last:
            data, self._held_help = _without_last_help(data)
        if not data:
            return b""
        # The family may go on from the chunk before: its TYPE line in front makes that one case less.
        header = b"# TYPE %s %s\n" % self._current if self._current else b""
        return self._filtered(header + data, len(header))

    def _filtered(self, data: bytes, start: int) -> bytes:
        """`data[start:]` without what is not kept; `data[:start]` is the TYPE line of the family going on."""
        pieces: list[bytes] = []
        position = 0
        kept_from = start
        for match in _BLOCK.finditer(data):
            begin, end = match.span()
            if begin != position:
                break
            position = end
            if begin < start:
                kept_from = start if self._keeping else end
                continue
            wanted_from = self._judge(match, begin, end)
            if wanted_from != begin:
                pieces.append(data[kept_from:begin])
                kept_from = wanted_from
        if position != len(data):
            raise AssertionError("a line that is not canonical reached the merge")
        if not pieces:
            return data[kept_from:]
        pieces.append(data[kept_from:])
        return b"".join(pieces)

    def _judge(self, match: re.Match[bytes], begin: int, end: int) -> int:
        """From where to keep a block: its begin, where its samples begin, or its end (nothing)."""
        found = match.lastindex or 0
        name, kind = match.group(_NAME, found)
        if found == _BARE:
            return begin if self._keeps_samples(kind) else end
        if found == _LONE:
            return begin if self._keeps_help(kind) else end
        samples_from = match.end(found) + 1
        if name in self._dropped or self._families.conflicts(name, kind) or not self._has_room(name):
            return samples_from if self._keeps_despite(name, kind) else end
        self._own(name, kind)
        self._help_open = samples_from == end and match["help"] is None
        return begin

    def _keeps_despite(self, name: bytes, kind: bytes) -> bool:
        """Whether to keep the samples (never the metadata) under a TYPE line that is not for a new family.

        They stay when everything that they touch is this source's own: a repeated TYPE line, or one after the
        samples. A second TYPE line would make expfmt refuse the whole exposition.
        """
        self._help_open = False
        owners = self._families.owners(name, kind)
        if name in self._dropped or owners != {self._owner}:
            self._drop(name, kind)
            return False
        self._malformed += 1
        known = self._families.get(name)
        free = known is None and self._families.parent(name) is None
        # A type that was exposed goes on owning its series, whatever a later line calls the family.
        if free or (known is not None and self._families.widens(known[0], kind)):
            self._families.add(name, kind, self._owner)
        self._current, self._keeping = (name, kind), True
        return True

    def _keeps_samples(self, name: bytes) -> bool:
        """Whether samples of this name, which are not under their TYPE line, are this source's."""
        self._help_open = False
        base = name if name in self._families else self._families.parent(name)
        family = None if base is None else self._families.get(base)
        if base is not None and family is not None and family[1] == self._owner:
            self._current, self._keeping = (base, family[0]), True
        elif family is None and not self._is_dropped(name) and self._has_room(name):
            self._own(name, UNTYPED)
        else:
            self._drop(name, UNTYPED)
        return self._keeping

    def _keeps_help(self, name: bytes) -> bool:
        """Whether to keep a HELP line that is not right before its TYPE line."""
        if self._current is not None and self._current[0] == name:
            if self._keeping and not self._help_open:
                self._malformed += 1
            wanted = self._keeping and self._help_open
            self._help_open = False
            return wanted
        owners = self._families.owners(name, UNTYPED)
        if owners == {self._owner}:
            self._malformed += 1
            return False
        if owners or self._is_dropped(name) or not self._has_room(name):
            self._drop(name, UNTYPED)
            return False
        self._own(name, UNTYPED)
        return True

    def _own(self, name: bytes, kind: bytes) -> None:
        super()._own(name, kind)
        self._current, self._keeping, self._help_open = (name, kind), True, False

    def _drop(self, name: bytes, kind: bytes) -> None:
        super()._drop(name, kind)
        self._current, self._keeping, self._help_open = (name, kind), False, False


def _without_last_help(data: bytes) -> tuple[bytes, bytes]:
    """`data` and its last line, if that is a HELP line: the TYPE line that it belongs to may come next."""
    last = data.rfind(b"\n", 0, -1) + 1
    return (data[:last], data[last:]) if data.startswith(b"# HELP ", last) else (data, b"")
