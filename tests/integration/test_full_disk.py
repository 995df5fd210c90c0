"""A disk that takes nothing more: what is in use stays in use, says so, and recovers.

A limit of 0 bytes for files (RLIMIT_FSIZE) makes every write of a running process fail as on a full disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.agent import agent_process
from support.ca import ca_process
from support.full_disk import full_disk
from support.mesh import SECURE, prometheus_manifest, running_up, workload_manifest, write_mesh
from support.polling import eventually

pytestmark = pytest.mark.timeout(180)
# A renewal after 3 s, long before the certificate ends.
SOON = {"SECRET_TTL": "30s", "SECRET_GRACE_PERIOD_RATIO": "0.9"}


def test_a_certificate_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    """The agent asks the CA once, not again and again; Envoy serves on, and has it when that works again."""
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **SOON) as agent:
        agent.await_ready()
        first, envoy = agent.served_serial(), agent.envoy_pid()
        # Memory is not writable either here: the limit holds for every file system.
        with full_disk(agent.process.pid):
            eventually(lambda: "kept in memory" in agent.health()[1], within=30, what="the problem")
            requests = agent.metric("istio_agent_num_outgoing_requests")
            assert agent.health()[0] == 200
            assert agent.metric("meshscrape_agent_envoy_certificate_current") == 0
            assert agent.scrape(15091, agent.output)[0] == 200
            assert agent.served_serial() == first
            assert agent.metric("istio_agent_num_outgoing_requests") == requests
        eventually(lambda: agent.served_serial() != first, what="the certificate that was in memory")
        eventually(lambda: agent.health() == (200, "ready\n"), what="no problem")
        assert agent.metric("meshscrape_agent_envoy_certificate_current") == 1
        assert agent.envoy_pid() == envoy


def test_a_renewed_certificate_is_used_from_memory(tmp_path: Path) -> None:
    """On a disk without any space, here a file system of 256 kB, Envoy serves the new certificate."""
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = ("unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c")
    mounted = (*inside, 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"', str(disk))
    if subprocess.run([*mounted, "/bin/true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespace to an ordinary user")
    changes = {**SOON, "MESHSCRAPE_AGENT_DIR": str(disk / "agent")}
    with (
        ca_process(tmp_path / "ca") as ca,
        agent_process(tmp_path, ca, prefix=mounted, **changes) as agent,
    ):
        agent.await_ready()
        first = agent.served_serial()
        # The mount is seen from inside alone.
        seen = Path(f"/proc/{agent.process.pid}/root{disk}")
        with contextlib.suppress(OSError):
            (seen / "filler").write_bytes(b"x" * (1 << 20))
        eventually(lambda: agent.served_serial() != first, within=30, what="the certificate in memory")
        held = Path(os.readlink(seen / "agent/credentials/..data"))
        assert (held.parent, held.stat().st_mode & 0o777) == (Path("/dev/shm"), 0o700)
        assert "kept in memory" in agent.health()[1]
        second = agent.served_serial()
        eventually(lambda: agent.served_serial() not in (first, second), within=30, what="the next one")
        assert not held.exists()
        held = Path(os.readlink(seen / "agent/credentials/..data"))
        (seen / "filler").unlink()
        eventually(lambda: agent.health() == (200, "ready\n"), within=30, what="no problem")
        assert not held.exists()


def test_mesh_goes_on_with_a_full_disk(tmp_path: Path) -> None:
    """`up` and an agent that can write nothing: the mesh runs, shows why, and recovers without a restart."""
    manifest = write_mesh(
        tmp_path / "mesh.yaml", prometheus_manifest(), workload_manifest("web", metadata=SECURE)
    )
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    said = bytearray()

    def says(text: str) -> bool:
        # A pipe, because `up` can write no file for a while.
        with contextlib.suppress(BlockingIOError):
            said.extend(os.read(reading, 1 << 16))
        return text.encode() in said

    with running_up(tmp_path / "state", "--scrape-interval", "1s", str(manifest), output=writing) as up:
        up.wait_for_phase("Ready")
        up.wait_until_up("default/web")
        pids = up.workload("default/web")["pids"]
        with full_disk(up.process.pid, pids["agent"]):
            os.kill(pids["envoy"], signal.SIGKILL)
            eventually(lambda: says(f"{up.state / 'status.json'}: cannot write"), within=30, what="the line")
            assert up.process.poll() is None
        eventually(lambda: up.workload("default/web")["pids"]["envoy"] not in (None, pids["envoy"]))
        up.wait_until_up("default/web")
        # The document is first written with the problem of not being written, and then without.
        eventually(lambda: not up.document()["message"], what="no problem")
        assert up.document()["phase"] == "Ready"
        assert up.workload("default/web")["pids"]["agent"] == pids["agent"]
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_log_that_cannot_be_written_is_a_problem_in_the_status(tmp_path: Path) -> None:
    """Something else in the place of an application's log: the application runs, and the status says why."""
    manifest = write_mesh(
        tmp_path / "mesh.yaml",
        workload_manifest("web", command="sh -c 'while :; do date; sleep 0.2; done'", metadata=SECURE),
    )
    with running_up(tmp_path / "state", str(manifest)) as up:
        up.wait_for_phase("Ready")
        log = up.state / "run/workloads/default/web/web.log"
        assert log.exists(), sorted(up.state.rglob("*.log"))
        log.unlink()
        log.mkdir()
        os.kill(up.workload("default/web")["pids"]["application"][0], signal.SIGKILL)
        eventually(lambda: str(log) in up.workload("default/web")["message"], within=30, what="the message")
        assert up.workload("default/web")["ready"]
        log.rmdir()
        eventually(lambda: not up.workload("default/web")["message"], within=30, what="no problem")
