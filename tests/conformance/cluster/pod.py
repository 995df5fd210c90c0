"""A pod: a network namespace on the node's bridge, its volumes, its containers in their order, its status."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.cluster import environment
from conformance.cluster.api import Api, ApiError, Object
from conformance.cluster.container import Container, Setting, empty_status, utc_now
from conformance.cluster.images import Images, NoImageError
from conformance.cluster.machine import log, run
from conformance.cluster.volumes import MissingError, Tokens, Volumes

LONGEST_GRACE = 10.0
REPORT_EVERY, REFRESH_EVERY = 0.3, 3.0
PULL_ONCE = 2.0  # seconds until a missing image is waited for


@dataclass(frozen=True)
class Node:
    """What pods need to know of their node."""

    api: Api
    images: Images
    name: str
    address: str
    bridge: str
    api_port: int
    state: Path
    logs: Path
    hosts: Callable[[str], str]  # namespace to the lines of /etc/hosts


class Pod:
    """One pod from its binding to its removal."""

    def __init__(self, node: Node, pod: Object, address: str) -> None:
        self.node, self.pod, self.spec, self.address = node, pod, pod["spec"], address
        meta = pod["metadata"]
        self.name, self.namespace, self.uid = str(meta["name"]), str(meta["namespace"]), str(meta["uid"])
        self.path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        self.directory = node.state / "pods" / self.uid
        self.containers: dict[str, Container] = {}
        self._unpulled: dict[str, Unpulled] = {}
        self.stopping = self.gone = False
        self._holder: subprocess.Popen[bytes] | None = None
        self._message, self._since = "", utc_now()
        self._last: Object | None = None
        self._was_ready: bool | None = None
        self._place = environment.Place(node.name, node.address, address)
        account = self.spec.get("serviceAccountName", "default")
        tokens = Tokens(node.api, self.namespace, account, self.name, self.uid)
        self._volumes = Volumes(node.api, self.namespace, self.directory / "volumes", tokens, self._field)

    def _field(self, source: Object) -> str:
        return environment.field(self.pod, self._place, source)

    def _environment(self, container: Object) -> dict[str, str]:
        return environment.variables(self.pod, self._place, self.node.api_port, container, self._volumes.data)

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the pod in threads of its own."""
        self.directory.mkdir(parents=True)
        threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def _run(self) -> None:
        try:
            self._make_network()
            self.write_hosts()
            threading.Thread(target=self._report_always, name=f"{self.name}/status", daemon=True).start()
            self._wait_for_volumes()
            self._start_containers()
        except Exception as error:
            if not self.stopping:
                self._message = f"{type(error).__name__}: {error}"
                log(self.namespace, self.name, "failed:", self._message)

    def _make_network(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], start_new_session=True)
        holder = str(self._holder.pid)
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder}/ns/net") == own:
            time.sleep(0.005)
        number = self.address.rpartition(".")[2]
        outside, inside = f"out{number}", f"in{number}"
        run("ip", "link", "del", outside, check=False)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", holder)
        run("ip", "link", "set", outside, "master", self.node.bridge, "up")
        setup = (
            f"ip link set {inside} name eth0 && ip link set lo up && ip addr add {self.address}/24 dev eth0"
            # Others may know the address as that of a pod that is gone: a gratuitous ARP corrects them.
            " && echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify"
            f" && ip link set eth0 up && ip route add default via {self.node.address}"
            " && echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start"
        )
        run("nsenter", "-t", holder, "-n", "sh", "-c", setup)

    def _wait_for_volumes(self) -> None:
        while not self.stopping:
            try:
                self._volumes.write(self.spec.get("volumes", []))
                self._message = ""
                return
            except MissingError as error:
                if self._message != str(error):
                    log(self.namespace, self.name, "waits:", error)
                self._message = str(error)
                time.sleep(0.5)

    def _start_containers(self) -> None:
        for spec in self.spec.get("initContainers", []):
            container = self._pull(spec)
            if container is None:
                return
            if spec.get("restartPolicy") == "Always":
                container.keep()
                while not self.stopping and not container.started:
                    time.sleep(0.05)
            elif not container.run_to_end():
                return
        for spec in self.spec["containers"]:
            if self.stopping:
                return
            container = self._pull(spec)
            if container is None:  # the others start, as with the real kubelet
                continue
            container.keep()
            hook = spec.get("lifecycle", {}).get("postStart", {}).get("exec")
            while hook and not self.stopping and container.run(hook["command"]) != 0:
                time.sleep(0.3)

    def _pull(self, spec: Object) -> Container | None:
        """Return a container, or None if nothing stands for its image: its status says so from then on."""
        try:
            return self._add(spec)
        except NoImageError as error:
            self._unpulled[spec["name"]] = Unpulled(str(spec.get("image")), str(error), time.monotonic())
            log(self.namespace, self.name, spec["name"], f"ErrImagePull: {error}")
            return None

    def _add(self, spec: Object) -> Container:
        assert self._holder is not None
        setting = Setting(
            name=self.name,
            address=self.address,
            directory=self.directory,
            holder=self._holder.pid,
            restarts=self.spec.get("restartPolicy", "Always"),
            security=self.spec.get("securityContext") or {},
            volumes={volume["name"]: self._volumes.path(volume) for volume in self.spec.get("volumes", [])},
            environment=self._environment,
            log=self.log_file(spec["name"]),
            search=f"{self.namespace}.svc.cluster.local svc.cluster.local cluster.local",
        )
        container = Container(setting, spec, self.node.images.find(spec))
        self.containers[spec["name"]] = container
        return container

    def log_file(self, container: str) -> Path:
        """Return the file with a container's output."""
        return self.node.logs / f"{self.namespace}_{self.name}_{container}.log"

    def write_hosts(self) -> None:
        """Write /etc/hosts in place, because it is bind mounted into running containers."""
        if self.directory.exists():
            own = f"{self.address} {self.spec.get('hostname', self.name)}\n"
            (self.directory / "hosts").write_text(self.node.hosts(self.namespace) + own)

    def stop(self) -> None:
        """Stop gracefully: the application's containers first, native sidecars after them."""
        self.stopping = True
        for container in self.containers.values():
            container.leaving = True
        grace = min(float(self.spec.get("terminationGracePeriodSeconds", 30)), LONGEST_GRACE)
        natives = {container["name"] for container in self.spec.get("initContainers", [])}
        for sidecars in (False, True):
            chosen = [c for name, c in self.containers.items() if (name in natives) is sidecars]
            for container in chosen:
                container.signal(signal.SIGTERM)
            until = time.monotonic() + grace
            while time.monotonic() < until and any(container.running() for container in chosen):
                time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """Kill every process of the pod. Its network goes with the last of them."""
        self.stopping = self.gone = True
        for container in self.containers.values():
            container.leaving = True
            if container.process is not None and container.running():
                container.process.kill()
            container.kill()
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()

    # --- status -----------------------------------------------------------------------------------

    def _report_always(self) -> None:
        refresh = time.monotonic() + REFRESH_EVERY
        while not self.gone:
            try:
                self._report()
                if time.monotonic() > refresh and not self._message and not self.stopping:
                    self._volumes.write(self.spec.get("volumes", []))
                    refresh = time.monotonic() + REFRESH_EVERY
            except ApiError as error:
                if error.status == 404:
                    return
                log(self.namespace, self.name, "status:", error)
            except (OSError, MissingError) as error:
                if not self.gone:
                    log(self.namespace, self.name, "status:", error)
            time.sleep(REPORT_EVERY)

    def _report(self) -> None:
        value = status(
            self.spec, self.containers, self.address, self.node.address, self._since, self._message
        )
        for each in (*value["initContainerStatuses"], *value["containerStatuses"]):
            if each["name"] in self._unpulled:
                each["state"] = {"waiting": self._unpulled[each["name"]].waiting(time.monotonic())}
        keep_transitions(value["conditions"], (self._last or {}).get("conditions", []))
        if value == self._last:
            return
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in value["conditions"])
        if ready is not self._was_ready:
            log(self.namespace, self.name, self.address, "ready" if ready else value["phase"])
        self._was_ready = ready
        self.node.api.merge(f"{self.path}/status", {"status": value})
        self._last = value


