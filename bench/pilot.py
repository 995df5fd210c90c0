"""The merged endpoint against Istio's pilot-agent: the same bodies through both, in turn.

pilot-agent copies what it reads; ours validates it. pilot-agent comes from the conformance suite's tools.
Both run in a network namespace of their own, because pilot-agent listens on fixed ports of every address.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.corpora import CORPORA, ENVOY, corpus
from bench.endpoints import ADDRESS, Scraper, agent
from bench.isolation import isolated, print_rows
from bench.measure import Row, cpu_seconds, median
from bench.merge import SIZES, application, status
from meshscrape.spiffe.certificates import Signer, certificates_to_pem, issue_leaf, self_signed_root
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import generate_key, key_to_pem

STATUS_PORT = 15020
AIMS = {"100 kB": 1.0, "1 MB": 0.6, "10 MB": 0.3, "100 MB": 0.3}
SCRAPES = {"100 kB": 40, "1 MB": 12, "10 MB": 5, "100 MB": 2}


def run(rounds: int) -> list[Row]:
    """Return our speed relative to pilot-agent's for application bodies and for Envoy's part."""
    if find() is None:
        print("pilot: skipped, pilot-agent is not built (the conformance suite's tools)", file=sys.stderr)
        return []
    return isolated("bench.pilot", rounds)


def find() -> Path | None:
    """Return pilot-agent: PILOT_AGENT, else the newest of the conformance suite's cache."""
    if named := os.environ.get("PILOT_AGENT"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshscrape/conformance"
    found = sorted(cache.glob("pilot-agent-[0-9a-f]*/pilot-agent"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def measure(rounds: int) -> list[Row]:
    """Return the rows; must run where port 15020 is free."""
    rows: list[Row] = []
    binary = find()
    assert binary is not None
    with (
        tempfile.TemporaryDirectory() as directory,
        application() as served,
        application() as envoy,
    ):
        port = served.listen(ADDRESS)
        served.listen("127.0.0.1", port)
        envoy.listen_unix(Path(directory, "admin.sock"))
        served.serve(b"# TYPE a gauge\na 1\n")
        envoy.serve(b"# TYPE a gauge\na 1\n")
        with (
            agent(port) as (ours, scraper),
            agent(0, Path(directory, "admin.sock")) as of_envoy,
            _pilot(binary, Path(directory), port) as (theirs, other),
        ):
            for one in (scraper, of_envoy[1], other):
                for _ in range(5):
                    one.scrape()
            rows += [
                Row("idle memory, ours (the merge alone)", status(ours, "VmRSS"), "MB"),
                Row("idle memory, pilot-agent", status(theirs, "VmRSS"), "MB"),
            ]
            compare = _Comparison((ours, scraper), (theirs, other), rounds)
            envoys = _Comparison(of_envoy, (theirs, other), rounds)
            for name in CORPORA:
                for label, size in SIZES.items():
                    for framing, chunked in (("Content-Length", False), ("chunks of 2 kB", True)):
                        body = corpus(name, size)
                        served.serve(body, chunked=chunked)
                        rows += compare.rows(f"{name}, {label}, {framing}", len(body), label, AIMS[label])
            # pilot-agent without an Envoy of its own asks for no statistics of Envoy's: it gets the bytes
            # from the application, which it copies in the same way.
            for label in ("100 kB", "1 MB", "10 MB"):
                body = corpus(ENVOY, SIZES[label])
                envoy.serve(body, chunked=True)

                served.serve(body, chunked=True)
                rows += envoys.rows(f"{ENVOY}, {label}, chunks of 2 kB", len(body), label, 1.0)
    return rows


class _Comparison:
    """Scrapes both in turn, so that a change of the machine's speed meets both."""

    def __init__(self, ours: tuple[int, Scraper], theirs: tuple[int, Scraper], rounds: int) -> None:
        self._sides = (ours, theirs)
        self._rounds = rounds

    def rows(self, what: str, size: int, label: str, aim: float) -> list[Row]:
        """Return the ratio of the speeds, and ours, for bodies of so many bytes."""
        costs: tuple[list[float], list[float]] = ([], [])
        scrapes = max(2, SCRAPES[label] * self._rounds // 30)
        for _, scraper in self._sides:
            scraper.reconnect()
        for number in range(scrapes + 1):
            for side, (pid, scraper) in enumerate(self._sides):
                before = cpu_seconds(pid)
                if scraper.scrape() < size:
                    raise RuntimeError(f"{what}: less than {size} bytes came through")
                time.sleep(0.02)  # what it does after its answer counts too
                if number:
                    costs[side].append(cpu_seconds(pid) - before)
        ratio = median([theirs / ours for ours, theirs in zip(*costs, strict=True)])
        note = f"{scrapes} scrapes each, in turn; ours {size / 1e6 / median(costs[0]):.0f} MB per CPU second"
        return [Row(f"speed relative to pilot-agent: {what}", ratio, "ratio", f"≥ {aim:g}", note)]


@contextlib.contextmanager
def _pilot(binary: Path, directory: Path, application: int) -> Iterator[tuple[int, Scraper]]:
    """Run pilot-agent without an Envoy of its own, with certificates from files."""
    environment = {**os.environ, **_environment(directory, application)}
    command = [str(binary), "proxy", "sidecar", "--log_output_level=default:error"]
    with (directory / "pilot.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", STATUS_PORT), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"pilot-agent: {(directory / 'pilot.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield process.pid, Scraper("127.0.0.1", STATUS_PORT)
    finally:
        process.kill()
        process.wait(10)


def _environment(directory: Path, application: int) -> dict[str, str]:
    now = datetime.now(UTC)
    root_key, key = generate_key(), generate_key()
    root = self_signed_root("cluster.local", root_key, now, timedelta(days=1))
    identity = workload_id("cluster.local", "default", "bench")
    leaf = issue_leaf(Signer(root, root_key, (), (root,)), key.public_key(), identity, now, timedelta(days=1))
    files = {
        "CERT_CHAIN": ("cert-chain.pem", certificates_to_pem((leaf,))),
        "KEY": ("key.pem", key_to_pem(key)),
        "ROOT_CERT": ("root-cert.pem", certificates_to_pem((root,))),
    }
    found = {}
    for name, (file, content) in files.items():
        (directory / file).write_bytes(content)
        for side in ("CLIENT", "SERVER"):
            found[f"ISTIO_META_TLS_{side}_{name}"] = str(directory / file)
    annotations = {"scrape": "true", "path": "/metrics", "port": str(application)}
    return found | {
        "DISABLE_ENVOY": "true",
        "FILE_MOUNTED_CERTS": "true",
        "PILOT_CERT_PROVIDER": "custom",
        "XDS_ROOT_CA": str(directory / "root-cert.pem"),
        "CA_ROOT_CA": str(directory / "root-cert.pem"),
        "ISTIO_PROMETHEUS_ANNOTATIONS": json.dumps(annotations),
        "ISTIO_META_CLUSTER_ID": "Kubernetes",
        "PROXY_CONFIG": json.dumps({"statusPort": STATUS_PORT}),
        "POD_NAME": "bench",
        "POD_NAMESPACE": "default",
        "INSTANCE_IP": "127.0.0.1",
        "SERVICE_ACCOUNT": "bench",
        "TRUST_DOMAIN": "cluster.local",
    }


if __name__ == "__main__":
    print_rows(measure(int(sys.argv[1])))
