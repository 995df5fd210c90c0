"""What the table says about time and health."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from meshscrape.cli.output import health_of, remaining

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("2026-01-02T01:00:00Z", "1d 1h"),
        ("2026-01-01T23:59:30Z", "23h 59m"),
        ("2026-01-01T00:04:10Z", "4m 10s"),
        ("2026-01-01T00:00:09Z", "9s"),
        ("2026-01-01T00:00:00Z", "expired"),
        ("2025-01-01T00:00:00Z", "expired"),
    ],
)
def test_remaining_life_in_two_units(end: str, text: str) -> None:
    """A certificate's remaining life, rounded down."""
    assert remaining(end, NOW) == text


@pytest.mark.parametrize(
    ("ready", "targets", "text"),
    [
        (False, ["up"], "not ready"),
        (True, [], "ready"),
        (True, ["up", "up"], "up 2/2"),
        (True, ["up", "unknown"], "waiting 1/2"),
        (True, ["up", "down", "unknown"], "down 2/3"),
    ],
)
def test_health_is_up_only_when_everything_is(ready: bool, targets: list[str], text: str) -> None:
    """One target that is down or not seen yet is enough."""
    workload: dict[str, Any] = {"ready": ready, "targets": [{"health": each} for each in targets]}
    assert health_of(workload) == text
