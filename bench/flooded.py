"""How long a certificate takes while peers without a credential flood the CA."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.authority import DAY, IDENTITY, Ca, load, running_ca
from bench.measure import Row, cpu_seconds, median, memory
from meshscrape.errors import MeshscrapeError
from meshscrape.spiffe.certificates import make_csr
from meshscrape.spiffe.keys import generate_key
from meshscrape.system.ca_client import create_certificate

SILENT, RATE = 2000, 500
DEADLINE = 10.0


def run(rounds: int) -> list[Row]:
    """Renewals by certificate and requests by token, one after the other, under a flood."""
    number = max(50, rounds * 5)
    with tempfile.TemporaryDirectory() as name, running_ca(Path(name)) as ca:
        credentials = Path(name) / "credentials"
        asyncio.run(load(ca, 1, ca.token, None, keep=credentials))
        log = Path(name) / "flood.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "bench.flood", ca.address, "--seconds", "3600"]
            command += ["--silent", str(SILENT), "--rate", str(RATE)]
            flood = subprocess.Popen(command, stdout=output)
        try:
            _await_lines(log, 3)
            cpu, began = cpu_seconds(ca.pid), time.monotonic()
            took = [_renewal(ca, credentials if one % 2 else None) for one in range(number)]
            busy = (cpu_seconds(ca.pid) - cpu) / (time.monotonic() - began)
            resident = memory(ca.pid).resident
            _await_lines(log, 5)
        finally:
            flood.terminate()
            flood.wait(10)
        seconds = [json.loads(line) for line in log.read_text().splitlines()[2:]]
    done = [one for one in took if one is not None]
    silent, handshakes = (median([one[key] for one in seconds]) for key in ("silent", "handshakes"))
    note = f"reached: {silent:.0f} silent connections of {SILENT}, {handshakes:.0f} handshakes/s of {RATE}"
    return [
        Row("certificate under a flood, slowest", max(done) * 1000, "ms", "<= 2000", note),
        Row("certificate under a flood, median", median(done) * 1000, "ms", "", f"{number} requests"),
        Row("certificates refused under a flood", number - len(done), "", "0", f"of {number}"),
        Row("the CA's CPU under a flood", busy * 100, "%", "", "of one core"),
        Row("the CA's memory under a flood", resident, "MB", "", "resident"),
    ]


def _renewal(ca: Ca, credentials: Path | None) -> float | None:
    """Seconds until a certificate is there, None when the request failed."""
    began = time.perf_counter()
    request = create_certificate(
        ca.address,
        ca.root_pem,
        make_csr(generate_key(), IDENTITY),
        DAY,
        token=None if credentials else ca.token,
        client_credentials=credentials,
        deadline=DEADLINE,
    )
    try:
        asyncio.run(request)
    except MeshscrapeError:
        return None
    return time.perf_counter() - began


def _await_lines(log: Path, number: int) -> None:
    deadline = time.monotonic() + 30
    while len(log.read_text().splitlines()) < number:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the flood has not begun: {log.read_text()}")
        time.sleep(0.1)
