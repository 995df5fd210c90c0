"""An API server alone: etcd and kube-apiserver as processes, without a node, without root."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformance.cluster import certificates, programs
from conformance.cluster.control_plane import commands
from conformance.cluster.machine import environment
from conformance.kube import Capabilities, Kube, until
from support.addresses import free_port, loopback
from support.upstream import CRDS

NAMES = ("etcd", "kube-apiserver", "kubectl")


class ApiServer(Kube):
    """etcd and kube-apiserver. The API server can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # An address of its own: nothing else takes its port while it is stopped.
        self.address = loopback()
        self.port = free_port(self.address)
        self.pki = certificates.write(directory / "pki", self.address)
        file = directory / "kubeconfig"
        certificates.write_kubeconfig(file, self.pki, self.address, self.port)
        super().__init__(programs.program("kubectl"), file, Capabilities("an API server alone"))
        urls = (self._free_url(), self._free_url())
        self._commands = commands(self.pki, self.address, directory, file, etcd=urls, port=self.port)
        # It has no node whose address it could announce as that of the Service `kubernetes`.
        self._commands["kube-apiserver"].append("--endpoint-reconciler-type=none")
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def _free_url(self) -> str:
        return f"http://{self.address}:{free_port(self.address)}"

    def start(self, name: str) -> None:
        """Start one of the processes."""
        with open(self.directory / f"{name}.log", "ab") as out:
            self._children[name] = subprocess.Popen(
                # They end with the tests, also when these are killed.
                ["setpriv", "--pdeathsig", "KILL", str(programs.program(name)), *self._commands[name]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment(),
            )

    def stop(self, name: str) -> None:
        """End one of the processes."""
        child = self._children.pop(name)
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def close(self) -> None:
        """End both."""
        for name in list(reversed(self._children)):
            self.stop(name)

    def ready(self) -> bool:
        """Return whether the API server answers and has made its first namespace."""
        for name, child in self._children.items():
            assert child.poll() is None, f"{name} ended; see {self.directory / name}.log"
        return self.run("get", "--raw", "/readyz").returncode == 0 and self.has("namespace", "default")

    def user(self, name: str, role: str) -> Path:
        """Return the kubeconfig of a ServiceAccount of `default` that is bound to a role already."""
        self.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named(name)})
        assert self.has("clusterrolebinding", role)
        return self.with_user(name, {"token": self("-n", "default", "create", "token", name).strip()})

    def with_user(self, name: str, user: dict[str, Any]) -> Path:
        """Return a kubeconfig of this API server with other credentials."""
        value = json.loads(self.kubeconfig.read_text())
        value["users"] = [{"name": "admin", "user": user}]
        file = self.directory / f"kubeconfig-{name}"
        file.write_text(json.dumps(value))
        return file


def named(name: str, namespace: str = "default") -> dict[str, str]:
    """Return the metadata of an object."""
    return {"name": name, "namespace": namespace}


@contextlib.contextmanager
def running(directory: Path) -> Iterator[ApiServer]:
    """Run an API server that knows the kinds of Istio, the Gateway API and the Prometheus Operator."""
    programs.build(tuple(programs.BY_NAME[name] for name in NAMES))
    server = ApiServer(directory)
    try:
        server.start("etcd")
        server.start("kube-apiserver")
        until(server.ready, "the API server answers", timeout=300.0)
        files = sorted(CRDS.rglob("*.yaml"))
        assert files, f"no CRDs in {CRDS}: run `make upstream`"
        for file in files:
            server("apply", "--server-side", "-f", str(file))
        until(lambda: server.has("sidecars.networking.istio.io", "-A"), "Istio's kinds are served")
        yield server
    finally:
        server.close()
