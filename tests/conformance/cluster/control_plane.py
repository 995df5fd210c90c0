"""The control plane: etcd, kube-apiserver and kube-controller-manager as child processes of the node."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from conformance.cluster.api import Api, ApiError
from conformance.cluster.certificates import Pki
from conformance.cluster.machine import environment, log

API_PORT, KUBELET_PORT = 6443, 10250
ETCD = "http://127.0.0.1:2379"  # the loopback of the node's own network namespace
PEER = "http://127.0.0.1:2380"
SERVICE_RANGE = "10.96.0.0/16"
READY_WITHIN = 300.0
# One node that never fails, no volumes to provision: these controllers would only wait for something.
IDLE_CONTROLLERS = (
    "node-lifecycle-controller",
    "node-ipam-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-attach-detach-controller",
)


class ControlPlane:
    """The three processes. Their output goes to one file each."""

    def __init__(self, pki: Pki, address: str, state: Path, logs: Path, find: Callable[[str], Path]) -> None:
        self.pki, self.address, self.state, self.logs, self.find = pki, address, state, logs, find
        self.kubeconfig = state / "kubeconfig"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        """Start some of the three. The controllers give up on a slow API server: start them after it."""
        known = commands(self.pki, self.address, self.state, self.kubeconfig)
        for name in names:
            with open(self.logs / f"{name}.log", "ab") as out:
                self._children[name] = subprocess.Popen(
                    [str(self.find(name)), *known[name]],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=environment(),
                    start_new_session=True,
                )
            log("started", name)

    def wait(self, api: Api, stop: threading.Event) -> None:
        """Return when the API server answers and has made its first namespace."""
        until = time.monotonic() + READY_WITHIN
        while not stop.is_set():
            self.check()
            try:
                api.request("GET", "/readyz")
                if api.find("/api/v1/namespaces/default"):
                    return
            except (OSError, ApiError) as error:
                if time.monotonic() > until:
                    raise RuntimeError(f"kube-apiserver is not ready after {READY_WITHIN:.0f} s") from error
            stop.wait(0.2)

    def check(self) -> None:
        """Fail when one of the processes has ended: nobody else would notice a missing controller."""
        for name, child in self._children.items():
            if child.poll() is not None:
                last = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-3:]
                raise RuntimeError(f"{name} ended with {child.returncode}: {' | '.join(last)}")

    def stop(self) -> None:
        """End the processes in the reverse order."""
        for child in reversed(self._children.values()):
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def commands(
    pki: Pki,
    address: str,
    state: Path,
    kubeconfig: Path,
    *,
    etcd: tuple[str, str] = (ETCD, PEER),
    port: int = API_PORT,
) -> dict[str, list[str]]:
    """Return the arguments of each process, in the order of starting. `etcd` are its URLs."""
    certificate, key = pki.pair("apiserver")
    kubelet_certificate, kubelet_key = pki.pair("kubelet-client")
    tokens = pki.directory / "tokens"
    return {
        "etcd": [
            f"--data-dir={state}/etcd",
            f"--listen-client-urls={etcd[0]}",
            f"--advertise-client-urls={etcd[0]}",
            f"--listen-peer-urls={etcd[1]}",
            f"--initial-advertise-peer-urls={etcd[1]}",
            f"--initial-cluster=default={etcd[1]}",
            "--unsafe-no-fsync",
        ],
        "kube-apiserver": [
            f"--etcd-servers={etcd[0]}",
            f"--bind-address={address}",
            f"--advertise-address={address}",
            f"--secure-port={port}",
            f"--client-ca-file={pki.ca}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--kubelet-certificate-authority={pki.ca}",
            f"--kubelet-client-certificate={kubelet_certificate}",
            f"--kubelet-client-key={kubelet_key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={tokens}.pub",
            f"--service-account-signing-key-file={tokens}.key",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            # Webhooks are reached by the addresses of their pods, for want of kube-proxy.
            "--enable-aggregator-routing=true",
            f"--cert-dir={state}/apiserver",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={tokens}.key",
            f"--root-ca-file={pki.ca}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--cert-dir={state}/controllers",
            "--controllers=*," + ",".join(f"-{name}" for name in IDLE_CONTROLLERS),
        ],
    }
