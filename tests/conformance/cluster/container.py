"""A container: a process in its pod's network namespace, with a root of its own in a mount namespace."""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.cluster import machine
from conformance.cluster.api import Object
from conformance.cluster.environment import expand
from conformance.cluster.images import Image
from conformance.cluster.machine import log
from conformance.cluster.volumes import MissingError

LONGEST_PAUSE = 16.0  # between two starts of a container that keeps ending


@dataclass(frozen=True)
class Setting:
    """What a container needs to know of its pod."""

    name: str  # of the pod, for the log
    address: str
    directory: Path
    holder: int  # a process in the pod's network namespace
    restarts: str
    security: Object
    volumes: Mapping[str, str]  # volume name to path on the node
    environment: Callable[[Object], dict[str, str]]
    log: Path
    search: str  # the DNS search list, which pilot-agent reads


def utc_now() -> str:
    """Return the time as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Container:
    """One container of a pod: started, probed, started again when it ends."""

    def __init__(self, setting: Setting, spec: Object, image: Image) -> None:
        self.setting, self.spec, self.image = setting, spec, image
        self.name: str = spec["name"]
        self.directory = setting.directory / "containers" / self.name
        self.process: subprocess.Popen[bytes] | None = None
        self.code: int | None = None
        self.restarts, self.since = 0, utc_now()
        self.started = self.ready = self.leaving = self.succeeded = False
        self.was_started = False  # in this or an earlier run of the container
        self._root = self.directory / "root"

    # --- life -------------------------------------------------------------------------------------

    def run_to_end(self) -> bool:
        """Run an init container until it succeeds; return False when the pod stops first."""
        while not self.leaving:
            try:
                self._spawn()
            except MissingError as error:
                log(self.setting.name, self.name, error)
                time.sleep(1)
                continue
            self.code = self._wait()
            if self.code == 0:
                self.succeeded = self.ready = True
                return True
            log(self.setting.name, self.name, "init container ended with", self.code)
            self._pause()
        return False

    def keep(self) -> None:
        """Keep the container running in a thread of its own."""
        threading.Thread(target=self._keep, name=f"{self.setting.name}/{self.name}", daemon=True).start()

    def _keep(self) -> None:
        while not self.leaving:
            try:
                self._spawn()
            except MissingError as error:
                log(self.setting.name, self.name, error)
                time.sleep(1)
                continue
            self._watch()
            self.code = self._wait()
            self.started = self.ready = False
            self.succeeded = self.code == 0
            if (
                self.leaving
                or self.setting.restarts == "Never"
                or (self.succeeded and self.setting.restarts == "OnFailure")
            ):
                return
            log(self.setting.name, self.name, "ended with", self.code)
            self._pause()

    def _pause(self) -> None:
        self.restarts += 1
        until = time.monotonic() + min(LONGEST_PAUSE, 2.0**self.restarts)
        while not self.leaving and time.monotonic() < until:
            time.sleep(0.1)

    def _wait(self) -> int:
        assert self.process is not None
        code = self.process.wait()
        self.kill()  # what the main process started ends with it
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def running(self) -> bool:
        """Return whether the main process runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Kill every process that has this container's root."""
        ending = str(self._root)
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if os.readlink(f"/proc/{entry}/root") == ending:
                        os.kill(int(entry), signal.SIGKILL)
                except OSError:
                    continue

    # --- start ------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        values = self.setting.environment(self.spec) | dict(self.image.environment)
        given = [expand(word, values) for word in self.spec.get("args", [])]
        if self.spec.get("command") and not self.image.fixed:
            command = [expand(word, values) for word in self.spec["command"]] + given
        else:
            command = [*self.image.command, *(given if self.image.arguments else [])]
        self.directory.mkdir(parents=True, exist_ok=True)
        script = self.directory / "start.sh"
        script.write_text("\n".join(self._script()) + "\n")
        enter = ["nice", "-n", str(machine.PREFERRED), "nsenter", "-t", str(self.setting.holder), "-n"]
        with open(self.setting.log, "ab") as out:
            self.process = subprocess.Popen(
                [*enter, "unshare", "-m", "sh", str(script), *command],
                env=values,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        machine.prefer(self.process.pid)
        self.since, self.code = utc_now(), None

    def _script(self) -> list[str]:
        """Return a shell script that builds the container's root and becomes its program."""
        root = self._root
        upper, work = self.directory / "upper", self.directory / "work"
        for directory in (root, upper, work):
            directory.mkdir(parents=True, exist_ok=True)
        layers = ":".join([*(str(layer) for layer in self.image.layers), "/"])
        lines = [
            "set -e",
            f"mount -t overlay overlay -o lowerdir={layers},upperdir={upper},workdir={work} {root}",
        ]
        lines += [f"mount --rbind /{name} {root}/{name}" for name in ("proc", "sys", "dev")]
        lines += [f"chmod o+x {root}{path}" for path in self.image.opened]
        lines += [f"mkdir -p {root}{path} && mount --rbind {path} {root}{path}" for path in self.image.shared]
        lines += [
            f"rm -rf {root}/var/run && mkdir -p {root}/var/run",
            f"mount -t tmpfs none {root}/dev/shm",
            f"mount --bind {self.setting.directory}/hosts {root}/etc/hosts",
            f"rm -f {root}/etc/resolv.conf && echo search {self.setting.search} > {root}/etc/resolv.conf",
        ]
        for mount in sorted(self.spec.get("volumeMounts", []), key=lambda m: str(m["mountPath"])):
            lines += self._mount(mount)
        user, group, extra = self._owner()
        directory = shlex.quote(self.spec.get("workingDir") or "/")
        lines.append(
            f"exec chroot --userspec={user}:{group} --groups={extra} {root}"
            f' /bin/sh -c \'cd "$0" && exec "$@"\' {directory} "$@"'
        )
        return lines

    def _mount(self, mount: Object) -> list[str]:
        source = self.setting.volumes[mount["name"]]
        if mount.get("subPath"):
            source += "/" + mount["subPath"]
            if not Path(source).exists():
                Path(source).mkdir(parents=True)
        target = shlex.quote(f"{self._root}{mount['mountPath']}")
        quoted = shlex.quote(source)
        lines = [
            f'if [ -f {quoted} ]; then mkdir -p "$(dirname {target})" && touch {target}',
            f"else mkdir -p {target}; fi",
            f"mount --bind {quoted} {target}",
        ]
        return [*lines, f"mount -o remount,bind,ro {target}"] if mount.get("readOnly") else lines

    def _owner(self) -> tuple[int, int, int]:
        security = self.setting.security | (self.spec.get("securityContext") or {})
        user = int(security.get("runAsUser", 0)) if self.image.user is None else self.image.user
        group = int(security.get("runAsGroup", user)) if self.image.user is None else self.image.user
        return user, group, int(security.get("fsGroup", group))

    # --- probes and exec --------------------------------------------------------------------------

    def _watch(self) -> None:
        """Probe until the process ends. Failures of liveness probes have no effect here."""
        startup, readiness = self.spec.get("startupProbe"), self.spec.get("readinessProbe")
        failures = 0
        while self.running():
            pause = 0.2
            if not self.started:
                self.started = startup is None or self._probe(startup)
                self.was_started |= self.started
            elif readiness is None:
                self.ready = True
            elif self._probe(readiness):
                self.ready, failures = True, 0
                pause = min(2.0, readiness.get("periodSeconds", 10))
            else:
                failures += 1
                if failures >= readiness.get("failureThreshold", 3):
                    self.ready = False
            time.sleep(pause)

    def _probe(self, probe: Object) -> bool:
        if "exec" in probe:
            return self.run(probe["exec"]["command"]) == 0
        kind = probe.get("httpGet") or probe["tcpSocket"]
        port = self._port(kind["port"])
        try:
            if "tcpSocket" in probe:
                socket.create_connection((self.setting.address, port), 2).close()
                return True
            limit = max(2, probe.get("timeoutSeconds", 1))
            connection = http.client.HTTPConnection(self.setting.address, port, timeout=limit)
            headers = {"User-Agent": "kube-probe/1.37"}
            headers |= {header["name"]: header["value"] for header in kind.get("httpHeaders", [])}
            connection.request("GET", kind.get("path", "/"), headers=headers)
            status = connection.getresponse().status
            connection.close()
            return 200 <= status < 400
        except (OSError, http.client.HTTPException):
            return False

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        return next(int(p["containerPort"]) for p in self.spec.get("ports", []) if p.get("name") == port)

    def enter(self, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the command line and environment that run a command inside the container."""
        if self.process is None or not self.running():
            raise RuntimeError(f"container {self.name} does not run")
        user, group, _ = self._owner()
        # `-S` asks for the user after the namespaces were entered.
        inside = [
            "nsenter",
            "-t",
            str(self.process.pid),
            "-m",
            "-n",
            "-r",
            "-w",
            "-G",
            str(group),
            "-S",
            str(user),
        ]
        return [*inside, *command], self.setting.environment(self.spec) | dict(self.image.environment)

    def run(self, command: Sequence[str]) -> int:
        """Run a command inside the container and return its exit code."""
        try:
            words, values = self.enter(command)
        except (RuntimeError, MissingError):
            return 1
        quiet = subprocess.DEVNULL
        return subprocess.run(
            words, env=values, stdin=quiet, stdout=quiet, stderr=quiet, check=False
        ).returncode

    # --- status -----------------------------------------------------------------------------------

    def status(self) -> Object:
        """Return the container's status as the API has it."""
        running = self.running()
        always = self.setting.restarts == "Always" or self.spec.get("restartPolicy") == "Always"
        if running:
            state: Object = {"running": {"startedAt": self.since}}
        elif self.code == 0 and not (always and self.restarts):
            state = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        elif self.code is not None and always:
            state = {"waiting": {"reason": "CrashLoopBackOff"}}
        elif self.code is not None:
            state = {"terminated": {"exitCode": self.code, "reason": "Error"}}
        else:
            state = {"waiting": {"reason": "ContainerCreating"}}
        ready = bool(self.ready and (running or self.succeeded))
        return empty_status(self.spec) | {
            "ready": ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": state,
        }


def empty_status(spec: Object, reason: str = "PodInitializing") -> Object:
    """Return the status of a container that was not started yet."""
    return {
        "name": spec["name"],
        "image": spec.get("image", ""),
        "imageID": "",
        "ready": False,
        "started": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": reason}},
    }
