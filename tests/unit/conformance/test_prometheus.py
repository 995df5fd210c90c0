"""What counts as a lost scrape."""

from __future__ import annotations

from typing import Any

from conformance.prometheus import lost


def series(instance: str, *values: tuple[int, str]) -> dict[str, Any]:
    """Return one series of a range vector."""
    return {"metric": {"instance": instance}, "values": [list(value) for value in values]}


def test_failure_after_success_is_lost_scrape() -> None:
    """A scrape that fails after another one succeeded is lost."""
    assert lost([series("10.0.0.1:15020", (1, "1"), (2, "0"), (3, "1"))]) == [("10.0.0.1:15020", 2.0)]


def test_job_that_takes_over_must_not_fail() -> None:
    """The first scrape on another port of the same pod counts: the pod was read before."""
    before, after = series("10.0.0.1:15020", (1, "1")), series("10.0.0.1:15092", (2, "0"), (3, "1"))
    assert lost([after, before]) == [("10.0.0.1:15092", 2.0)]


def test_pod_that_was_not_read_yet_loses_nothing() -> None:
    """What fails before the first success is no loss, whatever other pods do."""
    new, old = series("10.0.0.2:15092", (1, "0"), (2, "1")), series("10.0.0.1:15092", (0, "1"), (1, "1"))
    assert lost([new, old]) == []
