"""Whole chunks of lines validated at once: the speed of the merge.

A line is valid only if no label name is repeated, which no regular language can say in general. But a source
uses few sequences of label names, again and again. So the sequences seen (each checked once, slowly) become
alternatives of one RE2 automaton that validates whole chunks at some 600 MB/s, whatever their number; a line
that it does not know is parsed on its own, repaired to the canonical form if valid, and its sequence learned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import re2

from meshscrape.exposition.grammar import (
    HELP_TEXT,
    NAME,
    TEXT_TYPES,
    TIMESTAMP,
    Metadata,
    Sample,
    is_number,
    parse_metadata,
    parse_sample,
)

# What Go's ParseFloat reads without overflow, said with bounds; longer numbers are checked one by one.
_NUMBER = (
    rb"(?:[+-]?(?:[0-9]{1,24}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2}|[eE]-[0-9]{3})?|[+-]?Inf|NaN)"
)
_VALUE = rb'"(?:[^"\\\n\x00]|\\[\\n"])*"'
_NUMERIC_VALUE = b'"%s"' % _NUMBER
_TYPES = b"|".join(TEXT_TYPES)
_COMMENT = rb"# (?:TYPE %s (?:%s)|HELP %s %s)\n" % (NAME, _TYPES, NAME, HELP_TEXT)
# expfmt parses the values of these labels as numbers in histograms and summaries.
_NUMERIC_LABELS = (b"le", b"quantile")
_DISTRIBUTION = re.compile(rb"^# TYPE (%s) (?:histogram|summary)$" % NAME, re.MULTILINE)

MAX_SHAPES = 256
MAX_LABELS = 64
# What the learned may cost in all: each label its name and, roughly, 24 instructions for its value. At this
# bound an automaton takes 4 MB; with more, RE2 would fall back to a machine 20 times slower.
MAX_SHAPE_COST = 1 << 14
LABEL_COST = 24
AUTOMATON_BYTES = 16 << 20
# Lines that are parsed on their own before what they taught is put to use: about what a new automaton costs.
RELEARN_AFTER = 64

Shape = tuple[bytes, ...]


@dataclass(slots=True)
class _Node:
    following: dict[bytes, _Node] = field(default_factory=dict)
    is_end: bool = False


class Scanner:
    """Validates one source's lines and remembers what its lines look like; keep it between scrapes."""

    def __init__(self) -> None:
        self._shapes: set[Shape] = set()
        self._cost = 0
        self._learned = False
        self._automaton = _UNTAUGHT

    def canonical(
        self, data: bytes, is_distribution: Callable[[bytes], bool] = lambda _: False
    ) -> tuple[bytes, int]:
        """The valid lines of `data` (whole lines) in canonical form, and how many malformed ones there are.

        Canonical: one space between the parts, only HELP and TYPE comments, no blank lines. Comments of other
        kinds and blank lines are left out without being counted. `is_distribution` says whether a family seen
        before `data` is a histogram or a summary.
        """
        malformed = 0
        if b"\r" in data:
            # Only a line's end can hold it next to a line feed: values cannot hold a line feed.
            data = data.replace(b"\r\n", b"\n")
        if not data.isascii():
            data, malformed = _decodable(data)
        end = self._valid_until(data, 0)
        if end == len(data):
            return data, malformed
        pieces = [data[:end]]
        distributions = _Distributions(pieces, is_distribution)
        position, misses = end, 0
        while position < len(data):
            misses += 1
            if misses % RELEARN_AFTER == 0:
                self._relearn()
            line_end = data.index(b"\n", position)
            repaired = self._repaired(data[position:line_end], distributions)
            malformed += repaired is None
            position = self._valid_until(data, line_end + 1)
            pieces += (repaired or b"", data[line_end + 1 : position])
        self._relearn()
        return b"".join(pieces), malformed

    def _valid_until(self, data: bytes, position: int) -> int:
        match = self._automaton.match(data, position)
        end: int = match.end()
        return end

    def _repaired(self, line: bytes, distributions: _Distributions) -> bytes | None:
        """The line in canonical form, empty if it says nothing, None if malformed."""
        bare = line.strip(b" \t")
        if not bare:
            return b""
        if bare.startswith(b"#"):
            return _repaired_comment(bare)
        sample = parse_sample(line)
        if sample is None or (_has_odd_bound(sample) and distributions.include(sample.name)):
            return None
        self._learn(tuple(name for name, _ in sample.labels))
        return sample.render()

    def _learn(self, shape: Shape) -> None:
        if shape in self._shapes or not 0 < len(shape) <= MAX_LABELS:
            return
        cost = sum(map(len, shape)) + LABEL_COST * len(shape)
        if len(self._shapes) < MAX_SHAPES and self._cost + cost <= MAX_SHAPE_COST:
            self._shapes.add(shape)
            self._cost += cost
            self._learned = True

    def _relearn(self) -> None:
        if self._learned:
            self._automaton = _compile(self._shapes)
            self._learned = False


