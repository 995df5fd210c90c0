"""Leaves and roots rotate for minutes, the CA is killed again and again, and Prometheus loses no scrape."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from support.mesh import Up, meshscrape
from support.rotating import Serials, short_lived_mesh, total
from support.scrapes import Watch

pytestmark = pytest.mark.timeout(7200)


class CaKiller(threading.Thread):
    """kill -9 of the CA every few seconds, for as long as the test goes on."""

    def __init__(self, up: Up) -> None:
        super().__init__(daemon=True)
        self._up = up
        self._over = threading.Event()
        self.kills = 0

    def run(self) -> None:
        # Its supervisor allows five deaths within a minute.
        while not self._over.wait(random.uniform(13, 20)) and self._up.process.poll() is None:
            pid = self._up.document()["ca"]["pid"]
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1

    def stop(self) -> None:
        self._over.set()
        self.join(30)


class LastErrors:
    """What Prometheus and the proxy say of failed scrapes."""

    def __init__(self, up: Up) -> None:
        self._up = up
        self.seen: list[str] = []

    def look(self) -> None:
        """Note what they say now."""
        self.seen += [each["lastError"] for each in self._up.active_targets() if each["lastError"]]
        for series in self._up.query("meshscrape_scrape_refusals_total > 0"):
            self.seen.append(f"{series['metric']['reason']}: {series['value'][1]}")


@pytest.mark.parametrize("requests_per_connection", ["0", "1"], ids=["kept alive", "handshake per scrape"])
def test_rotations_lose_no_scrape(
    tmp_path: Path, requests_per_connection: str, soak_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates of twenty seconds; whole rotations of the root, and aborted ones, one after the other."""
    monkeypatch.setitem(os.environ, "MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION", requests_per_connection)
    with short_lived_mesh(tmp_path, ttl="20s", interval="500ms") as up:
        watch, serials, killer = Watch(up), Serials(up), CaKiller(up)
        killer.start()
        errors = LastErrors(up)
        end = time.monotonic() + soak_seconds
        roots = aborted = 0
        while time.monotonic() < end:
            if random.random() < 0.5:
                assert _rotate(up) == 0
                roots += 1
            else:
                assert _rotate(up, "--to", random.choice(["distribute", "issue", "withdraw"])) == 0
                assert _rotate(up, "--abort") == 0
                aborted += 1
            serials.look()
            errors.look()
        killer.stop()
        account = watch.account()
        handshakes = total(up, "meshscrape_scrape_handshakes_total")
    print(
        f"\n{account}; {sum(serials.rotations.values())} changed certificates seen, {roots} new roots, "
        f"{aborted} aborted rotations, {killer.kills} kills of the CA, {handshakes} handshakes"
    )
    assert account.failed == 0, errors.seen
    assert account.fewest_samples > 0
    assert roots + aborted > 0


def _rotate(up: Up, *arguments: str) -> int:
    done = meshscrape(
        "ca", "rotate", "--state", str(up.state), "-q", "--timeout", "2m", *arguments, timeout=400
    )
    if done.returncode:
        print(done.stderr, up.errors.read_text())
    return done.returncode
