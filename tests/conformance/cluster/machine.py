"""What the machine must offer, and running commands on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

COMMANDS = {
    "go": "Go 1.26 or later (https://go.dev/dl)",
    "ip": "iproute2",
    "iptables": "iptables",
    "ip6tables": "iptables",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "chroot": "coreutils",
    "curl": "curl",
}

# How nice pods are: what else runs on the same few cores, such as the API server, must not cost a scrape.
PREFERRED = -10


class MachineError(Exception):
    """The machine cannot run a cluster of processes; the message says what is missing."""


def missing(names: Sequence[str] = tuple(COMMANDS)) -> list[str]:
    """Return the packages that have to be installed before a cluster can start."""
    return sorted({COMMANDS[name] for name in names if shutil.which(name) is None})


def check() -> None:
    """Fail with one clear line unless this machine can run a cluster of processes."""
    if sys.platform != "linux":
        raise MachineError(f"{sys.platform} is not Linux: run this in a virtual machine, or set KUBECONFIG")
    if os.geteuid() != 0:
        raise MachineError(
            "a cluster of processes needs root for its namespaces: run as root, or set KUBECONFIG"
        )
    if lacking := missing():
        raise MachineError(f"not installed: {', '.join(lacking)} (Debian: apt-get install)")
    trial = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True
    )
    if trial.returncode:
        raise MachineError(f"this machine does not allow namespaces: {trial.stderr.strip()}")


def run(*command: object, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. A failure carries what the command printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, input=stdin, check=False)
    if check and done.returncode:
        output = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise RuntimeError(f"{' '.join(words[:6])} ended with {done.returncode}: {output}")
    return done


def prefer(session: int) -> None:
    """Let the processes of a session run before others, where the kernel shares out time by session.

    `nice` alone counts within a session there (sched(7), the autogroup feature).
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{session}/autogroup").write_text(str(PREFERRED))


def environment(**more: str) -> Mapping[str, str]:
    """Return a small environment for programs of the control plane."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/root", **more}


def log(*words: object) -> None:
    """Print one line with the time, for the cluster's own log."""
    print(time.strftime("%H:%M:%S"), *words, flush=True)
