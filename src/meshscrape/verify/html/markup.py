"""Build HTML and SVG as well-formed text that escapes everything from outside (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

# Characters that XML 1.0 forbids even when escaped, and characters that reverse or hide the text around them
# (Unicode, UAX #9).
_UNFIT = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    "|[\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_VOID = frozenset({"meta", "br", "hr"})


class Markup(str):
    """Text that is already markup. Only `element`, `join` and literals of this program make it."""

    __slots__ = ()


Child = Markup | str


def element(name: str, /, *children: Child, **attributes: str | float) -> Markup:
    """Return `<name …>children</name>`. A child that is not Markup is text and is escaped.

    `class_` loses its underscore. Other underscores become hyphens (`stroke_width`).
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(clean(str(value)))}"'
        for key, value in attributes.items()
    )
    if name in _VOID:
        return Markup(f"<{name}{given} />")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Return the children one after the other, text escaped."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(clean(child), quote=False) for child in children
        )
    )


def clean(text: str) -> str:
    """Return `text` without characters that HTML cannot hold or that would disguise the text."""
    return _UNFIT.sub("?", text)


def fit(text: str, width: float, size: float = 11.5) -> str:
    """Return `text`, shortened to `width` pixels in a common sans-serif face of `size` pixels."""
    limit = len(text)
    while limit > 1 and sum(map(_advance, shorten(text, limit))) * size > width:
        limit -= 1
    return shorten(text, limit)


def _advance(character: str) -> float:
    """Return the width of a character relative to the size, at least that of DejaVu Sans, a wide face."""
    if character in "mwMW@%…":
        return 1.05
    if character in "ijlrtf.,:;'|!I/-":
        return 0.43
    return 0.78 if character.isupper() or character in "✓✗" else 0.64


def shorten(text: str, limit: int) -> str:
    """Return at most `limit` characters. Cut the middle, because both ends of a name are more useful."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"
