"""Durations in Go's syntax (`24h0m0s`), which Istio uses in its settings."""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

from meshscrape.errors import InputError, Where
from meshscrape.istio.ports import shorten

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek letter mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)"
_PARTS = re.compile(_PART)
_DURATION = re.compile(rf"[-+]?(?:0|(?:{_PART})+)")
_LONGEST = 2**63 - 1  # nanoseconds; Go's time.Duration is an int64


def parse_duration(text: str, where: Where = "") -> timedelta:
    """Return the duration that `text` spells as Go's `time.ParseDuration` reads it, to the microsecond.

    Negative durations are valid Go and are returned as such. Raises InputError at `where` for text that Go
    refuses: a missing unit, days, spaces, more than about 292 years.
    """
    # The limit also bounds the work on hostile input; no sensible duration is nearly as long.
    if len(text) > 64 or _DURATION.fullmatch(text) is None:
        raise InputError(
            f"{shorten(text)} is not a duration",
            where=where,
            remedy="write it as 24h, 90m or 1h30m0s",
            code="not-a-duration",
        )
    total = sum(Fraction(number) * _NANOSECONDS[unit] for number, unit in _numbers(text))
    if total > _LONGEST:
        raise InputError(
            f"{shorten(text)} is too long a duration",
            where=where,
            remedy="write at most 2562047h",
            code="not-a-duration",
        )
    sign = -1 if text.startswith("-") else 1
    return timedelta(microseconds=sign * int(total / 1000))


def _numbers(text: str) -> list[tuple[str, str]]:
    return [(f"0{number.removesuffix('.')}", unit) for number, unit in _PARTS.findall(text)]
