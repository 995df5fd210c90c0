"""Certificates that last seconds, under continuous scraping through the proxy: nothing is lost."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.mesh import SECURE, Up, prometheus_manifest, running_up, workload_manifest, write_mesh
from support.polling import eventually
from support.scrapes import Watch

pytestmark = pytest.mark.timeout(180)
TTL = 'SECRET_TTL: "5s"'
WORKLOADS = ("web", "shop", "cart")
ROTATIONS = 3
"""Of each workload's certificate, and of Prometheus' own."""


@contextmanager
def short_lived_mesh(directory: Path, *arguments: str) -> Iterator[Up]:
    """Three workloads and Prometheus, whose certificates last five seconds."""
    prometheus = prometheus_manifest().replace("proxyMetadata:", f"proxyMetadata:\n            {TTL}")
    webs = [workload_manifest(name, metadata=(*SECURE, TTL)) for name in WORKLOADS]
    manifest = write_mesh(directory / "mesh.yaml", prometheus, *webs)
    state = directory / "state"
    with running_up(state, str(manifest), "--scrape-interval", "250ms", "--quiet", *arguments) as up:
        up.wait_for_phase()
        yield up


def watch_serials(up: Up, rotations: int) -> dict[str, set[str]]:
    """Every serial number that is seen, by workload, once each has had so many rotations."""
    seen: dict[str, set[str]] = defaultdict(set)

    def all_rotated() -> bool:
        for entry in up.document()["workloads"]:
            if entry["certificate"]:
                seen[entry["name"]].add(entry["certificate"]["serial"])
        return len(seen) == len(WORKLOADS) + 1 and all(len(each) > rotations for each in seen.values())

    eventually(all_rotated, within=90, what=f"{rotations} rotations of every certificate")
    return dict(seen)


def total(up: Up, name: str) -> int:
    """The sum of a counter over all its series."""
    return int(float(up.query(f"sum({name})")[0]["value"][1]))


@pytest.mark.parametrize("requests_per_connection", ["0", "1"], ids=["kept alive", "handshake per scrape"])
def test_renewal_loses_no_scrape(
    tmp_path: Path, requests_per_connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus' own `up` and `scrape_samples_scraped` over several rotations of every certificate."""
    monkeypatch.setitem(os.environ, "MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION", requests_per_connection)
    with short_lived_mesh(tmp_path) as up:
        watch = Watch(up)
        serials = watch_serials(up, ROTATIONS)
        account = watch.account()
        handshakes = total(up, "meshscrape_scrape_handshakes_total")
        reused = total(up, "meshscrape_scrape_reused_connections_total")
    rotations = sum(len(each) - 1 for each in serials.values())
    print(f"{rotations} rotations, {account}, handshakes {handshakes}, reused {reused}")
    # It is what it says: hardly a handshake, or one for each scrape.
    assert (handshakes < reused) if requests_per_connection == "0" else (reused == 0 < handshakes)
    assert account.failed == 0
    assert account.fewest_samples > 0
    assert account.scrapes >= 100
    assert rotations >= ROTATIONS * (len(WORKLOADS) + 1)
