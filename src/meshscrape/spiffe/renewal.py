"""When to renew a certificate, and how long to wait after a failure. Randomness is an argument."""

from __future__ import annotations

from datetime import datetime, timedelta


def renew_at(
    received_at: datetime, not_after: datetime, *, ratio: float = 0.5, jitter: float = 0.01, draw: float
) -> datetime:
    """Return when to renew a certificate that was received at `received_at` and ends at `not_after`.

    `ratio` is the part of its life, counted from receipt, that is left when renewal starts (Istio's
    SECRET_GRACE_PERIOD_RATIO). `jitter` moves it by at most that much either way; `draw` in [0, 1) chooses.
    The result is never before receipt and never after the end. An expired certificate is renewed at once.
    """
    life = not_after - received_at
    if life <= timedelta(0):
        return received_at
    left = min(1.0, max(0.0, ratio + jitter * (2 * draw - 1)))
    return not_after - life * left


def backoff(attempt: int, *, base: float = 0.5, cap: float = 30.0, draw: float) -> float:
    """Return the seconds to wait after failure number `attempt` (from 0): double from `base`, at most `cap`.

    `draw` in [0, 1) spreads callers that failed together over the upper half of that time.
    """
    longest = min(cap, base * 2.0 ** min(attempt, 60))
    return longest * (0.5 + draw / 2)
