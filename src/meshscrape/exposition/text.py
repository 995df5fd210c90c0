"""One source's part of a merge in the text format. It judges whole chunks, or if need be each family."""

from __future__ import annotations

import re
from itertools import compress

from meshscrape.exposition.families import FamilyTable
from meshscrape.exposition.grammar import NAME, UNTYPED
from meshscrape.exposition.patterns import families_end
from meshscrape.exposition.scan import Mender
from meshscrape.exposition.source import LineMerge, MergeLimits, OwnerName

# A HELP or TYPE line; name and type of a TYPE line, nothing of a HELP line.
_METADATA_LINE = re.compile(rb"# (?:TYPE ([^ ]+) (.*)|HELP )")
_METADATA = re.compile(rb"\n" + _METADATA_LINE.pattern)
_COMMENT = re.compile(rb"\n# ")
# Searching for one byte is ten times as fast as searching for more, so `#` is searched for, this many times a
# chunk at most: in a chunk with more of them, each search costs more than it saves.
_MARKS = 64
_LINE_FEED = ord("\n")
# Consecutive lines of one family, or samples without their TYPE line. The input is canonical, so the next
# character shows where a name ends. The group that closed last tells the kind of block: h, s or p (the type's
# name), lone or bare.
_BLOCK = re.compile(
    rb"""
    (?:\#\ HELP\ (?P<help>NAME)\ [^\n]*\n(?=\#\ TYPE\ (?P=help)\ ))?
    \#\ TYPE\ (?P<name>NAME)\ (?:
        (?P<h>histogram)\n(?:(?P=name)_(?:bucket|sum|count)[{\ ][^\n]*\n)*
      | (?P<s>summary)\n(?:(?P=name)(?:_sum|_count)?[{\ ][^\n]*\n)*
      | (?P<p>counter|gauge|untyped)\n(?:(?P=name)[{\ ][^\n]*\n)*
    )
  | \#\ HELP\ (?P<lone>NAME)\ [^\n]*\n
  | (?P<bare>NAME[{\ ][^\n]*\n(?:[^\#\n][^\n]*\n)*)
    """.replace(b"NAME", NAME),
    re.VERBOSE,
)
_SAMPLE_NAME = re.compile(b"^" + NAME, re.MULTILINE)
_RUN_NAME = re.compile(rb"^(%s)[{ ].*\n(?:\1[{ ].*\n)*" % NAME, re.MULTILINE)
_NAME, _BARE, _LONE = (_BLOCK.groupindex[group] for group in ("name", "bare", "lone"))


