"""What /proc tells about processes of this user."""

from __future__ import annotations

import os


def child_named(parent: int, name: str = "") -> int | None:
    """The process id of a child of `parent` whose command is `name` (any, when empty); None for none now."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _lives_as(int(entry), parent, name):
            return int(entry)
    return None


def is_child(pid: int, parent: int) -> bool:
    """Whether the process `pid` runs and is a child of `parent`."""
    return _lives_as(pid, parent, "")


def _lives_as(pid: int, parent: int, name: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return False
    # proc(5): "pid (comm) state ppid ..."; the command may itself contain parentheses.
    command, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return len(fields) > 1 and fields[1] == str(parent) and fields[0] != "Z" and name in ("", command)
