"""Run one application and end all of its processes with it.

Run it by its path: `python -S -E -s guard.py COMMAND…`. To start fast, it imports only what it needs, of
meshscrape only `system.proc`. A parent-death signal reaches only a direct child. Without the guard, the
workers of an application server would survive, hold its port and answer the scrapes of the next mesh. The
guard leads its own process group and adopts orphans. It passes SIGTERM on, and when the application or the
guard's parent ends, it kills all remaining descendants.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

# Without `site` nothing else says where the package is.
sys.path[0] = str(Path(__file__).parents[2])

from meshscrape.system.proc import child_ids  # noqa: E402

GRACE_SECONDS = 3
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    """Run `argv`. Return its exit code, 128+N if signal N ended it, 127 if it cannot be started."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    stop = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    watched = {*stop, signal.SIGCHLD, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    # Request this after the signals are blocked, so that sigwait notices if the parent dies from here on.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    own = os.getpid()
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != own:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        try:
            os.execvpe(argv[0], argv, os.environ)  # noqa: S606
        except OSError as error:
            os.write(2, f"cannot run {argv[0]}: {error.strerror}\n".encode())
        os._exit(127)
    code = _supervise(child, parent, watched)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _kill_group()
    return code


def _supervise(child: int, parent: int, watched: set[signal.Signals]) -> int:
    while True:
        received = signal.sigwait(watched)
        if received == signal.SIGCHLD:
            code = _reap(child)
            if code is not None:
                return code
        elif received == signal.SIGALRM or os.getppid() != parent:
            return 128 + signal.SIGKILL
        else:
            os.kill(child, received)
            signal.alarm(GRACE_SECONDS)


def _reap(child: int) -> int | None:
    """Reap ended children; return the application's exit code if it is one of them, else None."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 1
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _kill_group() -> None:
    """Kill and reap every descendant; orphans become children, because the guard is a subreaper."""
    while True:
        for pid in child_ids(os.getpid()):
            # A child that is not reaped keeps its number.
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
