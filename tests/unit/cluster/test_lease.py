"""Who holds the Lease of a cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from meshscrape.cluster.lease import SECONDS, lease, other_holder

THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("holder", "seconds", "expected"),
    [
        ("other", 1, "other"),
        ("other", SECONDS + 1, ""),
        ("me", 1, ""),
        ("", 0, ""),
    ],
)
def test_a_lease_is_held_by_another_until_it_expires(holder: str, seconds: int, expected: str) -> None:
    found = lease(holder, THEN, "5")
    assert other_holder(found, "me", THEN + timedelta(seconds=seconds)) == expected


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": "other", "renewTime": "yesterday"}])
def test_a_lease_that_says_nothing_is_free(spec: dict[str, str]) -> None:
    assert other_holder({"spec": spec}, "me", THEN) == ""
