"""Read processes and listening sockets from /proc, as far as it shows them to this user (proc(5))."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Set
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class Stat(NamedTuple):
    """One process: its command's name, its state (`Z` for one that has ended) and its parent."""

    command: str
    state: str
    parent: int


class ListeningSocket(NamedTuple):
    """A listening TCP socket: where it is bound, and its inode."""

    address: IPv4Address | IPv6Address
    port: int
    inode: str


def process_ids() -> Iterator[int]:
    """Yield the ids of all processes."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def stat_of(pid: int) -> Stat | None:
    """Return the state of process `pid`, or None without such a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # pid (comm) state ppid …: the command's name may itself hold spaces and parentheses.
    command, _, rest = text.partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return Stat(command, state, int(parent))


def child_ids(parent: int) -> list[int]:
    """Return the children of `parent`, including ended ones that wait to be reaped."""
    return [pid for pid in process_ids() if (stat := stat_of(pid)) is not None and stat.parent == parent]


def child_named(parent: int, name: str = "") -> int | None:
    """Return a running child of `parent` with the command `name` (any command when empty), or None."""
    return next((pid for pid in process_ids() if _is_child(pid, parent, name)), None)


def is_child(pid: int, parent: int) -> bool:
    """Return whether the process `pid` runs and is a child of `parent`."""
    return _is_child(pid, parent, "")


def _is_child(pid: int, parent: int, name: str) -> bool:
    stat = stat_of(pid)
    return stat is not None and stat.parent == parent and stat.state != "Z" and name in ("", stat.command)


def listening_sockets() -> list[ListeningSocket]:
    """Return every TCP socket of this network namespace that listens. Raises OSError, ValueError."""
    return [
        listening
        for table in _TABLES
        if table.exists()
        for listening in parse_listening(table.read_text("ascii"))
    ]


def parse_listening(table: str) -> Iterator[ListeningSocket]:
    """Yield the listening sockets in the text of /proc/net/tcp or tcp6.

    An IPv4 address in an IPv6 socket is that IPv4 address.
    """
    for line in table.splitlines()[1:]:
        # sl, local address:port in hexadecimal, remote address, state, …, inode
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            host, _, port = fields[1].rpartition(":")
            yield ListeningSocket(_address(host), int(port, 16), fields[9])


def holders(inodes: Set[str]) -> Iterator[tuple[int, set[str]]]:
    """Yield each process that holds some of these sockets, with their inodes.

    Processes that /proc does not show to this user are missing.
    """
    for pid in process_ids() if inodes else ():
        held = socket_inodes(pid) & inodes
        if held:
            yield pid, held


def socket_inodes(pid: int) -> set[str]:
    """Return the inodes of a process's open sockets; none for a process that is gone or hidden."""
    inodes = set()
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            # The process may close this descriptor meanwhile; its other descriptors still count.
            with contextlib.suppress(OSError):
                target = os.readlink(descriptor.path)
                if target.startswith("socket:["):
                    inodes.add(target[len("socket:[") : -1])
    return inodes


def _address(hexadecimal: str) -> IPv4Address | IPv6Address:
    # Each 32-bit word of the address, as this machine's memory holds it.
    words = [int(hexadecimal[at : at + 8], 16) for at in range(0, len(hexadecimal), 8)]
    address = ip_address(struct.pack(f"={len(words)}I", *words))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
