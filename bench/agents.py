"""The agent's memory and start, and how long a whole mesh takes to all targets up."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.measure import Row, median, memory

STARTS = 5
INTERVAL = "1s"
BOUND = 60.0


def run(rounds: int) -> list[Row]:
    """Rows about the example mesh; `rounds` does not matter here."""
    del rounds
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        with _mesh(Path(directory) / "state") as status:
            _await_all_up(status)
            all_up = time.perf_counter() - began
            rows = [*_memories(status), *_starts(status, Path(directory))]
    note = f"example mesh, scrape interval {INTERVAL}, from the command's start; Prometheus alone takes 5 s"
    return [*rows, Row("up to all targets up", all_up, "s", "≤ 10", note)]


def _memories(status: Mapping[str, Any]) -> list[Row]:
    workloads = [each for each in status["workloads"] if each["kind"] != "credentials"]
    seen = [memory(each["pids"]["agent"]) for each in workloads]
    note = f"median of {len(seen)} agents beside an Envoy, after the first certificate and some scrapes"
    return [
        Row("agent, resident", median([each.resident for each in seen]), "MB", "≤ 55", note),
        Row("agent, private", median([each.private for each in seen]), "MB", "≤ 35", note),
    ]


def _starts(status: Mapping[str, Any], directory: Path) -> list[Row]:
    """A further agent of a workload's identity, from its start to a scrape of its 15092 as Prometheus."""
    model = next(each for each in status["workloads"] if each["kind"] == "sidecar")
    scraper = next(each for each in status["workloads"] if each["kind"] == "credentials")
    tls = _client(Path(scraper["credentials"]))
    samples = []
    for number in range(STARTS):
        pod, inside = f"{_subnet(model)}.1.{200 + number}", f"{_subnet(model)}.2.{200 + number}"
        environment = _environment(model["pids"]["agent"])
        environment |= {
            "INSTANCE_IP": pod,
            "INSTANCE_IPS": pod,
            "MESHSCRAPE_INSIDE_ADDRESS": inside,
            "MESHSCRAPE_AGENT_DIR": str(directory / f"agent-{number}"),
        }
        began = time.perf_counter()
        with _process(["-m", "meshscrape", "agent", "proxy", "sidecar"], environment):
            _until(lambda pod=pod: _scrape(pod, tls), "a scrape of the new agent")
            samples.append(time.perf_counter() - began)
    note = f"median of {len(samples)} starts; key, certificate from the CA, Envoy, mutual TLS, merged body"
    return [Row("agent, start to first successful scrape", median(samples), "s", "≤ 2", note)]


def _await_all_up(status: Mapping[str, Any]) -> None:
    expected = sum(len(each["ports"]["secure"]) for each in status["workloads"])
    url = f"{status['prometheus']['url']}/api/v1/targets?state=active"

    def all_up() -> bool:
        with urllib.request.urlopen(url, timeout=2) as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        return len(targets) >= expected and all(each["health"] == "up" for each in targets)

    _until(all_up, "every target up")


@contextlib.contextmanager
def _mesh(state: Path) -> Iterator[Mapping[str, Any]]:
    """A running example mesh, and its status document once it is ready."""
    command = [sys.executable, "-m", "meshscrape", "up", "--quiet", "-o", "json"]
    command += ["--scrape-interval", INTERVAL, "--state", str(state)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        document: dict[str, Any] = {}
        _until(lambda: document.update(_ready_status(state)) or True, "the status document")
        yield document
    finally:
        process.terminate()
        process.wait(BOUND)


def _ready_status(state: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((state / "status.json").read_bytes())
    if document["phase"] != "Ready":
        raise OSError("not ready yet")
    return document


@contextlib.contextmanager
def _process(arguments: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(BOUND)


def _environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _subnet(workload: Mapping[str, Any]) -> str:
    return ".".join(workload["address"].split(".")[:2])


def _client(credentials: Path) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=str(credentials / "root-cert.pem"))
    tls.check_hostname = False
    tls.load_cert_chain(credentials / "cert-chain.pem", credentials / "key.pem")
    return tls


def _scrape(pod: str, tls: ssl.SSLContext) -> bool:
    connection = http.client.HTTPSConnection(pod, 15092, context=tls, timeout=2)
    with contextlib.closing(connection):
        connection.request("GET", "/stats/prometheus")
        response = connection.getresponse()
        response.read()
        return response.status == 200


def _until(seen: Any, what: str) -> None:
    """Poll until `seen()` is true; an OSError or a half-written document counts as not yet."""
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            if seen():
                return
        os.sched_yield()
        time.sleep(0.01)
    raise RuntimeError(f"{what} did not come within {BOUND:.0f} s")