class TextMerge(LineMerge):
    """Merge text into text. The output of client libraries passes unchanged, checked by two patterns a chunk.

    Samples that the source exposes twice pass too, as they would without the merge (Prometheus keeps the
    first and warns). Detecting them would need memory per series.
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
        """Begin a source.

        A `trusted` source (the agent's own Envoy) writes valid lines, so only its family names are judged.
        """
        super().__init__(families, owner, limits, owner_name, doubtful=doubtful, openmetrics=openmetrics)
        self._trusted = trusted
        self._mender = Mender(families.is_distribution)
        # The family of the last lines and its type, whether it is kept, and whether HELP may still follow.
        self._current: tuple[bytes, bytes] | None = None
        self._keeping = False
        self._help_open = False
        self._held_help = b""
        # The number of metadata lines of a chunk that passed whole; -1: not counted.
        self._metadata_lines = -1

    def _merged(self, lines: bytes, *, last: bool = False) -> bytes:
        """See LineMerge: leave out malformed lines, and the families that belong to other sources."""
        self._metadata_lines = -1
        data = self._held_back(self._held_help + lines, last=last)
        if not data:
            return b""
        if self._takes_whole(data):
            return data
        canonical, malformed = self._mender.canonical(data + self._held_help)
        self._count_unreadable(malformed)
        self.first_malformed = self._mender.first_malformed
        canonical = self._held_back(canonical, last=last)
        if not canonical or self._takes_whole(canonical):
            return canonical
        if not canonical.startswith(b"# ") and _first_comment(canonical) == len(canonical):
            return self._kept_samples(canonical)
        # The current family may continue from the previous chunk. Repeat its TYPE line in front, so that this
        # is no special case.
        header = b"# TYPE %s %s\n" % self._current if self._current else b""
        return self._filtered(header + canonical, len(header))

    def _series(self, lines: bytes) -> int:
        """See LineMerge."""
        metadata = self._metadata_lines if self._metadata_lines >= 0 else _metadata_in(lines)
        return lines.count(b"\n") - metadata

    def _held_back(self, data: bytes, *, last: bool) -> bytes:
        """Return `data` without a HELP line at its end, and keep that line: its TYPE line may come next."""
        self._held_help = b""
        start = data.rfind(b"\n", 0, -1) + 1
        if last or not data.startswith(b"# HELP ", start):
            return data
        self._held_help = data[start:]
        return data[:start]

    def _takes_whole(self, data: bytes) -> bool:
        """Own all families of `data` and return True if all are free and look as client libraries write them.

        Otherwise change nothing and return False.
        """
        start = self._end_of_current(data)
        if start < 0 or not (self._trusted or families_end(data, start) == len(data)):
            return False
        metadata = _metadata(data, start)
        typed = [family for family in metadata if family[0]]
        if not self._own_all(typed):
            return False
        if typed:
            self._current, self._keeping = typed[-1], True
        self._help_open = _ends_with_type_alone(data)
        self._metadata_lines = len(metadata)
        return True

    def _end_of_current(self, data: bytes) -> int:
        """Return where the lines of the current family end; -1 if other lines precede the first metadata."""
        if data.startswith(b"# "):
            return 0
        start = _first_comment(data)
        if self._current is None or not self._keeping:
            return -1
        if self._trusted:
            return start
        text = b"# TYPE %s %s\n%s" % (*self._current, memoryview(data)[:start])
        return start if families_end(text, 0) == len(text) else -1

    def _filtered(self, data: bytes, start: int) -> bytes:
        """Return `data[start:]` without the families that are not kept.

        `data[:start]` is the TYPE line of the family that continues from the previous chunk.
        """
        pieces: list[bytes] = []
        position = 0
        kept_from = start
        for match in _BLOCK.finditer(data):
            begin, end = match.span()
            if begin != position:
                break
            if self._too_many_dropped:
                return b"".join((*pieces, data[kept_from:begin]))
            position = end
            if begin < start:
                kept_from = start if self._keeping else end
                continue
            if match.lastindex == _BARE:
                kept = self._kept_samples(match[0])
                if len(kept) != end - begin:
                    pieces += (data[kept_from:begin], kept)
                    kept_from = end
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
        """Return where the kept part of a block begins: its start, its first sample, or its end (none)."""
        group = match.lastindex or 0
        name, kind = match.group(_NAME, group)
        if group == _LONE:
            return begin if self._keeps_help(kind) else end
        if name in self._dropped:
            self._current, self._keeping, self._help_open = (name, kind), False, False
            return end
        samples_from = match.end(group) + 1
        if self._families.get(name) == (kind, self._owner):
            self.malformed_lines += 1
            self._current, self._keeping, self._help_open = (name, kind), True, False
            return samples_from
        if self._families.conflicts(name, kind) or not self._has_room(name):
            return samples_from if self._keeps_despite(name, kind) else end
        self._own(name, kind)
        self._help_open = samples_from == end and match["help"] is None
        return begin

    def _keeps_despite(self, name: bytes, kind: bytes) -> bool:
        """Return whether to keep the samples (never the metadata) under a TYPE line of a known family.

        The samples stay if this source owns all names involved: the TYPE line is repeated, or comes after the
        samples. A second TYPE line would make expfmt refuse the whole exposition.
        """
        self._help_open = False
        owners = self._families.owners(name, kind)
        if owners != {self._owner}:
            self._drop(name, kind)
            return False
        self.malformed_lines += 1
        known = self._families.get(name)
        free = known is None and self._families.parent(name) is None
        # A type that was already exposed keeps owning its series, even if a later line gives another type.
        if free or (known is not None and self._families.widens(known[0], kind)):
            self._families.add(name, kind, self._owner)
        self._current, self._keeping = (name, kind), True
        return True

    def _kept_samples(self, data: bytes) -> bytes:
        """Return those of the samples that are kept. There is no metadata between them, in any order."""
        names = _RUN_NAME.findall(data)
        first = dict.fromkeys(names)
        families = self._families
        new = [name for name in first if name not in families and families.parent(name) is None]
        self._own_all([(name, UNTYPED) for name in new[: self._families_left]])  # else each is judged alone
        keeps = {name: not self._too_many_dropped and self._keeps_samples(name) for name in first}
        self._keeps_samples(names[-1])
        if all(keeps.values()):
            return data
        if not any(keeps.values()):
            return b""
        lines, names = data.split(b"\n"), _SAMPLE_NAME.findall(data)
        return b"".join([line + b"\n" for line in compress(lines, map(keeps.__getitem__, names))])

    def _keeps_samples(self, name: bytes) -> bool:
        """Return whether to keep samples of this name that do not follow their TYPE line."""
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
        """Return whether to keep a HELP line that does not immediately precede its TYPE line."""
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


def _metadata(data: bytes, start: int) -> list[tuple[bytes, bytes]]:
    """Return name and type of every TYPE line from the line at `start` on, two empty ones for a HELP line."""
    found: list[tuple[bytes, bytes]] = []
    position = start
    for _ in range(_MARKS):
        position = data.find(b"#", position)
        if position < 0:
            return found
        if not position or data[position - 1] == _LINE_FEED:
            match = _METADATA_LINE.match(data, position)
            found += [] if match is None else [(match[1] or b"", match[2] or b"")]
        position += 1
    return found + _METADATA.findall(data, position)


def _first_comment(data: bytes) -> int:
    """Return where the first line that begins with `# ` begins, the end if none does."""
    position = 0
    for _ in range(_MARKS):
        position = data.find(b"#", position)
        if position < 0:
            return len(data)
        if data.startswith(b"\n# ", max(0, position - 1)):
            return position
        position += 1
    match = _COMMENT.search(data, position)
    return len(data) if match is None else match.start() + 1


def _metadata_in(lines: bytes) -> int:
    return lines.count(b"\n# ") + lines.startswith(b"# ")


def _ends_with_type_alone(data: bytes) -> bool:
    """Return whether the last line is a TYPE line without a HELP line before it, so that HELP may follow."""
    last = data.rfind(b"\n", 0, -1) + 1
    if not data.startswith(b"# TYPE ", last):
        return False
    before = data.rfind(b"\n", 0, max(0, last - 1)) + 1
    return not (last and data.startswith(b"# HELP ", before))
