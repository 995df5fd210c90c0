"""Log lines that anybody can cause, when the clock is set back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from meshscrape.ca.bounded_logs import BoundedLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_clock_that_is_set_back_opens_the_log_again(caplog: pytest.LogCaptureFixture) -> None:
    """After a step back the bound begins anew, instead of lasting until the old time comes again."""
    log = BoundedLog()
    for _ in range(BoundedLog.LINES + 1):
        log.say(NOW, "refused")
    log.say(NOW - timedelta(days=1), "refused after the step")
    assert caplog.messages[-1] == "refused after the step"
