"""Certificates that last seconds, under continuous scraping through the proxy: nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.polling import eventually
from support.rotating import WORKLOADS, Serials, short_lived_mesh, total
from support.scrapes import Watch

pytestmark = pytest.mark.timeout(180)
ROTATIONS = 3
"""Of each workload's certificate, and of Prometheus' own."""
SCRAPES = 100


@pytest.mark.parametrize("requests_per_connection", ["0", "1"], ids=["kept alive", "handshake per scrape"])
def test_renewal_loses_no_scrape(
    tmp_path: Path, requests_per_connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus' own `up` and `scrape_samples_scraped` over several rotations of every certificate."""
    monkeypatch.setitem(os.environ, "MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION", requests_per_connection)
    with short_lived_mesh(tmp_path) as up:
        watch, serials = Watch(up), Serials(up)
        serials.await_rotations(ROTATIONS)
        eventually(lambda: watch.account().scrapes >= SCRAPES, within=60, what=f"{SCRAPES} scrapes")
        account = watch.account()
        handshakes = total(up, "meshscrape_scrape_handshakes_total")
        reused = total(up, "meshscrape_scrape_reused_connections_total")
    rotations = sum(serials.rotations.values())
    print(f"{rotations} rotations, {account}, {handshakes} handshakes, {reused} scrapes on kept connections")
    # It is what it says: hardly a handshake, or one for each scrape.
    assert (handshakes < reused) if requests_per_connection == "0" else (reused == 0 < handshakes)
    assert account.failed == 0
    assert account.fewest_samples > 0
    assert rotations >= ROTATIONS * (len(WORKLOADS) + 1)
