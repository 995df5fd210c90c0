"""What a scraper risks that reads certificate and key from files itself: measured with a real Prometheus.

It opens the two files one after the other at each handshake; a switch of the directory in between gives it a
key that does not match. The measured window (seconds) times handshakes per second times switches per second
is the rate of failures to expect: small, and not zero.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from meshscrape.local.binaries import find_prometheus
from meshscrape.system.files import publish
from support.addresses import free_port
from support.polling import eventually
from support.sidecar import SCRAPER, Sidecar, running_sidecar

pytestmark = pytest.mark.timeout(7200)
JOBS = 100
INTERVAL_MS = 1000
SWITCH_SECONDS = 0.02


class Switcher(threading.Thread):
    """Publishes one of several good pairs after the other, much faster than any agent would."""

    def __init__(self, sidecar: Sidecar, directory: Path) -> None:
        super().__init__(daemon=True)
        self._pairs = [sidecar.forge.leaf(SCRAPER) for _ in range(4)]
        self._root = sidecar.forge.root
        self._directory = directory
        self._over = threading.Event()
        self.switches = 0
        self.publish()

    def publish(self) -> None:
        pair = self._pairs[self.switches % len(self._pairs)]
        files = {"cert-chain.pem": pair.chain, "key.pem": pair.key, "root-cert.pem": self._root}
        publish(self._directory, files)
        self.switches += 1

    def run(self) -> None:
        while not self._over.wait(SWITCH_SECONDS):
            self.publish()

    def stop(self) -> None:
        self._over.set()
        self.join(10)


def nothing_but_handshakes(config: dict[str, Any]) -> None:
    """Every scrape is a handshake, and its answer costs nothing."""
    answer = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "a 1\n"}},
    }
    for listener in config["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            manager = chain["filters"][0]["typed_config"]
            manager["common_http_protocol_options"]["max_requests_per_connection"] = 1
            manager["route_config"]["virtual_hosts"][0]["routes"] = [answer]


def test_the_rate_of_failed_direct_scrapes(tmp_path: Path, soak_seconds: float) -> None:
    """States the window in which a switch costs a direct scrape; without switches none fails."""
    credentials = tmp_path / "output"
    with running_sidecar(tmp_path, edit=nothing_but_handshakes) as sidecar:
        switcher = Switcher(sidecar, credentials)
        port = free_port()
        process = _prometheus(tmp_path, _config(sidecar.pod, credentials), port)
        try:
            eventually(lambda: _sum(port, "sum(up)") == JOBS, within=60, what="all targets up")
            quiet = _count(port, min(soak_seconds / 4, 60))
            began, before = time.monotonic(), switcher.switches
            switcher.start()
            busy = _count(port, soak_seconds)
            switcher.stop()
            per_second = (switcher.switches - before) / (time.monotonic() - began)
        finally:
            process.terminate()
            process.wait(10)
    window = busy[1] / busy[0] / per_second
    print(
        f"\nwithout switches: {quiet[1]} of {quiet[0]} failed; with {per_second:.0f} switches a second: "
        f"{busy[1]} of {busy[0]} failed: a window of {window * 1e6:.0f} us for each handshake"
    )
    assert quiet[0] > 100 and quiet[1] == 0
    assert window < 0.005


def _count(port: int, seconds: float) -> tuple[int, int]:
    """Scrapes and failed scrapes of the next `seconds`."""
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end, within=seconds + 5)
    window = f"[{int(seconds * 1000)}ms]"
    scrapes = _sum(port, f"sum(count_over_time(up{window}))")
    return scrapes, scrapes - _sum(port, f"sum(sum_over_time(up{window}))")


def _config(pod: str, credentials: Path) -> dict[str, Any]:
    tls = {
        "ca_file": str(credentials / "root-cert.pem"),
        "cert_file": str(credentials / "cert-chain.pem"),
        "key_file": str(credentials / "key.pem"),
        "insecure_skip_verify": True,
    }
    job = {
        "scheme": "https",
        "metrics_path": "/stats/prometheus",
        "tls_config": tls,
        "static_configs": [{"targets": [f"{pod}:15091"]}],
        # Only `up` counts here.
        "metric_relabel_configs": [{"regex": ".*", "action": "drop", "source_labels": ["__name__"]}],
    }
    return {
        "global": {"scrape_interval": f"{INTERVAL_MS}ms", "scrape_timeout": f"{INTERVAL_MS}ms"},
        "scrape_configs": [{"job_name": f"job-{number}", **job} for number in range(JOBS)],
    }


def _prometheus(directory: Path, config: dict[str, Any], port: int) -> subprocess.Popen[bytes]:
    found = find_prometheus(os.environ)
    assert found is not None
    path = directory / "prometheus.json"
    path.write_text(json.dumps(config))
    with (directory / "prometheus.log").open("wb") as log:
        return subprocess.Popen(
            [str(found.server), f"--config.file={path}", f"--storage.tsdb.path={directory / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip


def _sum(port: int, expression: str) -> int:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=30) as answer:
        found = json.load(answer)["data"]["result"]
    return int(float(found[0]["value"][1])) if found else 0
