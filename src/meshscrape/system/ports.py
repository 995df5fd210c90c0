"""Whether addresses can be listened on, and who has them when they cannot."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

from meshscrape.errors import InputError

_LISTEN = "0A"
_LOOK = 0.02
# The code of the InputError for a port that another process has now, and may give up.
PORT_TAKEN = "port-taken"


def check_free(addresses: Iterable[tuple[str, int]], remedies: Mapping[int, str]) -> None:
    """Bind each address and port once, as Envoy will, and let go; InputError for the first that fails.

    `remedies` says for each port what to do when it is taken. Without SO_REUSEPORT a port that another
    process shares counts as taken. Between this look and the real bind another process may still come
    first: the look is there for the clear message, Envoy's own bind decides.
    """
    for address, port in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                raise _refusal(address, port, remedies.get(port, "use another port"), error) from error


async def await_free(
    addresses: Iterable[tuple[str, int]], remedies: Mapping[int, str], patience: float
) -> None:
    """Wait until the ports are free: the Envoy of a predecessor that was just killed needs time to go.

    Raises the InputError of `check_free` for a port that is still taken after `patience` seconds, and at
    once for whatever waiting does not change.
    """
    wanted, deadline = tuple(addresses), time.monotonic() + patience
    while True:
        try:
            return check_free(wanted, remedies)
        except InputError as error:
            if error.code != PORT_TAKEN or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_LOOK)


def holder(address: str, port: int) -> str:
    """Who listens there: `pid 12 (envoy)`, as far as /proc shows it to this user, else an empty text."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(address, port)}
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):
            if any(os.readlink(entry.path) in inodes for entry in os.scandir(process / "fd")):
                return f"pid {process.name} ({(process / 'comm').read_text().strip()})"
    return ""


def _refusal(address: str, port: int, remedy: str, error: OSError) -> InputError:
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if error.errno == errno.EADDRINUSE:
        who = holder(address, port)
        taken_by = f"the port is taken by {who}" if who else "the port is taken"
        return InputError(taken_by, where=place, remedy=f"stop that process, or {remedy}", code=PORT_TAKEN)
    if error.errno == errno.EADDRNOTAVAIL:
        return InputError("this machine does not have the address", where=place, remedy="check INSTANCE_IPS")
    return InputError(f"cannot listen: {error.strerror}", where=place, remedy=remedy)


def _listening_inodes(address: str, port: int) -> set[str]:
    # /proc/net/tcp and tcp6: sl, local address:port in hexadecimal, remote, state, ..., inode (proc(5)).
    wanted = {_hexadecimal(address), _hexadecimal("::" if ":" in address else "0.0.0.0")}  # noqa: S104
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                host, _, number = fields[1].rpartition(":")
                if fields[3] == _LISTEN and int(number, 16) == port and host in {*wanted, "0" * 32}:
                    found.add(fields[9])
    return found


def _hexadecimal(address: str) -> str:
    # Each 32-bit word of the address, as this machine's memory holds it.
    packed = ip_address(address).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words)
