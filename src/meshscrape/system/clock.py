"""Read the clock. Only this module does; pure modules take `now` as an argument."""

from __future__ import annotations

from datetime import UTC, datetime


def utcnow() -> datetime:
    """Return the current time in UTC, with its zone."""
    return datetime.now(UTC)
