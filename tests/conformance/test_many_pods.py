"""Ten thousand pods as objects without processes on a real API server: observe, plan, apply's dry run."""

from __future__ import annotations

import base64
import http.client
import json
import os
import queue
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from conformance.api_server import ApiServer, running
from conformance.conftest import note
from conformance.lone_mesh import COMMAND, SCRAPER, mesh_on
from support.objects import deployment, injected_namespace, pod_of

pytestmark = pytest.mark.whole
SPACES, WORKLOADS, REPLICAS = 50, 40, 5  # 2,000 Deployments with 10,000 pods
THREADS = 8
OWNER = {"apiVersion": "apps/v1", "controller": True}
PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Service": "/api/v1/namespaces/{}/services",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "ReplicaSet": "/apis/apps/v1/namespaces/{}/replicasets",
    "Pod": "/api/v1/namespaces/{}/pods",
}


class Loader:
    """Creates objects over kept-alive connections: kubectl would take an hour."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        value = json.loads(server.kubeconfig.read_text())
        self._place = urlsplit(value["clusters"][0]["cluster"]["server"])
        authority = base64.b64decode(value["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        user = value["users"][0]["user"]
        file = directory / "user.pem"
        parts = (user["client-certificate-data"], user["client-key-data"])
        file.write_bytes(b"\n".join(map(base64.b64decode, parts)))
        self._context.load_cert_chain(file)

    def load(self, things: list[Any]) -> None:
        """Create objects of any order, and write the status of those that have one."""
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for each in things:
            waiting.put(each)
        failures: list[str] = []

        def work() -> None:
            connection = http.client.HTTPSConnection(
                str(self._place.hostname), self._place.port, context=self._context
            )
            while not failures:
                try:
                    thing = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._make(connection, thing)
                except AssertionError as error:
                    failures.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]

    def _make(self, connection: http.client.HTTPSConnection, thing: Any) -> None:
        path = PATHS[thing["kind"]].format(thing["metadata"].get("namespace", ""))
        status = thing.pop("status", None)
        self._send(connection, "POST", path, thing, "application/json")
        if status is not None:
            patched = f"{path}/{thing['metadata']['name']}/status"
            self._send(connection, "PATCH", patched, {"status": status}, "application/merge-patch+json")

    @staticmethod
    def _send(connection: http.client.HTTPSConnection, method: str, path: str, body: Any, kind: str) -> None:
        connection.request(method, path, json.dumps(body), {"Content-Type": kind})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 300, f"{method} {path}: {text.decode()[:500]}"


def space(number: int) -> Iterator[Any]:
    """The objects of one namespace, but for itself and its ServiceAccounts."""
    name = f"team-{number}"
    for index in range(WORKLOADS):
        app = f"app-{index}"
        found = deployment(
            app, name, annotations={"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}
        )
        found["spec"]["replicas"] = REPLICAS
        found["status"] = {"observedGeneration": 1} | dict.fromkeys(
            ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), REPLICAS
        )
        yield found
        template = found["spec"]["template"]
        hashed = "5d8f6c7b9"
        labels = {**template["metadata"]["labels"], "pod-template-hash": hashed}
        yield {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{app}-{hashed}",
                "namespace": name,
                "labels": labels,
                "ownerReferences": [OWNER | {"kind": "Deployment", "name": app, "uid": f"uid-{app}"}],
            },
            "spec": {
                "replicas": REPLICAS,
                "selector": {"matchLabels": labels},
                "template": {**template, "metadata": {**template["metadata"], "labels": labels}},
            },
        }
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": app, "namespace": name},
            "spec": {
                "clusterIP": "None",
                "selector": {"app": app},
                "ports": [{"name": "http", "port": 8080}],
            },
        }
        for replica in range(REPLICAS):
            yield pod(found, f"{app}-{hashed}-{replica}", f"10.{number}.{index}.{replica + 1}")


def pod(owner: Any, name: str, address: str) -> Any:
    """A ready pod with a sidecar, complete enough for an API server."""
    found = pod_of(owner, name=name, ip=address)
    for each in (*found["spec"].get("initContainers", []), *found["spec"]["containers"]):
        each.setdefault("image", "example.com/web:1")
    for reference in found["metadata"]["ownerReferences"]:
        reference["uid"] = f"uid-{reference['name']}"
    ready = {"type": "Ready", "status": "True"}
    found["status"] |= {"podIPs": [{"ip": address}], "conditions": [ready]}
    return found


@dataclass(frozen=True)
class Measured:
    """How a command ended, and what it took."""

    code: int
    out: str
    errors: str
    seconds: float
    cpu: float
    megabytes: float

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s ({self.cpu:.0f} s of its own CPU), {self.megabytes:.0f} MB"


def measure(server: ApiServer, directory: Path, verb: str, *words: str) -> Measured:
    """Run a verb to its end with its output in files, and measure the process."""
    with open(directory / "out", "w+") as out, open(directory / "errors", "w+") as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            [COMMAND, verb, "--kubeconfig", server.kubeconfig, *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    told = (directory / "out").read_text(), (directory / "errors").read_text()
    return Measured(process.returncode, *told, seconds, cpu, memory)


@pytest.mark.timeout(3600)
def test_ten_thousand_pods_are_observed_planned_and_tried(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every pod is seen, every workload is planned, and the API server accepts every change of the plan."""
    count = SPACES * WORKLOADS
    names = [f"team-{number}" for number in range(SPACES)]
    # An API server of its own: without controllers, nothing would remove these namespaces from another one.
    with running(tmp_path) as server, mesh_on(server):
        fill(Loader(server, tmp_path), names)
        seen = measure(server, tmp_path, "observe", "-o", "json")
        assert seen.code == 0, seen.errors
        workloads = [
            each for each in json.loads(seen.out)["workloads"] if each["object"]["namespace"] in names
        ]
        assert len(workloads) == count
        planned = measure(server, tmp_path, "plan", *SCRAPER)
        assert planned.code == 1, planned.errors
        last = planned.out.splitlines()[-1]
        tried = measure(server, tmp_path, "apply", *SCRAPER, "--dry-run")
        assert (tried.code, "accepts every change" in tried.errors) == (0, True), tried.errors[-2000:]
        version = json.loads(server("get", "--raw", "/version"))["gitVersion"]
        print(f"observe: {seen}\nplan: {planned}\napply --dry-run: {tried}\n{last}")
    note(request, "an API server alone", {"Kubernetes": version})(
        f"{count * REPLICAS} pods of {count} Deployments in {SPACES} namespaces",
        f"observe {seen}; plan {planned}; apply --dry-run {tried}. {last}",
    )


def fill(loader: Loader, names: list[str]) -> None:
    """Create the namespaces with all their objects."""
    loader.load([injected_namespace(name) for name in names])
    loader.load(
        [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": name}}
            for name in names
            for account in ("default", *(f"app-{index}" for index in range(WORKLOADS)))
        ]
    )
    loader.load([each for number in range(len(names)) for each in space(number)])
