"""The one place that reads the clock; everything below takes `now` as an argument."""

from __future__ import annotations

from datetime import UTC, datetime


def utcnow() -> datetime:
    """Return the present moment, with its zone (UTC)."""
    return datetime.now(UTC)
