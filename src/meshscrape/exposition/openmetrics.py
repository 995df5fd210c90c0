"""OpenMetrics that a source sends although text was asked for, made text.

Some libraries know nothing else (Rust's `prometheus-client`). The samples keep their names and values. What
text has no word for goes: exemplars, units, and the type of a counter `x` whose series is `x_total`.
"""

from __future__ import annotations

import re
from decimal import Decimal

_END = b"# EOF\n"
_QUOTED = rb'"(?:[^"\\\n]|\\.)*"'
# What stands before an exemplar: ` # ` cannot be inside a value, and a name has no space.
_EXEMPLAR = re.compile(rb'^([^#"\n]*(?:%s[^#"\n]*)*)[ ]#[ ]\{[^\n]*$' % _QUOTED, re.MULTILINE)
_TIME = re.compile(
    rb'^([^#"\n{ ]+(?:\{[^"\n}]*(?:%s[^"\n}]*)*\})?[ ][^ \n]+)[ ](-?[0-9]{1,18}(?:\.[0-9]{1,9})?)$' % _QUOTED,
    re.MULTILINE,
)


class OpenMetricsText:
    """Turns whole lines of OpenMetrics into text until its end mark; nothing behind the mark is read."""

    def __init__(self) -> None:
        self.ended = False

    def text(self, lines: bytes) -> bytes:
        """Return the lines as text; milliseconds instead of seconds, no exemplars."""
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