def _compile(shapes: Iterable[Shape]) -> re2._Regexp:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = True
    options.log_errors = False
    options.max_mem = AUTOMATON_BYTES
    labels = _labels(_trie(shapes), b"")
    braces = rb"(?:\{(?:%s,?)?\})?" % labels if labels else rb"(?:\{\})?"
    line = rb"(?:%s%s %s(?: %s)?\n|%s)*" % (NAME, braces, _NUMBER, TIMESTAMP, _COMMENT)
    automaton = re2.compile(line, options)
    # The module keeps every pattern that it ever compiled; a superseded automaton is of no use.
    re2.purge()
    return automaton


def _trie(shapes: Iterable[Shape]) -> _Node:
    """The shapes by what they begin with, so that the automaton follows few of them at a time."""
    root = _Node()
    for shape in shapes:
        node = root
        for name in shape:
            node = node.following.setdefault(name, _Node())
        node.is_end = True
    return root


def _labels(node: _Node, comma: bytes) -> bytes:
    """The pattern for the labels that may follow at this node."""
    alternatives = [
        comma + name + b"=" + (_NUMERIC_VALUE if name in _NUMERIC_LABELS else _VALUE) + _labels(child, b",")
        for name, child in node.following.items()
    ]
    if not alternatives:
        return b""
    return b"(?:%s)%s" % (b"|".join(alternatives), b"?" if node.is_end else b"")


def _decodable(data: bytes) -> tuple[bytes, int]:
    try:
        data.decode()
    except UnicodeDecodeError:
        lines = data.split(b"\n")[:-1]
        kept = [line + b"\n" for line in lines if _is_utf8(line)]
        return b"".join(kept), len(lines) - len(kept)
    return data, 0


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _repaired_comment(line: bytes) -> bytes | None:
    metadata = parse_metadata(line)
    if metadata is None:
        keyword = line[1:].split(maxsplit=1)
        is_metadata = line[1:2] in (b" ", b"\t") and keyword and keyword[0] in (b"HELP", b"TYPE")
        return None if is_metadata else b""
    return render_metadata(metadata)


def render_metadata(metadata: Metadata) -> bytes:
    """The HELP or TYPE line in its canonical form, with its line feed."""
    return b"# %s %s %s\n" % (metadata.keyword, metadata.name, metadata.text)


def _has_odd_bound(sample: Sample) -> bool:
    return any(name in _NUMERIC_LABELS and not is_number(value) for name, value in sample.labels)


class _Distributions:
    """Which samples are of a histogram or summary, asked while `pieces` grows; looks at each piece once."""

    def __init__(self, pieces: list[bytes], known: Callable[[bytes], bool]) -> None:
        self._pieces = pieces
        self._known = known
        self._looked_at = 0
        self._names: set[bytes] = set()

    def include(self, sample: bytes) -> bool:
        """Whether a sample of this name would be read as one of a histogram or summary."""
        for piece in self._pieces[self._looked_at :]:
            self._names.update(_DISTRIBUTION.findall(piece))
        self._looked_at = len(self._pieces)
        return any(name in self._names or self._known(name) for name in (sample, sample.rpartition(b"_")[0]))


_UNTAUGHT = _compile(())