@dataclass(frozen=True)
class Unpulled:
    """An image that nothing stands for, and since when."""

    image: str
    problem: str
    since: float

    def waiting(self, now: float) -> Object:
        """Return what the kubelet says: first the error, then that it waits before it tries again."""
        if now - self.since < PULL_ONCE:
            return {"reason": "ErrImagePull", "message": self.problem}
        message = f'Back-off pulling image "{self.image}": ErrImagePull: {self.problem}'
        return {"reason": "ImagePullBackOff", "message": message}


def keep_transitions(conditions: list[Object], before: list[Object]) -> None:
    """Give each condition the time when its status changed: now, or that of the status before."""
    known = {(each["type"], each["status"]): each["lastTransitionTime"] for each in before}
    now = utc_now()
    for each in conditions:
        each["lastTransitionTime"] = known.get((each["type"], each["status"]), now)


def status(
    spec: Object, containers: dict[str, Container], address: str, node_address: str, since: str, message: str
) -> dict[str, Any]:
    """Return a pod's status as the API has it."""
    inits, mains = spec.get("initContainers", []), spec["containers"]

    def of(group: list[Object], reason: str) -> list[Object]:
        return [
            containers[c["name"]].status() if c["name"] in containers else empty_status(c, reason)
            for c in group
        ]

    def initialized(init: Object) -> bool:
        container = containers.get(init["name"])
        if container is None:
            return False
        # A pod that was initialized stays so while a native sidecar starts again.
        return container.was_started if init.get("restartPolicy") == "Always" else container.succeeded

    first = of(inits, "PodInitializing")
    second = of(mains, "PodInitializing" if inits else "ContainerCreating")
    complete = all(initialized(init) for init in inits)
    native = [s["ready"] for s, c in zip(first, inits, strict=True) if c.get("restartPolicy") == "Always"]
    ready = complete and all(s["ready"] for s in second) and all(native)

    def condition(kind: str, value: bool) -> Object:
        return {"type": kind, "status": str(value), "lastTransitionTime": since}

    return {
        "phase": phase(spec, complete, second),
        "hostIP": node_address,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": since,
        "message": message or None,
        "conditions": [
            condition("PodScheduled", True),
            condition("Initialized", complete),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
        "initContainerStatuses": first,
        "containerStatuses": second,
    }


def phase(spec: Object, initialized: bool, statuses: list[Object]) -> str:
    """Return the phase of a pod from its containers' statuses."""
    ended = [s["state"]["terminated"]["exitCode"] for s in statuses if "terminated" in s["state"]]
    if len(ended) == len(statuses) and spec.get("restartPolicy", "Always") != "Always":
        return "Failed" if any(ended) else "Succeeded"
    # Each of them: a container that was never started, for want of its image, keeps a pod pending.
    begun = all("waiting" not in s["state"] or s["restartCount"] for s in statuses)
    return "Running" if initialized and begun else "Pending"
