"""The containers that a plan adds to Prometheus's pod, run as processes with exactly their words."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from meshscrape.prometheus import scrape_proxy_pod
from meshscrape.prometheus.scrape_proxy_pod import CSI_FILES, CertificateFiles, ScrapeProxyPod
from meshscrape.system.files import publish
from meshscrape.system.processes import bound_to_parent
from support.addresses import loopback
from support.applications import applications
from support.ca import CaProcess, ca_process
from support.forgery import Pair
from support.kubernetes_api import POD, kubeconfig, lists_pods
from support.polling import eventually
from support.targets import Target, tls_target

FIELDS = {
    "status.podIP": "10.0.0.9",
    "metadata.name": "prometheus-0",
    "metadata.namespace": "monitoring",
    "spec.serviceAccountName": "prometheus",
}


class PodProcesses:
    """The sidecars of one pod: its volumes are directories, its loopback address is another one."""

    def __init__(
        self, directory: Path, ca: CaProcess, config: Path, files: CertificateFiles | None = None
    ) -> None:
        self.address, self._directory, self._config = loopback(), directory, config
        self._volumes = {
            "/run/meshscrape": directory / "run",
            scrape_proxy_pod.TOKEN_DIRECTORY: directory / "token-volume",
            "/var/run/secrets/meshscrape": directory / "secrets",
            "/var/run/secrets/spiffe.io": directory / "spiffe",
        }
        for volume in self._volumes.values():
            volume.mkdir()
        secrets = directory / "secrets"
        for name in ("token", "roots"):
            (secrets / name).mkdir()
        (secrets / "token/istio-token").write_text(ca.token("monitoring", "prometheus"))
        (secrets / "roots/root-cert.pem").write_bytes(ca.root_pem)
        # What cert-manager's driver writes; without `files`, nothing reads it.
        own = ca.issue("monitoring", "prometheus")
        names = {"tls.crt": own.chain_pem, "tls.key": own.key_pem, "ca.crt": ca.root_pem}
        publish(directory / "spiffe", names)
        proxy = ScrapeProxyPod("image", ca.address, "cluster.local", files=files)
        planned = scrape_proxy_pod.init_containers(proxy)
        self.containers = {each["name"]: each for each in planned}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a container."""
        container = self.containers[name]
        with (self._directory / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                bound_to_parent([sys.executable, "-m", "meshscrape", *map(self._here, container["args"])]),
                env=self._environment(container),
                stdout=log,
                stderr=log,
            )

    def probe(self) -> int:
        """Run the startup probe of the process that follows pods; return its exit code."""
        command = self.containers["scrape-proxy"]["startupProbe"]["exec"]["command"]
        words = [sys.executable, "-m", *map(self._here, command)]
        return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode

    def scrape(self, authority: str) -> int:
        """Scrape as Prometheus does, with the token of the volume that it mounts."""
        token = (self._directory / "token-volume/token").read_text().strip()
        connection = http.client.HTTPConnection(self.address, 15094, timeout=10)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token}"}
            connection.request("GET", f"http://{authority}/stats/prometheus", headers=headers)
            return connection.getresponse().status

    def stop(self) -> None:
        """End everything."""
        for process in self.running.values():
            process.kill()
            process.wait(10)

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        given = {
            each["name"]: each.get("value", "")
            if "valueFrom" not in each
            else FIELDS[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in container.get("env", [])
        }
        own = {name: self._here(value) for name, value in given.items()}
        # A pod has its own loopback; here that is an address, and a kubeconfig stands for the pod's account.
        machine = {"KUBECONFIG": str(self._config), "MESHSCRAPE_INSIDE_ADDRESS": self.address}
        link = {"MESHSCRAPE_PROMETHEUS_SERVICE_HOST": "10.0.0.1"}
        if not own:
            machine.pop("MESHSCRAPE_INSIDE_ADDRESS")
        return {**os.environ, **own, **machine, **link}

    def _here(self, text: str) -> str:
        for path, place in self._volumes.items():
            text = text.replace(path, str(place))
        return text.replace("127.0.0.1:150", f"{self.address}:150")


@pytest.fixture(params=[None, CSI_FILES], ids=["istiod", "csi-driver-spiffe"])
def pod(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[PodProcesses, str]]:
    """A mesh's CA, an API server with one pod, that pod, and the sidecars; the pod's address and port."""
    address = loopback()
    listed = {**POD, "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}}
    document = {"metadata": {"resourceVersion": "7"}, "items": [listed]}
    with (
        ca_process(tmp_path) as ca,
        applications(api := loopback(), {"api": lists_pods(document=document)}) as ports,
        contextlib.ExitStack() as stack,
    ):
        issued = ca.issue("shop", "web")
        pair = Pair(issued.chain_pem, issued.key_pem)
        target = stack.enter_context(tls_target(Target(address), pair, ca.root_pem, tmp_path))
        kubeconfig(tmp_path, f"http://{api}:{ports['api']}")
        processes = PodProcesses(tmp_path, ca, tmp_path / "kubeconfig", request.param)
        stack.callback(processes.stop)
        yield processes, target.authority


def test_planned_containers_scrape_with_a_certificate_of_the_mesh(pod: tuple[PodProcesses, str]) -> None:
    """Started in their order, with the mesh's CA: the probe succeeds once the pod is scraped, not before."""
    processes, authority = pod
    assert processes.probe() == 1
    for name in processes.containers:
        processes.start(name)
    eventually(lambda: processes.probe() == 0, within=60, what="a startup probe that succeeds")
    assert processes.scrape(authority) == 200
    assert processes.scrape("10.9.9.9:15092") == 404
    for name, process in processes.running.items():
        if name != "scrape-proxy-envoy":
            process.kill()
            process.wait(10)
    assert processes.scrape(authority) == 200
