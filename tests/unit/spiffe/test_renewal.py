"""When to renew, and how long to wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from meshscrape.spiffe.renewal import backoff, renew_at

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DRAWS = st.floats(0, 1, exclude_max=True)


def test_half_of_the_life_from_receipt() -> None:
    """The default is the middle between receipt and end, whatever the certificate's NotBefore says."""
    assert renew_at(NOW, NOW + timedelta(hours=24), jitter=0, draw=0.3) == NOW + timedelta(hours=12)
    assert renew_at(NOW, NOW + timedelta(hours=24), draw=0.5) == NOW + timedelta(hours=12)


def test_ratio_is_the_part_that_is_left() -> None:
    """As Istio's grace period ratio: 0.25 renews when a quarter of the life is left."""
    assert renew_at(NOW, NOW + timedelta(hours=4), ratio=0.25, jitter=0, draw=0) == NOW + timedelta(hours=3)


def test_jitter_goes_both_ways() -> None:
    """A low draw renews later than the middle, a high one earlier."""
    end = NOW + timedelta(hours=100)
    assert renew_at(NOW, end, jitter=0.1, draw=0.0) == NOW + timedelta(hours=60)
    assert renew_at(NOW, end, jitter=0.1, draw=0.75) == NOW + timedelta(hours=45)


@given(
    st.timedeltas(timedelta(seconds=-10), timedelta(days=400)),
    st.floats(-1, 2),
    st.floats(0, 1),
    DRAWS,
)
def test_never_before_receipt_never_after_the_end(
    life: timedelta, ratio: float, jitter: float, draw: float
) -> None:
    """Whatever the numbers, renewal lies within the life; an ended certificate is renewed at once."""
    at = renew_at(NOW, NOW + life, ratio=ratio, jitter=jitter, draw=draw)
    assert NOW <= at <= max(NOW, NOW + life)


@given(st.integers(0, 10_000), DRAWS)
def test_backoff_is_positive_and_capped(attempt: int, draw: float) -> None:
    """No attempt waits longer than the cap or not at all."""
    assert 0.25 <= backoff(attempt, draw=draw) <= 30.0


def test_backoff_doubles() -> None:
    """From the base on each wait is twice the one before, until the cap."""
    waits = [backoff(attempt, base=1.0, cap=10.0, draw=0.0) for attempt in range(6)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
