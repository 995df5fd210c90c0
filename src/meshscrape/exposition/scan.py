"""Mend lines that the fast patterns do not match, so that every parser reads them, or leave them out.

Most applications never need it. Spaces where parsers tolerate them, carriage returns and OpenMetrics types
are mended in whole chunks. What is left (numbers of unusual length, lines with very many labels, malformed
lines) is parsed line by line, up to a bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from meshscrape.exposition.grammar import (
    NAME,
    Metadata,
    Sample,
    is_number,
    parse_metadata,
    parse_sample,
)
from meshscrape.exposition.patterns import (
    doubled_backslashes,
    lines_end,
    tidied,
    without_noise,
    without_odd_lines,
)

# Parsing a line alone costs as much as 2 kB of other lines. So a source has a budget for it in each scrape. A
# line takes 1, and 1 for each 100 bytes, and 10 more if it is malformed. When the budget is spent, other odd
# lines count as malformed and are removed together.
BUDGET = 1_000
BYTES_OF_ONE, OF_MALFORMED = 100, 10

# How many bytes of the first malformed line are kept for the log.
SHOWN_BYTES = 120

_NUMERIC_LABELS = (b"le", b"quantile")
_DISTRIBUTION = re.compile(rb"^# TYPE (%s) (?:histogram|summary)$" % NAME, re.MULTILINE)


class Mender:
    """Bring one source's lines into canonical form during one scrape."""

    def __init__(self, is_distribution: Callable[[bytes], bool] = lambda _: False) -> None:
        """Begin a scrape. `is_distribution` says whether a known family is a histogram or a summary."""
        self._is_distribution = is_distribution
        self._left = BUDGET
        self.first_malformed = b""

    def canonical(self, data: bytes) -> tuple[bytes, int]:
        """Return the valid lines of `data` (whole lines) in canonical form, and the number of malformed ones.

        In canonical form there is one space between the parts, and no comments except HELP and TYPE. Blank
        lines and other comments are left out and not counted.
        """
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        data = without_noise(data)
        if b"\\" in data:
            data = doubled_backslashes(data)
        end = lines_end(data, 0)
        if end == len(data):
            return data, 0
        pieces = [data[:end]]
        malformed = self._mend(tidied(data[end:]), pieces)
        return b"".join(pieces), malformed

    def _mend(self, data: bytes, pieces: list[bytes]) -> int:
        """Append the valid lines of `data` to `pieces`; return the number of malformed ones."""
        distributions = _Distributions(pieces, self._is_distribution)
        malformed = position = 0
        while (end := lines_end(data, position)) < len(data):
            pieces.append(data[position:end])
            position = data.index(b"\n", end) + 1
            price = 1 + (position - end) // BYTES_OF_ONE
            if price > self._left:
                self._left = 0
                self.first_malformed = (
                    self.first_malformed or data[end : min(position - 1, end + SHOWN_BYTES)]
                )
                rest = without_odd_lines(data[end:])
                pieces.append(rest)
                return malformed + data.count(b"\n", end) - rest.count(b"\n")
            line = data[end : position - 1]
            mended = _mended(line, distributions)
            if mended is None:
                malformed += 1
                self.first_malformed = self.first_malformed or line[:SHOWN_BYTES]
                price += OF_MALFORMED
            self._left -= price
            pieces.append(mended or b"")
        pieces.append(data[position:])
        return malformed


def render_metadata(metadata: Metadata) -> bytes:
    """Return the HELP or TYPE line in its canonical form, with its line feed."""
    return b"# %s %s %s\n" % (metadata.keyword, metadata.name, metadata.text)


def _mended(line: bytes, distributions: _Distributions) -> bytes | None:
    """Return the line in canonical form; None for a malformed one. There are no blank lines any more."""
    bare = line.strip(b" \t")
    if not _is_utf8(bare):
        return None
    if bare.startswith(b"#"):
        metadata = parse_metadata(bare)
        return None if metadata is None else render_metadata(metadata)
    sample = parse_sample(line)
    if sample is None or (_has_odd_bound(sample) and distributions.include(sample.name)):
        return None
    return sample.render()


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_odd_bound(sample: Sample) -> bool:
    return any(name in _NUMERIC_LABELS and not is_number(value) for name, value in sample.labels)


class _Distributions:
    """Find out which samples belong to a histogram or summary. Each of the growing `pieces` is read once."""

    def __init__(self, pieces: list[bytes], known: Callable[[bytes], bool]) -> None:
        self._pieces = pieces
        self._known = known
        self._read = 0
        self._names: set[bytes] = set()

    def include(self, sample: bytes) -> bool:
        """Return whether a parser takes a sample of this name as part of a histogram or summary."""
        for piece in self._pieces[self._read :]:
            self._names.update(_DISTRIBUTION.findall(piece))
        self._read = len(self._pieces)
        names = (sample, sample.rpartition(b"_")[0])
        return any(name in self._names or self._known(name) for name in names)
