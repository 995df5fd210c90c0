"""Prometheus' own account of its scrapes over a while."""

from __future__ import annotations

import time
from dataclasses import dataclass

from support.mesh import Up


@dataclass(frozen=True, slots=True)
class Account:
    """What Prometheus says of every scrape of every target since the watch began."""

    scrapes: int
    failed: int
    fewest_samples: int
    targets: int


class Watch:
    """Begins when every target is up, and counts from there."""

    def __init__(self, up: Up) -> None:
        up.wait_until_up()
        self._up = up
        self._began = time.time()

    def account(self) -> Account:
        """By `up` and `scrape_samples_scraped` of Prometheus itself."""
        window = f"[{int((time.time() - self._began) * 1000)}ms]"
        scrapes = self._sum(f"sum(count_over_time(up{window}))")
        succeeded = self._sum(f"sum(sum_over_time(up{window}))")
        return Account(
            scrapes=scrapes,
            failed=scrapes - succeeded,
            fewest_samples=self._sum(f"min(min_over_time(scrape_samples_scraped{window}))"),
            targets=self._sum(f"count(count_over_time(up{window}))"),
        )

    def _sum(self, expression: str) -> int:
        found = self._up.query(expression)
        return int(float(found[0]["value"][1])) if found else 0
