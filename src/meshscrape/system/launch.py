"""Become a command that the kernel ends together with the process that started it.

`python -I -S launch.py PARENT SIGNAL DESCRIPTOR COMMAND…` asks the kernel for SIGNAL at the end of the
process PARENT (prctl(2), PR_SET_PDEATHSIG), checks that PARENT still runs, and executes COMMAND in its own
place, with the environment that it was given. When COMMAND cannot be executed, its errno is written to
DESCRIPTOR, which closes by itself when COMMAND begins. If DESCRIPTOR is 2, it gets a sentence instead and
stays open.

This happens after exec, in a process of its own. Python code between fork and exec (`preexec_fn`) would run
the fork handlers of every library that the parent has loaded; those of gRPC abort the child now and then.
The file is run by its path and imports nothing of meshscrape, so that it costs about 10 ms.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
# Written out, because importing the module `signal` would lengthen the start by a quarter.
SIGPIPE, SIGXFSZ = 13, 25
STANDARD_ERROR = 2
PARENT_GONE, CANNOT_EXECUTE = 1, 127


def main(arguments: list[str]) -> int:
    """Become the command; return an exit code only when that is not possible."""
    parent, death_signal, descriptor = map(int, arguments[:3])
    command = arguments[3:]
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    # A parent that ended before prctl causes no signal. Compare the parent after prctl: its end then either
    # shows here or causes the signal.
    if os.getppid() != parent:
        return PARENT_GONE
    if descriptor != STANDARD_ERROR:
        os.set_inheritable(descriptor, False)
    # Python ignores these two signals, and the command would inherit that.
    for ignored in (SIGPIPE, SIGXFSZ):
        libc.signal(ignored, None)
    try:
        os.execvpe(command[0], command, _given_environment())  # noqa: S606
    except OSError as error:
        sentence = f"cannot run {command[0]}: {error.strerror}\n"
        os.write(descriptor, (sentence if descriptor == STANDARD_ERROR else str(error.errno)).encode())
    return CANNOT_EXECUTE


def _given_environment() -> dict[bytes, bytes]:
    """Return the environment at exec; Python itself may have added LC_CTYPE to the current one."""
    with open("/proc/self/environ", "rb") as file:
        entries = file.read().split(b"\0")
    return {name: value for name, equals, value in (entry.partition(b"=") for entry in entries) if equals}


if __name__ == "__main__":
    # There is nothing to flush or to clean up, and sys.exit would take longer.
    os._exit(main(sys.argv[1:]))
