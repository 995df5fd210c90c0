"""Count the scrapes that are lost while a cluster changes."""

from __future__ import annotations

import time

from conformance import shop
from conformance.kube import Kube, until
from conformance.prometheus import Prometheus


class Watch:
    """Asks Prometheus after each phase: is everything up, and did any scrape of a running pod fail?"""

    def __init__(self, kube: Kube, prometheus: Prometheus | None) -> None:
        self._kube, self._prometheus = kube, prometheus
        self.down = 0

    def lost(self) -> str:
        """Return what a row may say of lost scrapes: nothing where no Prometheus was there to count them."""
        return "" if self._prometheus is None else f"{self.down} scrapes lost, "

    def look(self, phase: str) -> None:
        """Look at the cluster after a phase."""
        if self._prometheus is None:
            return
        addresses = set(shop.addresses(self._kube).values())
        self._prometheus.wait_for_up(addresses)
        began = time.monotonic()
        # As many scrapes as fit: the interval is one second.
        until(lambda: time.monotonic() - began > 3, "three more scrapes")
        lost = self._prometheus.down_samples(addresses, 60)
        assert lost == 0, f"{lost} scrapes failed in {phase}"
        self.down += lost
