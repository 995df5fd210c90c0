"""The process that is the node: it has namespaces of its own, and the whole cluster runs below it.

Started by `processes.Cluster`. It ends when its standard input ends, so it also stops when the process that
started it is killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from conformance.cluster import certificates, kubelet_server, programs
from conformance.cluster.api import Api
from conformance.cluster.control_plane import API_PORT, KUBELET_PORT, ControlPlane
from conformance.cluster.images import Images
from conformance.cluster.machine import log, run
from conformance.cluster.node import POLL_EVERY, Node

BRIDGE, UPLINK = "pods", "uplink"
# Without an address of its own a bridge takes the lowest one of its ports, so it changes as pods come and go.
# Until the old one has left the ARP caches, connections to the API server time out: up to 40 s were seen.
BRIDGE_MAC = "02:00:0a:f4:00:01"
TMPFS_SIZE = "6g"


@dataclass(frozen=True)
class Settings:
    """What the node is told by whoever starts it."""

    directory: str  # logs, kubeconfig and the tmpfs
    address: str
    virtual_environment: str
    envoy: str
    whole: bool

    def dump(self) -> str:
        """Return the settings as one argument."""
        return json.dumps(asdict(self))


def main() -> None:
    """Run the node until standard input ends or a part of the control plane does."""
    settings = Settings(**json.loads(sys.argv[1]))
    directory = Path(settings.directory)
    logs, state = directory / "logs", directory / "run"
    make_network(settings.address)
    run("mount", "-t", "tmpfs", "-o", f"size={TMPFS_SIZE},mode=755", "tmpfs", state)
    images = Images(state / "images", Path(settings.virtual_environment))
    images.make(Path(settings.envoy), settings.whole)
    pki = certificates.write(state / "pki", settings.address)
    plane = ControlPlane(pki, settings.address, state, logs, programs.program)
    certificates.write_kubeconfig(plane.kubeconfig, pki, settings.address, API_PORT)
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    api = Api(settings.address, API_PORT, pki.ca, *pki.pair("admin"))
    version = programs.BY_NAME["kube-apiserver"].version
    node = Node(api, images, settings.address, BRIDGE, state, logs, version)
    server = kubelet_server.serve(settings.address, KUBELET_PORT, pki, node.find)
    try:
        plane.start("etcd", "kube-apiserver")
        plane.wait(api, stop)
        if not stop.is_set():
            plane.start("kube-controller-manager")
            log("the API server is ready")
            certificates.write_kubeconfig(directory / "kubeconfig", pki, settings.address, API_PORT)
        _loop(node, plane, stop)
    except RuntimeError as error:
        log("stopped:", error)
        raise SystemExit(1) from error
    finally:
        server.shutdown()
        node.stop()
        plane.stop()


def make_network(address: str) -> None:
    """Make the pods' bridge in this process's network namespace, with the uplink to the machine."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge")
    run("ip", "addr", "add", f"{address}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    run("ip", "link", "set", UPLINK, "master", BRIDGE, "up")


def _wait_for_end(stop: threading.Event) -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock an exiting interpreter needs
        pass
    stop.set()


def _loop(node: Node, plane: ControlPlane, stop: threading.Event) -> None:
    registered = False
    while not stop.is_set():
        plane.check()
        try:
            if not registered:
                node.register()
                registered = True
            node.step()
        except Exception as error:  # one failed round, for instance a slow API server, must not end the node
            log("node:", type(error).__name__, error)
        stop.wait(POLL_EVERY)


if __name__ == "__main__":
    main()
