"""Prometheus' own account of its scrapes over a while."""

from __future__ import annotations

import time
from dataclasses import dataclass

from meshscrape.prometheus.config import CA_JOB
from support.mesh import Up

# The CA's own target is down whenever a test stops the CA, and that is no loss.
WORKLOADS = f'job!="{CA_JOB}"'


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

    def account(self, of: str = WORKLOADS) -> Account:
        """By `up` and `scrape_samples_scraped` of Prometheus itself; `of` chooses targets (`job="x"`)."""
        window = f"{{{of}}}[{int((time.time() - self._began) * 1000)}ms]"
        return Account(
            scrapes=self._sum(f"sum(count_over_time(up{window}))"),
            # One expression: scrapes that end between two of them would count in one alone.
            failed=self._sum(f"sum(count_over_time(up{window}) - sum_over_time(up{window}))"),
            fewest_samples=self._sum(f"min(min_over_time(scrape_samples_scraped{window}))"),
            targets=self._sum(f"count(count_over_time(up{window}))"),
        )

    def down(self, of: str = WORKLOADS) -> int:
        """How many of these targets failed their latest scrape."""
        return self._sum(f"count(up{{{of}}} == 0)")

    def _sum(self, expression: str) -> int:
        found = self._up.query(expression)
        return int(float(found[0]["value"][1])) if found else 0
