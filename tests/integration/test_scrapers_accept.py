"""What real scrapers accept is what our tables say: each program that is here scrapes a server."""

from __future__ import annotations

import http.server
import os
import queue
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.cluster.programs import program
from meshscrape.local.binaries import find_prometheus
from support import accept_headers
from support.addresses import free_port, loopback
from support.serving import serving

PATIENCE = 60.0


def test_prometheus_2_ingests_the_merged_metrics(tmp_path: Path) -> None:
    """The Prometheus of the local mesh, if it is the version of the table."""
    found = find_prometheus(os.environ)
    if found is None or " version 2.42." not in _version(found.server):
        pytest.skip("no Prometheus 2.42 here: make setup fetches one")
    assert _accepted_by_prometheus(found.server, tmp_path, {}) == accept_headers.PROMETHEUS_2


def test_prometheus_2_ingests_native_histograms(tmp_path: Path) -> None:
    """In version 2 it is a feature of the whole program."""
    found = find_prometheus(os.environ)
    if found is None or " version 2.42." not in _version(found.server):
        pytest.skip("no Prometheus 2.42 here: make setup fetches one")
    accepted = _accepted_by_prometheus(found.server, tmp_path, {}, "--enable-feature=native-histograms")
    assert accepted == accept_headers.PROMETHEUS_2_NATIVE


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, accept_headers.PROMETHEUS_3),
        ({"scrape_native_histograms": True}, accept_headers.PROMETHEUS_3_NATIVE),
    ],
)
def test_prometheus_3_ingests_the_merged_metrics(
    settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """In version 3 native histograms are a setting of the job."""
    binary = program("prometheus")
    if not binary.exists():
        pytest.skip(f"no Prometheus 3 at {binary}: the conformance suite builds it from its Go module")
    assert _accepted_by_prometheus(binary, tmp_path, settings) == expected


def test_vmagent_ingests_the_merged_metrics(tmp_path: Path) -> None:
    """It asks for text before everything else."""
    binary = os.environ.get("MESHSCRAPE_VMAGENT") or shutil.which("vmagent")
    if binary is None:
        pytest.skip("no vmagent on PATH, and MESHSCRAPE_VMAGENT is not set")
    command = [binary, "-promscrape.config={config}", "-remoteWrite.url=http://127.0.0.1:1/"]
    command += [f"-remoteWrite.tmpDataPath={tmp_path / 'data'}", "-httpListenAddr={listen}"]
    assert _accepted(command, tmp_path, {}) == accept_headers.VMAGENT


def _version(binary: Path) -> str:
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _accepted_by_prometheus(
    binary: Path, directory: Path, settings: Mapping[str, Any], *arguments: str
) -> str:
    command = [str(binary), "--config.file={config}", "--web.listen-address={listen}"]
    return _accepted([*command, f"--storage.tsdb.path={directory / 'data'}", *arguments], directory, settings)


def _accepted(command: list[str], directory: Path, settings: Mapping[str, Any]) -> str:
    """Return the `Accept` header of the first scrape of a scraper that is run for this."""
    accepted: queue.Queue[str] = queue.Queue()

    class Target(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            accepted.put(self.headers["Accept"])
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(b"a 1\n")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    address = loopback()
    target = http.server.ThreadingHTTPServer((address, 0), Target)
    job = {"job_name": "a", "static_configs": [{"targets": [f"{address}:{target.server_port}"]}], **settings}
    config = directory / "config.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    listen = f"{address}:{free_port(address)}"
    with serving(target), (directory / "log").open("wb") as log:
        scraper = subprocess.Popen(
            [part.format(config=config, listen=listen) for part in command], stdout=log, stderr=log
        )
        try:
            return accepted.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"it never scraped: {(directory / 'log').read_text()[-2000:]}") from None
        finally:
            scraper.terminate()
            scraper.wait(PATIENCE)
