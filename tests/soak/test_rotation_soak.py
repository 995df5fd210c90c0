"""Leaves and roots rotate for minutes, the CA is killed again and again, and no scrape is lost."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
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


class ProxyClient(threading.Thread):
    """Scrapes through the proxy without a pause, much more often than Prometheus, and keeps what it is told
    of a failure."""

    def __init__(self, up: Up) -> None:
        super().__init__(daemon=True)
        document = up.document()
        proxy = document["scrapeProxy"]
        self._address = proxy["address"].rsplit(":", 1)
        self._token = Path(proxy["tokenFile"]).read_text().strip()
        self._targets = [each["address"] for each in document["workloads"] if each["adminSocket"]]
        self._over = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address[0], int(self._address[1]), timeout=30)
        while not self._over.wait(0.02):
            target = random.choice(self._targets)
            try:
                self._scrape(connection, target)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{target}: {error!r}")
                connection.close()

    def _scrape(self, connection: http.client.HTTPConnection, target: str) -> None:
        headers = {"authorization": f"Bearer {self._token}"}
        connection.request("GET", f"http://{target}:15091/stats/prometheus", headers=headers)
        response = connection.getresponse()
        body = response.read()
        self.statuses[response.status] += 1
        if response.status != 200:
            self.failures.append(f"{target}: {response.status} {body[:300]!r}")

    def stop(self) -> None:
        self._over.set()
        self.join(60)


@pytest.mark.parametrize("requests_per_connection", ["0", "1"], ids=["kept alive", "handshake per scrape"])
def test_rotations_lose_no_scrape(
    tmp_path: Path, requests_per_connection: str, soak_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates of twenty seconds; whole rotations of the root, and aborted ones, one after the other."""
    monkeypatch.setitem(os.environ, "MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION", requests_per_connection)
    with short_lived_mesh(tmp_path, ttl="20s", interval="1s") as up:
        watch, serials, killer, client = Watch(up), Serials(up), CaKiller(up), ProxyClient(up)
        killer.start()
        client.start()
        end = time.monotonic() + soak_seconds
        roots = aborted = 0
        while time.monotonic() < end:
            if random.random() < 0.5:
                _rotate(up)
                roots += 1
            else:
                _rotate(up, "--to", random.choice(["distribute", "issue", "withdraw"]))
                _rotate(up, "--abort")
                aborted += 1
            serials.look()
        client.stop()
        killer.stop()
        account = watch.account()
        handshakes = total(up, "meshscrape_scrape_handshakes_total")
    print(
        f"\n{account}; besides {dict(client.statuses)}; {sum(serials.rotations.values())} changed "
        f"certificates seen, {roots} new roots, {aborted} aborted rotations, {killer.kills} kills of the CA, "
        f"{handshakes} handshakes"
    )
    assert client.failures == []
    assert account.failed == 0
    assert account.fewest_samples > 0
    assert set(client.statuses) == {200}
    assert roots + aborted > 0


def _rotate(up: Up, *arguments: str) -> None:
    options = ("--state", str(up.state), "-q", "--timeout", "2m")
    done = meshscrape("ca", "rotate", *options, *arguments, timeout=400)
    assert done.returncode == 0, done.stderr + up.errors.read_text()
