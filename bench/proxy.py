"""The scrape proxy: what Prometheus through it costs against Prometheus direct, and how it grows."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import Row, cpu_seconds, median, memory
from bench.scrapes import ACCEPT, IDENTITY, SECURE, envoy
from meshscrape.local.binaries import find_prometheus
from meshscrape.prometheus.config import DirectScrapes, ScrapeOptions, ScrapeProxyAccess, render
from meshscrape.prometheus.target_files import target_file
from meshscrape.prometheus.targets import ENVOY_JOB, JOBS, Target, file_sd
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.files import write_atomic

TARGETS = 40
INTERVAL = 1.0
WARM_UP, WINDOW = 8.0, 30.0
LISTEN, DISCOVERY = "127.9.3.1:15094", "127.9.3.1:15095"
DIRECT, THROUGH = "127.9.3.1:9090", "127.9.3.1:9091"
_SCRAPES = f'sum(count_over_time(up{{job="{ENVOY_JOB}"}}[1h]))'
STATS = "/stats/prometheus"
FLEETS = ((1_000, 50), (10_000, 500))
CHANGES = 10
BOUND = 90.0


def run(rounds: int) -> list[Row]:
    """Rows about latency and CPU for 100 kB, and about fleets of targets; `rounds` scrapes for latency."""
    rows: list[Row] = []
    pods = tuple(f"127.9.4.{number}" for number in range(1, TARGETS + 1))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with envoy(directory, 100_000, pods) as (_, tls):
            targets = [Target(pod, SECURE, SpiffeId.parse(IDENTITY), {"pod": pod}) for pod in pods]
            with _proxy(directory, targets) as proxy:
                rows += _latency(proxy, pods[0], tls, max(rounds, 100))
            rows += _cpu(directory, targets)
    for number, identities in FLEETS:
        with tempfile.TemporaryDirectory() as name:
            rows += _fleet(Path(name), number, identities)
    return rows


def _latency(proxy: _Proxy, pod: str, tls: ssl.SSLContext, scrapes: int) -> list[Row]:
    """Direct and through the proxy in turn, on connections that are kept."""
    direct = http.client.HTTPSConnection(pod, SECURE, context=tls)
    host, port = LISTEN.rsplit(":", 1)
    through = http.client.HTTPConnection(host, int(port))
    samples: dict[str, list[float]] = {"direct": [], "through": []}
    size = 0
    for number in range(scrapes + 1):
        for name, connection, url, headers in (
            ("direct", direct, STATS, {}),
            ("through", through, f"http://{pod}:{SECURE}{STATS}", proxy.authorization),
        ):
            began = time.perf_counter()
            connection.request("GET", url, headers={"Accept": ACCEPT, **headers})
            response = connection.getresponse()
            size = len(response.read())
            if response.status != 200:
                raise RuntimeError(f"the scrape {name} answered {response.status}")
            if number:
                samples[name].append(time.perf_counter() - began)
    added = median(samples["through"]) - median(samples["direct"])
    note = f"{scrapes} scrapes each in turn, kept alive, {size} bytes; a Python client that does its own TLS"
    return [
        Row("latency added by the proxy, p50, 100 kB", added * 1e3, "ms", "≤ 2", note),
        Row("latency direct, p50, 100 kB", median(samples["direct"]) * 1e3, "ms"),
        Row("latency through the proxy, p50, 100 kB", median(samples["through"]) * 1e3, "ms"),
    ]


def _cpu(directory: Path, targets: Sequence[Target]) -> list[Row]:
    """The same targets scraped direct and through the proxy, by two Prometheus at the same time.

    At the same time, so that whatever else the machine does meets both.
    """
    sd = directory / "sd"
    sd.mkdir()
    for job in JOBS:
        (sd / f"{job}.json").write_text(json.dumps(file_sd(targets) if job == ENVOY_JOB else []))
    direct = render(ScrapeOptions(DirectScrapes(str(directory / "scraper"), str(sd)), INTERVAL))
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(_proxy(directory, targets))
        through = render(
            ScrapeOptions(ScrapeProxyAccess(LISTEN, DISCOVERY, str(proxy.token_file), (ENVOY_JOB,)), INTERVAL)
        )
        first = stack.enter_context(_prometheus(directory / "direct", direct, DIRECT))
        second = stack.enter_context(_prometheus(directory / "through", through, THROUGH))
        for url in (DIRECT, THROUGH):
            _until(partial(_all_up, url, len(targets)), "every target up")
        time.sleep(WARM_UP)
        pids = {
            "direct": first,
            "Prometheus": second,
            "Envoy": proxy.envoy_pid(),
            "Python": proxy.process.pid,
        }
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        scrapes = {url: _query(url, _SCRAPES) for url in (DIRECT, THROUGH)}
        time.sleep(WINDOW)
        spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        done = {url: _query(url, _SCRAPES) - scrapes[url] for url in (DIRECT, THROUGH)}
    alone = spent.pop("direct") / done[DIRECT]
    parts = {name: value / done[THROUGH] for name, value in spent.items()}
    split = ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in parts.items())
    note = f"{len(targets)} targets of 100 kB every {INTERVAL:g} s for {WINDOW:g} s, both at once; {split}"
    together = sum(parts.values())
    return [
        Row("CPU of the scraper's side, proxy/direct", together / alone, "ratio", "≤ 1.3", note),
        Row("CPU per scrape, direct", alone * 1e3, "ms"),
        Row("CPU per scrape, through the proxy", together * 1e3, "ms"),
    ]


def _fleet(directory: Path, number: int, identities: int) -> list[Row]:
    """Memory with so many targets that nobody scrapes, and how long a change takes to be a route."""
    draw = random.Random(number)
    targets = [
        Target(
            f"10.{host >> 16}.{host >> 8 & 255}.{host & 255}",
            15092,
            SpiffeId(
                "cluster.local", f"/ns/namespace-{host % identities % 40}/sa/workload-{host % identities}"
            ),
            {
                "namespace": f"namespace-{host % 40}",
                "pod": f"workload-{host}",
                "workload": f"w-{host % identities}",
            },
        )
        for host in range(1, number + 1)
    ]
    with envoy(directory, 0), _proxy(directory, targets) as proxy:
        sizes = memory(proxy.envoy_pid()), memory(proxy.process.pid)
        routes: list[float] = []
        before = cpu_seconds(proxy.envoy_pid()), cpu_seconds(proxy.process.pid)
        for change in range(CHANGES):
            # A closed port of this machine: the answer says at once whether there is a route.
            new = Target(f"127.9.5.{change + 1}", 1, draw.choice(targets).spiffe_id, {"pod": "new"})
            targets[draw.randrange(len(targets))] = new
            proxy.announce(targets)
            began = time.perf_counter()
            _until(partial(proxy.routed, new), "the new route")
            routes.append(time.perf_counter() - began)
        spent = cpu_seconds(proxy.envoy_pid()) - before[0], cpu_seconds(proxy.process.pid) - before[1]
    what = f"{number:,} targets, {identities} identities"
    note = f"median of {CHANGES} changes of one target, from the file's rename to the route in use"
    cpu = (
        f"Envoy {spent[0] / CHANGES * 1e3:.0f} ms, Python {spent[1] / CHANGES * 1e3:.0f} ms of CPU per change"
    )
    return [
        Row(f"Envoy, resident: {what}", sizes[0].resident, "MB", "", "no connections to targets"),
        Row(f"Python, resident: {what}", sizes[1].resident, "MB"),
        Row(f"a changed target is a changed route: {what}", median(routes), "s", "≤ 1", note),
        Row(f"the slowest of them: {what}", max(routes), "s", "≤ 1", cpu),
    ]


@dataclass(slots=True)
class _Proxy:
    process: subprocess.Popen[bytes]
    file: Path
    token_file: Path

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}

    def announce(self, targets: Sequence[Target]) -> None:
        write_atomic(self.file, json.dumps(target_file(targets)).encode())

    def envoy_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def routed(self, target: Target) -> bool:
        """Whether the proxy knows the address: it then fails to connect, instead of refusing."""
        host, port = LISTEN.rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", target.proxied_url, headers=self.authorization)
            return connection.getresponse().status == 503


@contextlib.contextmanager
def _proxy(directory: Path, targets: Sequence[Target]) -> Iterator[_Proxy]:
    """`meshscrape proxy` with the credentials of `directory`/scraper, ready."""
    state = directory / "proxy"
    file = directory / f"{ENVOY_JOB}.json"
    write_atomic(file, json.dumps(target_file(targets)).encode())
    command = [sys.executable, "-m", "meshscrape", "proxy", "--dir", str(state), "--targets", str(file)]
    command += ["--listen", LISTEN, "--discovery", DISCOVERY, "--credentials", str(directory / "scraper")]
    log = directory / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _until(lambda: "ready" in log.read_text() or _still(process, log), "a ready proxy")
        yield _Proxy(process, file, state / "token")
    finally:
        process.terminate()
        process.wait(BOUND)


@contextlib.contextmanager
def _prometheus(directory: Path, config: str, address: str) -> Iterator[int]:
    found = find_prometheus(os.environ)
    if found is None:
        raise RuntimeError("no Prometheus here: make setup fetches one")
    directory.mkdir()
    (directory / "prometheus.yml").write_text(config)
    command = [str(found.server), f"--config.file={directory / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={address}"]
    with (directory / "log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(BOUND)


def _query(address: str, expression: str) -> float:
    """An instant query that has one value, 0 when it has none."""
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        document: dict[str, Any] = json.load(answer)
    found = document["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


def _all_up(address: str, count: int) -> bool:
    """Return whether `count` targets of Envoys' statistics are up."""
    return _query(address, f'sum(up{{job="{ENVOY_JOB}"}})') == count


def _still(process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the proxy ended: {log.read_text()[-2000:]}")
    return False


def _until(seen: Callable[[], bool], what: str) -> None:
    """Poll until `seen()`; an OSError counts as not yet."""
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if seen():
                return
        time.sleep(0.005)
    raise RuntimeError(f"{what} did not come within {BOUND:.0f} s")
