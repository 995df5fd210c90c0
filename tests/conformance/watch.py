"""Count the scrapes that are lost while a cluster changes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

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
        lost = self._prometheus.lost_scrapes(addresses, 60)
        assert not lost, f"scrapes failed in {phase}: {lost}"
        self.down += len(lost)


class Losses:
    """What was seen of targets that had been up and were down, while their pods were ready."""

    def __init__(self) -> None:
        self.looks = 0
        self.lost: list[str] = []


@contextlib.contextmanager
def losses(kube: Kube, prometheus: Prometheus) -> Iterator[Losses]:
    """Look at the targets of the shop all the time, until the block ends."""
    seen, up, ended = Losses(), set[str](), threading.Event()

    def look() -> None:
        targets = prometheus.targets()
        ready = {
            pod["status"]["podIP"]
            for pod in kube.pods(shop.NAMESPACE)
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
        }
        for target in targets:
            url = target["scrapeUrl"]
            if target["discoveredLabels"]["__address__"].rpartition(":")[0] not in ready:
                continue
            if target["health"] == "up":
                up.add(url)
            elif target["health"] == "down" and url in up:
                seen.lost.append(f"{url}: {target['lastError'][:200]}")
        seen.looks += 1

    def go_on() -> None:
        while not ended.wait(1):
            # Prometheus itself restarts, too; then there is nobody to ask.
            with contextlib.suppress(AssertionError, KeyError, ValueError):
                look()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join(60)
