"""The guard of an application: its exit code, its stop, and that nothing survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from meshscrape.local import guard
from support.polling import eventually

GUARD = [sys.executable, "-S", "-E", "-s", str(Path(guard.__file__))]
# A shell that starts a daemon in a session of its own and tells its pid.
DAEMON = "setsid sleep 100 & echo $!; "


def _start(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GUARD, "sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def test_the_exit_code_is_the_applications() -> None:
    """A status passes through; a signal is 128 + its number; 127 when there is nothing to run."""
    assert subprocess.run([*GUARD, "sh", "-c", "exit 3"], check=False).returncode == 3
    assert subprocess.run([*GUARD, "sh", "-c", "kill -9 $$"], check=False).returncode == 137
    done = subprocess.run([*GUARD, "no-such-program-xyz"], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 127 and b"no-such-program-xyz" in done.stderr


def test_descendants_end_with_the_application() -> None:
    """A daemon that left the session is killed when the application ends."""
    process = _start(DAEMON + "exit 0")
    assert process.stdout is not None
    daemon = int(process.stdout.readline())
    assert process.wait(10) == 0
    assert _gone(daemon)
    process.stdout.close()


def test_termination_is_passed_on() -> None:
    """SIGTERM reaches the application, which may stop in its own way."""
    process = _start("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(10) == 5
    process.stdout.close()


def test_descendants_end_when_the_parent_is_killed() -> None:
    """kill -9 of whoever started the guard ends application and daemon alike."""
    starter = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({[*GUARD, 'sh', '-c', DAEMON + 'echo $$; exec sleep 100']!r},"
        " start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(3)]
    assert all(not _gone(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    eventually(lambda: all(_gone(pid) for pid in pids), within=10, what="nothing left")
    parent.stdout.close()
