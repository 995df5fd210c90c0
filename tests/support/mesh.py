"""A real mesh for tests: `meshscrape up` as a child process, its status document, its command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from meshscrape.system.processes import bound_to_parent
from support.polling import eventually

MESHSCRAPE = (sys.executable, "-m", "meshscrape")
EXAMPLE = Path(__file__).parents[2] / "src/meshscrape/local/example/mesh.yaml"


def meshscrape(
    *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; stdout and stderr as text."""
    return subprocess.run(
        [*MESHSCRAPE, *arguments], capture_output=True, text=True, env=env, timeout=timeout, check=False
    )


class Up:
    """A running `meshscrape up`; the test's end ends it, whatever happened."""

    def __init__(self, state: Path, *arguments: str, output: int | None = None) -> None:
        """`output` is a descriptor for stdout and stderr in place of the files."""
        self.state = state
        self.output = state.with_name(f"{state.name}.out")
        self.errors = state.with_name(f"{state.name}.err")
        with self.output.open("wb") as out, self.errors.open("wb") as err:
            self.process = subprocess.Popen(
                bound_to_parent(
                    [*MESHSCRAPE, "up", "--state", str(state), *arguments], death_signal=signal.SIGTERM
                ),
                stdout=out if output is None else output,
                stderr=err if output is None else output,
            )

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`meshscrape VERB --state STATE ARGUMENTS…`."""
        return meshscrape(verb, "--state", str(self.state), *arguments)

    def document(self) -> dict[str, Any]:
        """The status document as published now."""
        document: dict[str, Any] = json.loads((self.state / "status.json").read_text())
        return document

    def workload(self, title: str) -> dict[str, Any]:
        """The entry of NAMESPACE/NAME in the status document, now."""
        for entry in self.document()["workloads"]:
            if f"{entry['namespace']}/{entry['name']}" == title:
                return dict(entry)
        raise AssertionError(f"no workload {title}")

    def wait_for_phase(self, phase: str = "Ready") -> dict[str, Any]:
        """The document once it has the phase; fails at once when `up` has ended."""

        def look() -> dict[str, Any] | None:
            if self.process.poll() is not None:
                raise RuntimeError(f"up ended ({self.process.returncode}): {self.errors.read_text()}")
            document = self.document()
            # What a killed predecessor left there says nothing about this one.
            mine = document["pid"] == self.process.pid and document["phase"] == phase
            return document if mine else None

        return eventually(look, within=60, what=f"phase {phase}")

    def wait_until_up(self, *titles: str) -> None:
        """Wait until Prometheus reports every target of the workloads (default: all) as up."""

        def look() -> bool:
            entries = self.document()["workloads"]
            seen = {f"{e['namespace']}/{e['name']}": e for e in entries}
            chosen = [seen[title] for title in titles] if titles and set(titles) <= seen.keys() else entries
            targets = [target for entry in chosen for target in entry["targets"]]
            return bool(targets) and all(target["health"] == "up" for target in targets)

        eventually(look, within=60, what="up targets")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query to the mesh's Prometheus."""
        url = self.document()["prometheus"]["url"]
        found = _get_json(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        return list(found["data"]["result"])

    def active_targets(self) -> list[dict[str, Any]]:
        """Prometheus' own view of its targets."""
        url = self.document()["prometheus"]["url"]
        return list(_get_json(f"{url}/api/v1/targets?state=active")["data"]["activeTargets"])

    def prometheus_config(self) -> dict[str, Any]:
        """The configuration that Prometheus runs, from its own API."""
        url = self.document()["prometheus"]["url"]
        config: dict[str, Any] = yaml.safe_load(_get_json(f"{url}/api/v1/status/config")["data"]["yaml"])
        return config

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Signal it and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def processes(self) -> set[int]:
        """Every process of this mesh, `up` included: they work below its state directory."""
        return processes_in(self.state) | ({self.process.pid} if self.process.poll() is None else set())


@contextlib.contextmanager
def running_up(state: Path, *arguments: str, output: int | None = None) -> Iterator[Up]:
    """`meshscrape up` for the length of a block; killed, with all that is its, when it does not stop."""
    up = Up(state, *arguments, output=output)
    try:
        yield up
    finally:
        try:
            up.stop()
        except subprocess.TimeoutExpired:
            up.process.kill()
            up.process.wait()
            raise


def processes_in(directory: Path) -> set[int]:
    """Processes whose working directory is `directory` or below it: all that a mesh starts work there."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and entry != str(os.getpid()):
            with contextlib.suppress(OSError):
                where = os.readlink(f"/proc/{entry}/cwd").removesuffix(" (deleted)")
                if Path(where).is_relative_to(directory.resolve()):
                    found.add(int(entry))
    return found


def write_mesh(path: Path, *parts: str) -> Path:
    """A manifest made of documents; replaced in one step, as editors do."""
    staged = path.with_name(f".{path.name}.new")
    staged.write_text("\n---\n".join(parts))
    staged.rename(path)
    return path


def workload_manifest(
    name: str,
    *,
    namespace: str = "default",
    command: str = "sleep 1000",
    annotations: Sequence[str] = (),
    metadata: Sequence[str] = (),
    port: int | None = None,
) -> str:
    """A ServiceAccount and a Deployment; `annotations` and `metadata` (of the proxy) are YAML lines."""
    ports = f"\n          ports: [{{name: http, containerPort: {port}}}]" if port else ""
    lines = "".join(f"\n        {line}" for line in annotations)
    proxy = "".join(f"\n            {line}" for line in metadata)
    config = f"\n        proxy.istio.io/config: |\n          proxyMetadata:{proxy}" if proxy else ""
    return f"""apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: {namespace}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata:
      labels: {{app: {name}}}
      annotations:
        meshscrape.io/local-command: {json.dumps(command)}{lines}{config}
    spec:
      serviceAccountName: {name}
      containers:
        - name: {name}
          image: {name}{ports}"""


PROMETHEUS_ID = "spiffe://cluster.local/ns/istio-system/sa/prometheus"
SECURE = (
    'ENVOY_SECURE_METRICS_PORT: "15091"',
    'ENVOY_SECURE_MERGED_METRICS_PORT: "15092"',
    f"MESHSCRAPE_SCRAPERS: spiffe:{PROMETHEUS_ID}",
)


def prometheus_manifest() -> str:
    """The scraper of a mesh."""
    return workload_manifest(
        "prometheus",
        namespace="istio-system",
        command="prometheus --config.file=$(PROMETHEUS_CONFIG) --storage.tsdb.path=$(PROMETHEUS_DATA) "
        "--web.listen-address=$(POD_IP):$(PORT)",
        metadata=('INBOUND_CAPTURE_PORTS: ""', "OUTPUT_CERTS: /etc/istio-output-certs"),
        port=9090,
    )


def _get_json(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as response:
        document: dict[str, Any] = json.load(response)
    return document
