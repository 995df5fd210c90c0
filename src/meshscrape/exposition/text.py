"""One source's part of a merge in the text format: whole chunks judged at once, else family by family."""

from __future__ import annotations

import re

from meshscrape.exposition.families import FamilyTable
from meshscrape.exposition.grammar import NAME, UNTYPED
from meshscrape.exposition.patterns import families_end
from meshscrape.exposition.scan import Mender
from meshscrape.exposition.source import LineMerge, MergeLimits, OwnerName

# The metadata of a chunk that was found valid, but for its first line: name and type of a TYPE line, nothing
# of a HELP line.
_METADATA = re.compile(rb"\n# (?:TYPE ([^ ]+) (.*)|HELP )")
_FIRST_METADATA = re.compile(rb"\n# ")  # finds it at twice the speed of bytes.find
_TYPE_LINE = re.compile(rb"# TYPE ([^ ]+) (.*)")
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


class TextMerge(LineMerge):
    """Text in, text out. What client libraries write passes as it is, by two regular expressions a chunk.

    Samples that the source exposes twice pass too, as they would without the merge (Prometheus keeps the
    first and warns): knowing them would cost memory per series.
    """

    def __init__(
        self,
        families: FamilyTable,
        owner: int,
        limits: MergeLimits,
        owner_name: OwnerName,
        *,
        trusted: bool = False,
        doubtful: bool = False,
        openmetrics: bool = False,
    ) -> None:
        """A `trusted` source (the agent's own Envoy) writes valid lines: only its family names are judged."""
        super().__init__(families, owner, limits, owner_name, doubtful=doubtful, openmetrics=openmetrics)
        self._trusted = trusted
        self._mender = Mender(families.is_distribution)
        # The family whose lines came last, its type, whether it is kept, and whether a HELP may still come.
        self._current: tuple[bytes, bytes] | None = None
        self._keeping = False
        self._help_open = False
        self._held_help = b""
        # Of the chunk that was taken whole; -1: not counted.
        self._metadata_lines = -1

    def _merged(self, lines: bytes, *, last: bool = False) -> bytes:
        """See LineMerge: without what is malformed, and without the families that are not this source's."""
        self._metadata_lines = -1
        data = self._held_back(self._held_help + lines, last=last)
        if not data:
            return b""
        if self._takes_whole(data):
            return data
        canonical, malformed = self._mender.canonical(data + self._held_help)
        self.malformed_lines += malformed
        self.first_malformed = self._mender.first_malformed
        canonical = self._held_back(canonical, last=last)
        if not canonical or self._takes_whole(canonical):
            return canonical
        # The family may go on from the chunk before: its TYPE line in front makes that one case less.
        header = b"# TYPE %s %s\n" % self._current if self._current else b""
        return self._filtered(header + canonical, len(header))

    def _series(self, lines: bytes) -> int:
        """See LineMerge."""
        metadata = self._metadata_lines if self._metadata_lines >= 0 else _metadata_in(lines)
        return lines.count(b"\n") - metadata

    def _held_back(self, data: bytes, *, last: bool) -> bytes:
        """Return `data` without a HELP line at its end: the TYPE line that it belongs to may come next."""
        self._held_help = b""
        start = data.rfind(b"\n", 0, -1) + 1
        if last or not data.startswith(b"# HELP ", start):
            return data
        self._held_help = data[start:]
        return data[:start]

    def _takes_whole(self, data: bytes) -> bool:
        """Own all families of `data` and return True, if all are free and as client libraries write them."""
        start = self._end_of_current(data)
        if start < 0 or not (self._trusted or families_end(data, start) == len(data)):
            return False
        metadata = _METADATA.findall(data, max(0, start - 1))
        first = _TYPE_LINE.match(data) if start == 0 else None
        found = [each for each in metadata if each[0]]
        if first is not None:
            found.insert(0, (first[1], first[2]))
        if not self._own_all(found):
            return False
        if found:
            self._current, self._keeping = found[-1], True
        self._help_open = _ends_with_type_alone(data)
        self._metadata_lines = len(metadata) + (start == 0)
        return True

    def _end_of_current(self, data: bytes) -> int:
        """Return where the lines of the current family end; -1 if others stand before the first metadata."""
        if data.startswith(b"# "):
            return 0
        following = _FIRST_METADATA.search(data)
        start = len(data) if following is None else following.start() + 1
        if self._current is None or not self._keeping:
            return -1
        if self._trusted:
            return start
        text = b"# TYPE %s %s\n%s" % (*self._current, memoryview(data)[:start])
        return start if families_end(text, 0) == len(text) else -1

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
        if name in self._dropped:
            self._current, self._keeping, self._help_open = (name, kind), False, False
            return end
        samples_from = match.end(found) + 1
        if self._families.conflicts(name, kind) or not self._has_room(name):
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
        self.malformed_lines += 1
        known = self._families.get(name)
        free = known is None and self._families.parent(name) is None
        # A type that was exposed goes on owning its series, whatever a later line calls the family.
        if free or (known is not None and self._families.widens(known[0], kind)):
            self._families.add(name, kind, self._owner)
        self._current, self._keeping = (name, kind), True
        return True

    def _keeps_samples(self, name: bytes) -> bool:
        """Return whether samples of this name, which are not under their TYPE line, are this source's."""
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
        """Return whether to keep a HELP line that is not right before its TYPE line."""
        if self._current is not None and self._current[0] == name:
            if self._keeping and not self._help_open:
                self.malformed_lines += 1
            wanted = self._keeping and self._help_open
            self._help_open = False
            return wanted
        owners = self._families.owners(name, UNTYPED)
        if owners == {self._owner}:
            self.malformed_lines += 1
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


def _metadata_in(lines: bytes) -> int:
    return lines.count(b"\n# ") + lines.startswith(b"# ")


def _ends_with_type_alone(data: bytes) -> bool:
    """Return whether the last line is a TYPE line without a HELP line before it: HELP may come after it."""
    last = data.rfind(b"\n", 0, -1) + 1
    if not data.startswith(b"# TYPE ", last):
        return False
    before = data.rfind(b"\n", 0, max(0, last - 1)) + 1
    return not (last and data.startswith(b"# HELP ", before))
