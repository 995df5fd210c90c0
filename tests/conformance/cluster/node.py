"""The node: binds pods, starts and stops them, writes names. It stands for kubelet and scheduler."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from conformance.cluster import pod as pods
from conformance.cluster.api import Api, ApiError, Object
from conformance.cluster.container import utc_now
from conformance.cluster.control_plane import API_PORT, KUBELET_PORT
from conformance.cluster.images import Images
from conformance.cluster.machine import log

NAME = "node-1"
# Asks for an address, as Calico's CNI plugin knows it: a JSON list of one.
WANTED_ADDRESS = "cni.projectcalico.org/ipAddrs"
POLL_EVERY = 0.4
FIRST, LAST = 10, 250  # last numbers of the pods' addresses
RESOURCES = {"cpu": "8", "memory": "16Gi", "pods": "200", "ephemeral-storage": "50Gi"}


class Node:
    """The pods of the cluster's only node. The list of pods is polled: one node has few of them."""

    def __init__(
        self, api: Api, images: Images, address: str, bridge: str, state: Path, logs: Path, version: str
    ) -> None:
        self._api, self._address, self._version = api, address, version
        self._subnet = address.rpartition(".")[0]
        self._pods: dict[str, pods.Pod] = {}
        self._numbers = list(range(FIRST, LAST))
        self._names: list[tuple[str, str, str]] = []  # address, service, namespace
        self._lock = threading.Lock()
        self.facts = pods.Node(api, images, NAME, address, bridge, API_PORT, state, logs, self._hosts)

    def find(self, namespace: str, name: str) -> pods.Pod | None:
        """Return a running pod by its name."""
        for pod in list(self._pods.values()):
            if (pod.namespace, pod.name) == (namespace, name):
                return pod
        return None

    def register(self) -> None:
        """Create the Node object, ready."""
        labels = {"kubernetes.io/hostname": NAME, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        if self._api.find(f"/api/v1/nodes/{NAME}") is None:
            self._api.post("/api/v1/nodes", {"metadata": {"name": NAME, "labels": labels}})
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "lastHeartbeatTime": utc_now(),
            "lastTransitionTime": utc_now(),
        }
        status = {
            "addresses": [
                {"type": "InternalIP", "address": self._address},
                {"type": "Hostname", "address": NAME},
            ],
            "capacity": RESOURCES,
            "allocatable": RESOURCES,
            "conditions": [ready],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
            # The API server then passes the WebSockets of `kubectl exec` on as they are, instead of as SPDY.
            "declaredFeatures": ["ExtendWebSocketsToKubelet"],
            "nodeInfo": {"kubeletVersion": self._version},
        }
        self._api.merge(f"/api/v1/nodes/{NAME}/status", {"status": status})
        self._api.merge(f"/api/v1/nodes/{NAME}", {"spec": {"taints": None}})

    def step(self) -> None:
        """Compare the pods that should be with those that are, once."""
        listed = self._api.items("/api/v1/pods")
        for pod in listed:
            self._consider(pod)
        present = {pod["metadata"]["uid"] for pod in listed}
        for uid, running in list(self._pods.items()):
            if uid not in present:
                self._end(running, remove=False)
        self._write_names(listed)

    def stop(self) -> None:
        """Kill every pod."""
        for running in list(self._pods.values()):
            running.kill()

    def _consider(self, pod: Object) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        running = self._pods.get(meta["uid"])
        if meta.get("deletionTimestamp"):
            if running is not None:
                self._end(running, remove=True)
            else:
                self._remove(path, meta["uid"])
        elif not pod["spec"].get("nodeName"):
            self._bind(path, meta["name"])
        elif running is not None:
            running.pod = pod
        elif pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            address = self._take(meta.get("annotations") or {})
            if address is None:  # another pod has it still: the next round asks again
                return
            self._pods[meta["uid"]] = running = pods.Pod(self.facts, pod, address)
            running.start()

    def _take(self, annotations: dict[str, str]) -> str | None:
        """Return a free address, or the wanted one; None while that belongs to another pod."""
        with self._lock:
            wanted = WANTED_ADDRESS in annotations
            number = self._numbers[0]
            if wanted:
                number = int(json.loads(annotations[WANTED_ADDRESS])[0].rpartition(".")[2])
            if number not in self._numbers:
                return None
            self._numbers.remove(number)
            return f"{self._subnet}.{number}"

    def _bind(self, path: str, name: str) -> None:
        try:
            target = {"kind": "Node", "name": NAME}
            self._api.post(
                f"{path}/binding",
                {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target},
            )
        except ApiError as error:  # it was deleted, or bound since the list was made
            if error.status not in (404, 409):
                raise

    def _end(self, running: pods.Pod, *, remove: bool) -> None:
        if not running.stopping:
            running.stopping = True
            threading.Thread(target=self._finish, args=(running, remove), daemon=True).start()

    def _finish(self, running: pods.Pod, remove: bool) -> None:
        try:
            running.stop()
            if remove:
                self._remove(running.path, running.uid)
        except (OSError, ApiError) as error:
            log(running.namespace, running.name, "stop:", error)
        self._pods.pop(running.uid, None)
        with self._lock:
            self._numbers.append(int(running.address.rpartition(".")[2]))

    def _remove(self, path: str, uid: str) -> None:
        try:
            self._api.delete(path, {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    # --- names ------------------------------------------------------------------------------------

    def _write_names(self, listed: list[Object]) -> None:
        names = service_addresses(self._api.items("/api/v1/services"), listed)
        if names != self._names:
            self._names = names
            for running in list(self._pods.values()):
                running.write_hosts()

    def _hosts(self, namespace: str) -> str:
        lines = [
            "127.0.0.1 localhost",
            f"{self._address} kubernetes.default.svc kubernetes.default kubernetes",
        ]
        for address, name, space in self._names:
            full = f"{name}.{space}"
            short = f" {name}" if space == namespace else ""
            lines.append(f"{address} {full}.svc.cluster.local {full}.svc {full}{short}")
        return "\n".join(lines) + "\n"


def service_addresses(services: list[Object], listed: list[Object]) -> list[tuple[str, str, str]]:
    """Return the address of a ready pod, name and namespace of each Service: no DNS, no kube-proxy."""
    found = []
    for service in services:
        selector = service["spec"].get("selector")
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        chosen = [pod for pod in listed if selector and _selected(pod, namespace, selector)]
        chosen.sort(key=lambda pod: (not _ready(pod), pod["metadata"]["name"]))
        if chosen:
            found.append((chosen[0]["status"]["podIP"], name, namespace))
    return sorted(found)


def _selected(pod: Object, namespace: str, selector: dict[str, str]) -> bool:
    meta = pod["metadata"]
    return bool(
        meta["namespace"] == namespace
        and not meta.get("deletionTimestamp")
        and pod.get("status", {}).get("podIP")
        and selector.items() <= (meta.get("labels") or {}).items()
    )


def _ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
