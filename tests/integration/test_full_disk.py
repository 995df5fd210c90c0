"""A disk that takes nothing more: what is in use stays in use, says so, and recovers.

A limit of 0 bytes for files (RLIMIT_FSIZE) makes every write of a running process fail as on a full disk.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import agent_process
from support.ca import ca_process
from support.polling import eventually

pytestmark = pytest.mark.timeout(180)


@contextlib.contextmanager
def full_disk(*pids: int) -> Iterator[None]:
    """These processes, and the children that they start meanwhile, can write no file."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def test_a_certificate_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    """The agent asks the CA once, not again and again; Envoy serves on, and has it when that works again."""
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, SECRET_TTL="16s") as agent:
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
    changes = {"SECRET_TTL": "16s", "MESHSCRAPE_AGENT_DIR": str(disk / "agent")}
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
