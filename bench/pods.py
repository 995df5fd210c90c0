"""The scrape proxy in a cluster of ten thousand pods: start, memory, single changes, steady change."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import Row, cpu_seconds, median, memory
from meshscrape.system.processes import bound_to_parent
from support.forgery import Forge
from support.scrape_proxy import credentials

PODS, ACCOUNTS = 10_000, 500
LISTEN, DISCOVERY = "127.9.5.1:15094", "127.9.5.1:15095"
SHARE = "127.9.5.1:15098"
FOLLOWER_LISTEN, FOLLOWER_DISCOVERY = "127.9.5.2:15094", "127.9.5.2:15095"
API = ("127.9.5.1", 16443)
CHANGES, RATE, WINDOW = 15, 20, 30.0
# Padding, so that a pod is as large as one of Istio's (bytes).
_PADDING = "x" * 4800


def run(rounds: int) -> list[Row]:
    """Return rows about the start, single changes, and steady change; `rounds` is not used."""
    with tempfile.TemporaryDirectory() as name, _Cluster() as cluster:
        directory = Path(name)
        began = time.monotonic()
        with _proxy(directory, cluster) as process:
            ready = time.monotonic() - began
            envoy = _envoy_of(process.pid)
            token = (directory / "proxy/token").read_text().strip()
            first = {pid: memory(pid).resident for pid in (process.pid, envoy)}
            time.sleep(5)
            samples = [_latency(cluster, token) for _ in range(CHANGES)]
            before = {pid: cpu_seconds(pid) for pid in (process.pid, envoy)}
            reloads = -_reloads(token)
            cluster.change_steadily(RATE, WINDOW)
            reloads += _reloads(token)
            cost = {pid: cpu_seconds(pid) - began for pid, began in before.items()}
            spent = {pid: seconds / WINDOW * 100 for pid, seconds in cost.items()}
            late = _latency(cluster, token)
            last = {pid: memory(pid).resident for pid in (process.pid, envoy)}
            following = _following(directory, cluster)
    note = f"{PODS} pods of {cluster.size} bytes, {ACCOUNTS} ServiceAccounts, two secure ports each"
    number = int(RATE * WINDOW)
    return [
        Row("ready after the start", ready, "s", "≤ 10", note),
        Row("memory of the Python process", first[process.pid], "MB", "≤ 90"),
        Row("memory of its Envoy", first[envoy], "MB", "≤ 150"),
        Row("a single change until its route is live, p50", median(samples), "s", "≤ 1"),
        Row("a single change until its route is live, worst", max(samples), "s"),
        Row(f"CPU of Python at {RATE} changes a second", spent[process.pid], "% of a core", "≤ 10"),
        Row(f"CPU of Envoy at {RATE} changes a second", spent[envoy], "% of a core"),
        Row("changes of the routes meanwhile", reloads, "", note=f"of {number} changes of pods, gathered"),
        Row("CPU of Python for one change of the routes", cost[process.pid] / reloads * 1e3, "ms"),
        Row("CPU of Envoy for one change of the routes", cost[envoy] / reloads * 1e3, "ms"),
        Row("a change after steady change until its route is live", late, "s"),
        Row(f"memory of the Python process after {number} changes", last[process.pid], "MB"),
        Row(f"memory of its Envoy after {number} changes", last[envoy], "MB"),
        *following,
    ]


def _following(directory: Path, cluster: _Cluster) -> list[Row]:
    """Return rows about a second proxy that follows the first over mutual TLS."""
    own = directory / "follower"
    own.mkdir()
    words = [
        "--follow", SHARE, "--credentials", str(directory / "scraper"), "--dir", str(own / "proxy"),
        "--listen", FOLLOWER_LISTEN, "--discovery", FOLLOWER_DISCOVERY,
    ]  # fmt: skip
    began = time.monotonic()
    with _running(words, own / "log") as process:
        ready = time.monotonic() - began
        envoy = _envoy_of(process.pid)
        token = (own / "proxy/token").read_text().strip()
        samples = [_latency(cluster, token, FOLLOWER_LISTEN) for _ in range(CHANGES)]
        before = {pid: cpu_seconds(pid) for pid in (process.pid, envoy)}
        cluster.change_steadily(RATE, WINDOW)
        spent = {pid: (cpu_seconds(pid) - began) / WINDOW * 100 for pid, began in before.items()}
        return [
            Row("a follower: ready after the start", ready, "s"),
            Row("a follower: a single change until its route is live, p50", median(samples), "s"),
            Row(f"a follower: CPU of Python at {RATE} changes a second", spent[process.pid], "% of a core"),
            Row(f"a follower: CPU of Envoy at {RATE} changes a second", spent[envoy], "% of a core"),
            Row("a follower: memory of the Python process", memory(process.pid).resident, "MB"),
            Row("a follower: memory of its Envoy", memory(envoy).resident, "MB"),
        ]


class _Cluster:
    """An API server that lists pods, and sends their changes to every watch."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        self._addresses = (f"10.{a}.{b}.{c}" for a in range(256) for b in range(256) for c in range(1, 255))
        self.pods = [self._pod(number, next(self._addresses)) for number in range(PODS)]
        self.size = len(json.dumps(self.pods[0]))
        self._version = itertools.count(100)
        self._watches: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> _Cluster:
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def change(self) -> str:
        """Give a random pod a new address, and return it."""
        number = self._random.randrange(PODS)
        self.pods[number] = self._pod(number, address := next(self._addresses))
        event = json.dumps({"type": "MODIFIED", "object": self.pods[number]}).encode() + b"\n"
        self._loop.call_soon_threadsafe(self._send, event)
        return address

    def change_steadily(self, rate: int, seconds: float) -> None:
        """Change `rate` pods a second."""
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            self.change()

    def _pod(self, number: int, address: str) -> dict[str, Any]:
        account = f"account-{number % ACCOUNTS}"
        annotations = {
            "prometheus.istio.io/secure-port": "15092",
            "prometheus.istio.io/secure-envoy-port": "15091",
            "padding": _PADDING,
        }
        owner = {"kind": "ReplicaSet", "name": f"app-{number % ACCOUNTS}-5d8f6c7b9", "controller": True}
        return {
            "metadata": {
                "name": f"app-{number % ACCOUNTS}-5d8f6c7b9-{number:05}", "namespace": f"ns-{number % 50}",
                "uid": f"uid-{number}", "resourceVersion": str(number), "annotations": annotations,
                "labels": {"app": f"app-{number % ACCOUNTS}", "pod-template-hash": "5d8f6c7b9"},
                "ownerReferences": [owner],
            },
            "spec": {
                "serviceAccountName": account,
                "containers": [
                    {"name": "app", "image": "app:1"},
                    {"name": "istio-proxy", "image": "istio/proxyv2:1.31.0", "args": ["proxy", "sidecar"]},
                ],
            },
            "status": {
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "containerStatuses": [{"name": name, "ready": True} for name in ("app", "istio-proxy")],
            },
        }  # fmt: skip

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._answer, *API))
        self._started.set()
        self._loop.run_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                line = head.split(b"\r\n", 1)[0].decode()
                if "watch=1" in line:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
                    self._watches.add(writer)
                    return
                query = dict(
                    each.split("=", 1)
                    for each in line.split(" ")[1].partition("?")[2].split("&")
                    if "=" in each
                )
                start = int(query.get("continue", "0"))
                end = start + int(query.get("limit", "500"))
                more = str(end) if end < PODS else ""
                document = {
                    "metadata": {"resourceVersion": "100", "continue": more},
                    "items": self.pods[start:end],
                }
                body = json.dumps(document).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()

    def _send(self, event: bytes) -> None:
        for writer in self._watches:
            writer.write(event)


