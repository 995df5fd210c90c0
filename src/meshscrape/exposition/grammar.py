"""Parse one line of an exposition, as strictly as the strictest parser that may read it.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/. Where Prometheus's own parser and
expfmt (promtool, client_golang) differ, the stricter one counts, because a scrape fails as a whole when the
parser refuses one line. The rules: numbers as in Go's ParseFloat (no underscores, no overflow), only the
escapes `\\\\`, `\\n` and `\\"`, no negative timestamps, no reserved or repeated label names, UTF-8, no NUL.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*"
# Labels that begin with __ are reserved for Prometheus itself; __name__ would break its ingestion.
LABEL_NAME = rb"(?:[a-zA-Z][a-zA-Z0-9_]*|_(?:[a-zA-Z0-9][a-zA-Z0-9_]*)?)"
# The loop is unrolled, because Python's re repeats a set much faster than an alternation.
LABEL_VALUE = rb'"[^"\\\n\x00]*(?:\\[\\n"][^"\\\n\x00]*)*"'
IN_BRACES = rb"[^\"{}\n]*(?:%s[^\"{}\n]*)*" % LABEL_VALUE
HELP_TEXT = rb"(?:[^\\\n\x00]|\\[\\n])*"
TIMESTAMP = rb"[0-9]{1,18}"  # milliseconds; always fits an int64

COUNTER, GAUGE, UNTYPED, HISTOGRAM, SUMMARY = TEXT_TYPES = (
    b"counter",
    b"gauge",
    b"untyped",
    b"histogram",
    b"summary",
)

# There are no possessive groups, because CPython before 3.11.5 matches them wrongly. The alternatives exclude
# each other by their first byte, so backtracking stays linear.
_METADATA = re.compile(rb"#[ \t]+(HELP|TYPE)[ \t]+(%s)(?:[ \t]+([^\n]*))?" % NAME)
_HELP = re.compile(HELP_TEXT)
_SAMPLE = re.compile(
    rb"[ \t]*(%s)[ \t]*(?:\{(%s)\}|(?=[ \t]))[ \t]*([^\s{}#\"]+)(?:[ \t]+(%s))?[ \t]*"
    % (NAME, IN_BRACES, TIMESTAMP)
)
_LABEL = rb"(%s)[ \t]*=[ \t]*(%s)[ \t]*(?:,[ \t]*|\Z)" % (LABEL_NAME, LABEL_VALUE)
_EACH_LABEL = re.compile(_LABEL)
_LABELS = re.compile(rb"(?:%s)*" % _LABEL)
_DECIMAL = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPECIAL = re.compile(rb"[+-]?(?:inf|infinity)|nan", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Metadata:
    """A HELP or TYPE line: `keyword` is b"HELP" or b"TYPE"; `text` is as written, with its escapes."""

    keyword: bytes
    name: bytes
    text: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample line; label values as written between their quotes (escaped), the timestamp in ms."""

    name: bytes
    labels: tuple[tuple[bytes, bytes], ...]
    value: bytes
    timestamp: bytes = b""

    def render(self) -> bytes:
        """Return the line in its canonical form, with its line feed."""
        labels = b",".join(b'%s="%s"' % pair for pair in self.labels)
        braces = b"{%s}" % labels if labels else b""
        time = b" " + self.timestamp if self.timestamp else b""
        return b"%s%s %s%s\n" % (self.name, braces, self.value, time)


def is_number(text: bytes) -> bool:
    """Return whether Go's ParseFloat reads `text` without an error (an overflow is an error)."""
    if _DECIMAL.fullmatch(text):
        return math.isfinite(float(text))
    return _SPECIAL.fullmatch(text) is not None


def parse_metadata(line: bytes) -> Metadata | None:
    """Parse a HELP or TYPE line (without its line feed). Return None for other comments and malformed lines.

    An OpenMetrics TYPE that the text format does not have becomes untyped.
    """
    match = _METADATA.fullmatch(line)
    if match is None:
        return None
    keyword, name, text = match[1], match[2], match[3] or b""
    if keyword == b"HELP":
        return Metadata(keyword, name, text) if _HELP.fullmatch(text) else None
    kind = text.strip(b" \t").lower()
    if kind in (b"unknown", b"info", b"stateset", b"gaugehistogram"):
        kind = UNTYPED
    return Metadata(keyword, name, kind) if kind in TEXT_TYPES else None


def parse_sample(line: bytes) -> Sample | None:
    """Parse a sample line (without its line feed). Return None if it is malformed.

    Spaces and tabs are allowed wherever parsers tolerate them.
    """
    match = _SAMPLE.fullmatch(line)
    if match is None or not is_number(match[3]):
        return None
    labels = parse_labels(match[2] or b"")
    if labels is None:
        return None
    return Sample(match[1], labels, match[3], match[4] or b"")


def parse_labels(text: bytes) -> tuple[tuple[bytes, bytes], ...] | None:
    """Parse the labels between braces. Return None if one is malformed or repeated.

    The labels keep their order, and their values keep their escapes.
    """
    stripped = text.strip(b" \t")
    if _LABELS.fullmatch(stripped) is None:
        return None
    labels = tuple((name, value[1:-1]) for name, value in _EACH_LABEL.findall(stripped))
    return labels if len({name for name, _ in labels}) == len(labels) else None
