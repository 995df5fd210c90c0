"""The CA is flooded for minutes by peers that prove nothing, the root is rotated, and no scrape is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.flooding import flooded
from support.mesh import meshscrape
from support.rotating import Serials, short_lived_mesh
from support.scrapes import Watch

pytestmark = pytest.mark.timeout(7200)


def test_a_flood_loses_no_scrape(tmp_path: Path, soak_seconds: float) -> None:
    """Certificates of 20 s and new roots, under 2,000 silent connections and 500 handshakes a second."""
    with short_lived_mesh(tmp_path, ttl="20s", interval="1s") as up:
        watch, serials = Watch(up), Serials(up)
        end = time.monotonic() + soak_seconds
        with flooded(up.document()["ca"]["address"], tmp_path / "flood.log") as flood:
            roots = 0
            while time.monotonic() < end:
                done = meshscrape("ca", "rotate", "--state", str(up.state), "-q", timeout=400)
                assert done.returncode == 0, done.stderr
                roots += 1
                serials.look()
            account = watch.account()
    rotations = sum(serials.rotations.values())
    print(f"\n{flood}; {rotations} changed certificates seen, {roots} new roots, {account}")
    assert account.failed == 0
    assert rotations > 0 and roots > 0
