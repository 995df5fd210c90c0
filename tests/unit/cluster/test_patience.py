"""How long a wait goes on while the API server fails."""

from __future__ import annotations

import pytest

from meshscrape.cluster.patience import OUTAGE_SECONDS, REFUSED_SECONDS, Failure, Patience, failure_of
from meshscrape.cluster.stopping import StoppedError


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (401, "credentials"), (403, "right"), (410, "away"), (429, "away"), (500, "away"), (503, "away"),
        (400, None), (404, None), (409, None), (422, None), (499, None),
    ],
)  # fmt: skip
def test_a_status_tells_whether_a_later_request_may_succeed(status: int, failure: Failure | None) -> None:
    assert failure_of(status) == failure


def test_tells_the_first_failure_and_the_end_of_a_series() -> None:
    patience = Patience("phase listeners", "apply")
    assert patience.answered() is False
    assert [patience.failed("away", "no answer", now) for now in (1.0, 2.0, 3.0)] == [True, False, False]
    assert [patience.answered(), patience.answered()] == [True, False]
    assert patience.failed("right", "forbidden", 4.0) is True


def test_ends_when_the_api_server_stays_away() -> None:
    patience = Patience("phase listeners", "remove")
    patience.failed("away", "no answer", 10.0)
    assert patience.failed("away", "no answer", 10.0 + OUTAGE_SECONDS - 1) is False
    with pytest.raises(StoppedError) as stopped:
        patience.failed("away", "connection refused", 10.0 + OUTAGE_SECONDS)
    assert (stopped.value.code, stopped.value.exit_code) == ("api-away", 1)
    assert str(stopped.value) == (
        "phase listeners: the API server has not answered for 900 s: connection refused; "
        "run remove again when it answers: what was applied stays"
    )


@pytest.mark.parametrize(
    ("failure", "problem", "cure"),
    [
        ("credentials", "no longer accepts the credentials: Unauthorized", "log in again, then run apply"),
        ("right", "a right is missing now: Unauthorized", "`meshscrape rbac apply` prints, then run apply"),
    ],
)
def test_ends_when_refusals_go_on(failure: Failure, problem: str, cure: str) -> None:
    patience = Patience("phase listeners", "apply")
    patience.failed(failure, "Unauthorized", 10.0)
    assert patience.failed(failure, "Unauthorized", 10.0 + REFUSED_SECONDS - 1) is False
    with pytest.raises(StoppedError) as stopped:
        patience.failed(failure, "Unauthorized", 10.0 + REFUSED_SECONDS)
    assert stopped.value.code == "refused"
    assert problem in str(stopped.value)
    assert cure in str(stopped.value)


def test_counts_refusals_from_the_last_other_answer() -> None:
    """An API server that has just started refuses for a moment, and is away before and after it."""
    patience = Patience("phase listeners", "apply")
    for now, failure in ((0.0, "right"), (29.0, "away"), (31.0, "right"), (60.0, "right")):
        patience.failed(failure, "no", now)  # type: ignore[arg-type]
    patience.answered()
    patience.failed("right", "no", 61.0)
    assert patience.failed("right", "no", 90.0) is False


def test_an_outage_that_ends_in_refusals_has_one_bound() -> None:
    patience = Patience("phase listeners", "apply")
    for now in range(0, int(OUTAGE_SECONDS), 20):
        patience.failed("away" if now % 40 else "right", "no", float(now))
    with pytest.raises(StoppedError, match="has not answered for 900 s"):
        patience.failed("right", "no", OUTAGE_SECONDS)
