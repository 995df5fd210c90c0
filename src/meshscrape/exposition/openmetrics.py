"""Convert OpenMetrics to text, for sources that send it although text was requested.

Some libraries support nothing else (Rust's `prometheus-client`). The samples keep their names and values.
What the text format cannot express is lost: exemplars, units, and the type of a counter `x` with a series
`x_total`.
"""

from __future__ import annotations

import re
from decimal import Decimal

_END = b"# EOF\n"
_QUOTED = rb'"(?:[^"\\\n]|\\.)*"'
# The part of a line before an exemplar. ` # ` marks it: no number contains it, and a name has no space.
_EXEMPLAR = re.compile(rb'^([^#"\n]*(?:%s[^#"\n]*)*)[ ]#[ ]\{[^\n]*$' % _QUOTED, re.MULTILINE)
_TIME = re.compile(
    rb'^([^#"\n{ ]+(?:\{[^"\n}]*(?:%s[^"\n}]*)*\})?[ ][^ \n]+)[ ](-?[0-9]{1,18}(?:\.[0-9]{1,9})?)$' % _QUOTED,
    re.MULTILINE,
)


class OpenMetricsText:
    """Convert whole lines of OpenMetrics to text. Lines after the end mark are ignored."""

    def __init__(self) -> None:
        self.ended = False

    def text(self, lines: bytes) -> bytes:
        """Return the lines as text: timestamps in milliseconds instead of seconds, no exemplars."""
        if self.ended:
            return b""
        end = 0 if lines.startswith(_END) else lines.find(b"\n" + _END) + 1
        if end or lines.startswith(_END):
            self.ended = True
            lines = lines[:end]
        lines = _EXEMPLAR.sub(rb"\1", lines)
        return _TIME.sub(lambda match: b"%s %d" % (match[1], _milliseconds(match[2])), lines)


def _milliseconds(seconds: bytes) -> int:
    return int(Decimal(seconds.decode()) * 1000)