def _latency(cluster: _Cluster, token: str, listen: str = LISTEN) -> float:
    """Return the seconds from a change of a pod until the proxy has a route to its new address."""
    time.sleep(2)
    address, began = cluster.change(), time.monotonic()
    host, port = listen.rsplit(":", 1)
    headers = {"Authorization": f"Bearer {token}", "X-Prometheus-Scrape-Timeout-Seconds": "0.1"}
    while time.monotonic() - began < 60:
        # The target does not exist, so Envoy answers after the scrape's timeout.
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        with contextlib.closing(connection):
            try:
                connection.request("GET", f"http://{address}:15092/stats/prometheus", headers=headers)
                if connection.getresponse().status != 404:
                    return time.monotonic() - began
            except OSError:
                continue
        time.sleep(0.01)
    raise RuntimeError("a changed pod got no route within a minute")


def _reloads(token: str) -> float:
    host, port = DISCOVERY.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
        text = connection.getresponse().read().decode()
    found = re.search(r"^meshscrape_scrape_proxy_reloads_total (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextlib.contextmanager
def _proxy(directory: Path, cluster: _Cluster) -> Iterator[subprocess.Popen[bytes]]:
    """Run `meshscrape proxy --kubernetes` until it is ready, then for the block."""
    forge = Forge()
    scraper = credentials(directory / "scraper", forge)
    config = directory / "kubeconfig"
    server = {"name": "bench", "cluster": {"server": f"http://{API[0]}:{API[1]}"}}
    context = {"name": "bench", "context": {"cluster": "bench", "user": "bench"}}
    user = {"name": "bench", "user": {"token": "bench"}}
    document = {
        "apiVersion": "v1", "kind": "Config", "clusters": [server], "contexts": [context],
        "users": [user], "current-context": "bench",
    }  # fmt: skip
    config.write_text(json.dumps(document))
    words = [
        "--kubernetes", "--kubeconfig", str(config), "--credentials", str(scraper),
        "--dir", str(directory / "proxy"), "--listen", LISTEN, "--discovery", DISCOVERY, "--share", SHARE,
    ]  # fmt: skip
    with _running(words, directory / "log") as process:
        yield process


@contextlib.contextmanager
def _running(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `meshscrape proxy` until it is ready, then for the block."""
    command = [sys.executable, "-m", "meshscrape", "proxy", *words]
    with log.open("wb") as output:
        process = subprocess.Popen(bound_to_parent(command), stdout=output, stderr=output)
    try:
        while b"ready:" not in log.read_bytes():
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _envoy_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(
        int(child) for child in children if Path(f"/proc/{child}/comm").read_text().strip() == "envoy"
    )
