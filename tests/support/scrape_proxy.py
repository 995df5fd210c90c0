"""A real scrape proxy for tests: `meshscrape proxy` as a child process, with target files to edit."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshscrape.system.files import publish, write_atomic
from meshscrape.system.processes import bound_to_parent
from support.addresses import loopback
from support.forgery import Forge
from support.polling import eventually
from support.targets import STATS

SCRAPER = "spiffe://cluster.local/ns/istio-system/sa/prometheus"
JOB = "mesh"
READY = "INFO proxy: ready"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one request: status, lower-case headers, body."""

    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def reason(self) -> str:
        """The proxy's reason for a refusal, empty when the target itself answered."""
        return self.headers.get("x-meshscrape-refusal", "")


class RunningProxy:
    """A running `meshscrape proxy` in `directory`, its target file and its token."""

    def __init__(self, directory: Path, address: str, credentials: Sequence[str]) -> None:
        self.directory = directory
        self.address = address
        self.file = directory / f"{JOB}.json"
        self.state = directory / "proxy"
        self._credentials = credentials
        self.process: subprocess.Popen[bytes]

    @property
    def listen(self) -> str:
        return f"{self.address}:15094"

    @property
    def discovery(self) -> str:
        return f"{self.address}:15095"

    @property
    def token_file(self) -> Path:
        return self.state / "token"

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Start it; returns once it says that it is ready."""
        self.launch(*arguments, env=env)

        def ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the proxy ended ({self.process.returncode}): {self.said()}")
            return READY in self.said()

        eventually(ready, what="a ready proxy")

    def launch(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Start it, and do not wait."""
        log = self.directory / "stderr.log"
        command = [sys.executable, "-m", "meshscrape", "proxy", "--dir", str(self.state)]
        command += ["--listen", self.listen, "--discovery", self.discovery, "--targets", str(self.file)]
        for each in self._credentials:
            command += ["--credentials", each]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                bound_to_parent([*command, *arguments]),
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
            )

    def start_envoy(self) -> subprocess.Popen[bytes]:
        """Start its Envoy as a process of its own (`--role envoy`); the caller ends it."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        command = [sys.executable, "-m", "meshscrape", "proxy", "--role", "envoy", "--dir", str(self.state)]
        with (self.directory / "envoy.log").open("ab") as output:
            return subprocess.Popen(bound_to_parent(command), stdout=output, stderr=output)

    def check(self, *arguments: str) -> int:
        """The exit status of `proxy --check`, as a pod's probe runs it."""
        command = [sys.executable, "-m", "meshscrape", "proxy", "--check", "--dir", str(self.state)]
        command += ["--discovery", self.discovery, *arguments]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode

    def stop(self) -> int:
        """End it by its own id; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def said(self) -> str:
        """What it has written to stderr."""
        return (self.directory / "stderr.log").read_text()

    def announce(self, targets: Sequence[Mapping[str, Any]]) -> None:
        """Replace the target file."""
        write_atomic(self.file, json.dumps(list(targets)).encode())

    def announce_and_wait(self, targets: Sequence[Mapping[str, Any]]) -> None:
        """Replace the target file, and wait until HTTP SD tells these targets."""
        self.announce(targets)
        wanted = sorted(address for group in targets for address in group["targets"])
        eventually(lambda: self.announced() == wanted, what="the new targets")

    def announced(self) -> list[str]:
        """The addresses that HTTP SD tells."""
        return sorted(address for group in self.http_sd() for address in group["targets"])

    def http_sd(self, job: str = JOB) -> list[dict[str, Any]]:
        """The answer of HTTP SD."""
        answer = self.own(f"/targets/{job}")
        assert answer.status == 200, answer
        groups: list[dict[str, Any]] = json.loads(answer.body)
        return groups

    def own(self, path: str, *, token: str | None = None, method: str = "GET") -> Answer:
        """A request to the proxy's own HTTP, with its token unless another (or "") is given."""
        return _request(self.discovery, method, path, _bearer(self.token if token is None else token))

    def scrape(self, authority: str, path: str = STATS, *, token: str | None = None) -> Answer:
        """A scrape as Prometheus makes it: the absolute form, with the token."""
        headers = {"Host": authority, **_bearer(self.token if token is None else token)}
        return _request(self.listen, "GET", f"http://{authority}{path}", headers)

    def request(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        """Any request to the port for scrapes."""
        return _request(self.listen, method, target, headers)

    def raw(self, data: bytes) -> Answer:
        """The answer to these very bytes."""
        host, port = self.listen.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(data)
            with http.client.HTTPResponse(connection) as response:
                response.begin()
                return _answer(response)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of `name` with these labels; 0 without any."""
        total = 0.0
        for line in self.own("/metrics").body.splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found:
                own = dict(re.findall(r'(\w+)="([^"]*)"', found[1] or ""))
                if labels.items() <= own.items():
                    total += float(found[2])
        return total

    def envoy_pid(self) -> int:
        """The process id of its Envoy, now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "envoy"]
        assert found, "no Envoy"
        return found[0]


def group(address: str, identity: str, **labels: str) -> dict[str, Any]:
    """A target group for one `host:port`."""
    return {"targets": [address], "labels": {"__meshscrape_spiffe_id": identity, **labels}}


def credentials(directory: Path, forge: Forge, identity: str = SCRAPER) -> Path:
    """A directory of credentials as an agent publishes it."""
    directory.mkdir(exist_ok=True)
    pair = forge.leaf(identity)
    publish(directory, {"cert-chain.pem": pair.chain, "key.pem": pair.key, "root-cert.pem": forge.root})
    return directory


@contextlib.contextmanager
def running_proxy(
    directory: Path,
    credentials: Sequence[str],
    targets: Sequence[Mapping[str, Any]] = (),
    *arguments: str,
    env: Mapping[str, str] | None = None,
) -> Iterator[RunningProxy]:
    """A ready proxy for the time of a block; it must end well."""
    proxy = RunningProxy(directory, loopback(), credentials)
    proxy.announce(targets)
    try:
        proxy.start(*arguments, env=env)
        yield proxy
        assert proxy.stop() == 0, proxy.said()
    finally:
        if proxy.process.poll() is None:
            proxy.process.kill()
            proxy.process.wait(10)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _request(address: str, method: str, target: str, headers: Mapping[str, str]) -> Answer:
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=15)
    with contextlib.closing(connection):
        connection.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        return _answer(connection.getresponse())


def _answer(response: http.client.HTTPResponse) -> Answer:
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read().decode())
