"""How many certificates the CA issues per second of one core, and how long one takes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.measure import Row, cpu_seconds, median
from meshscrape.ca.authority import open_own
from meshscrape.ca.tokens import TokenIssuer
from meshscrape.spiffe.certificates import load_csr, make_csr
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import check_public_key, generate_key, key_to_pem
from meshscrape.system.ca_client import create_certificate
from meshscrape.system.files import publish

WIDTH = 8
READY = "meshscrape ca: listening on "
IDENTITY = workload_id("cluster.local", "bench", "client")
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Ca:
    """A running `meshscrape ca serve`."""

    address: str
    pid: int
    root_pem: bytes
    token: str


def run(rounds: int) -> list[Row]:
    """Certificates by token and by client certificate; `rounds` times ten requests each."""
    number = max(50, rounds * 10)
    with tempfile.TemporaryDirectory() as name, running_ca(Path(name)) as ca:
        credentials = Path(name) / "credentials"
        asyncio.run(load(ca, WIDTH, ca.token, None, keep=credentials))
        by_token = _measured(ca, number, ca.token, None)
        by_certificate = _measured(ca, number, None, credentials)
        alone = asyncio.run(load(ca, 50, ca.token, None, width=1))
        signing = _signing(Path(name) / "signing", number)
    note = f"{number} requests, {WIDTH} at a time, P-256; per second of the CA's own CPU time"
    sign = "parse and check the request, sign, nothing else"
    latency = f"{len(alone)} requests one after the other, the client's own work included"
    return [
        Row("certificates per core, by token", by_token, "/s", "", f"{note}; one handshake each"),
        Row("certificates per core, by certificate", by_certificate, "/s", "", "the same; mutual TLS"),
        Row("certificates per core, signing alone", signing, "/s", "", sign),
        Row("certificate, from request to answer", median(alone) * 1000, "ms", "", f"median of {latency}"),
    ]


def _measured(ca: Ca, number: int, token: str | None, credentials: Path | None) -> float:
    """Certificates per second of the CA's CPU."""
    before = cpu_seconds(ca.pid)
    asyncio.run(load(ca, number, token, credentials))
    return number / (cpu_seconds(ca.pid) - before)


async def load(
    ca: Ca,
    number: int,
    token: str | None,
    credentials: Path | None,
    *,
    keep: Path | None = None,
    width: int = WIDTH,
) -> list[float]:
    """The times of `number` requests; the last certificate goes to the directory `keep`."""
    places = asyncio.Semaphore(width)
    key = generate_key()
    csr = make_csr(key, IDENTITY)

    async def one() -> float:
        async with places:
            began = time.perf_counter()
            chain, bundle = await create_certificate(
                ca.address,
                ca.root_pem,
                csr,
                DAY,
                token=token,
                client_credentials=credentials,
                deadline=30.0,
            )
            took = time.perf_counter() - began
        if keep is not None:
            files = {"cert-chain.pem": b"".join(chain), "key.pem": key_to_pem(key), "root-cert.pem": bundle}
            publish(keep, files)
        return took

    return list(await asyncio.gather(*(one() for _ in range(number))))


def _signing(directory: Path, number: int) -> float:
    """Certificates per second of CPU without a network."""
    directory.mkdir(mode=0o700)
    now = datetime.now(UTC)
    authority = open_own(directory, "cluster.local", now)
    csr = make_csr(generate_key(), IDENTITY)
    began = time.process_time()
    for _ in range(number):
        key = check_public_key(load_csr(csr).public_key(), "CSR")
        authority.issue(key, IDENTITY, now, DAY)
    return number / (time.process_time() - began)


@contextlib.contextmanager
def running_ca(directory: Path) -> Iterator[Ca]:
    own = directory / "ca"
    token = TokenIssuer.load_or_create(own).issue("bench", "client", datetime.now(UTC), DAY)
    command = [
        sys.executable,
        "-m",
        "meshscrape",
        "ca",
        "serve",
        "--dir",
        str(own),
        "--listen",
        "127.0.0.1:0",
    ]
    path = directory / "ca.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        address = _ready(process, path)
        yield Ca(address, process.pid, (own / "root-cert.pem").read_bytes(), token)
    finally:
        process.terminate()
        process.wait(10)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address of the CA, once it listens."""
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith(READY):
                return line.removeprefix(READY).partition(",")[0]
        time.sleep(0.01)
    raise RuntimeError(f"the CA ended: {log.read_text()}")
