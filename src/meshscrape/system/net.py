"""Listen on sockets; find out whether an address is free, and which process uses it if not."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from meshscrape.errors import InputError
from meshscrape.istio.host_port import host_port
from meshscrape.system import proc

_LOOK = 0.02
# The code of the InputError for a port that another process uses now and may release.
PORT_TAKEN = "port-taken"


def check_free(addresses: Iterable[tuple[str, int]], remedies: Mapping[int, str]) -> None:
    """Bind and release each address and port as Envoy will; raise InputError for the first that fails.

    `remedies` says for each port what to do when it is taken. A port that another process shares
    (SO_REUSEPORT) counts as taken. Another process may still take the port before Envoy binds it. This check
    only gives a clear message; Envoy's bind decides.
    """
    for address, port in addresses:
        with _reusable_socket(address) as probe:
            try:
                probe.bind((address, port))
            except OSError as error:
                raise _refusal(address, port, remedies.get(port, "use another port"), error) from error


async def await_free(
    addresses: Iterable[tuple[str, int]], remedies: Mapping[int, str], patience: float
) -> None:
    """Wait until the ports are free, because a predecessor's Envoy that was just killed needs time to end.

    Raises the InputError of `check_free` for a port that is still taken after `patience` seconds, and at once
    for an error that waiting does not change.
    """
    wanted, deadline = tuple(addresses), time.monotonic() + patience
    while True:
        try:
            return check_free(wanted, remedies)
        except InputError as error:
            if error.code != PORT_TAKEN or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_LOOK)


def listen_tcp(host: str, port: int, backlog: int, *, receive_buffer: int = 0) -> socket.socket:
    """Return a listening, non-blocking socket that no other process can share.

    `receive_buffer` (bytes, 0: the kernel's choice) applies to accepted connections, which inherit it. Raises
    InputError when the address cannot be listened on.
    """
    # Name the protocol: otherwise asyncio does not set TCP_NODELAY, and a response's end waits 40 ms.
    listening = _reusable_socket(host)
    try:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listening.bind((host, port))
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        raise _refusal(host, port, "choose another address", error) from error
    listening.setblocking(False)
    return listening


def listen_unix(path: Path, backlog: int) -> socket.socket:
    """Return a Unix socket that listens at `path` and that only this user can open.

    It replaces an old socket there. Raises InputError when it cannot be made.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        # The address of a Unix socket is short; the path of a directory's descriptor always is.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listening.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        raise InputError(f"cannot listen: {error.strerror or error}", where=str(path)) from error
    finally:
        os.umask(before)
    listening.setblocking(False)
    return listening


def holder(address: str, port: int) -> str:
    """Return the process that listens at an address (`pid 12 (envoy)`); empty if /proc does not show it."""
    try:
        sockets = proc.listening_sockets()
    except (OSError, ValueError):
        return ""
    wanted = ip_address(address)
    inodes = {socket.inode for socket in sockets if socket.port == port and _covers(socket.address, wanted)}
    for pid, _ in proc.holders(inodes):
        if (stat := proc.stat_of(pid)) is not None:
            return f"pid {pid} ({stat.command})"
    return ""


def _covers(bound: IPv4Address | IPv6Address, wanted: IPv4Address | IPv6Address) -> bool:
    # A wildcard socket of IPv6 usually takes IPv4, too.
    return bound == wanted or (bound.is_unspecified and (bound.version == 6 or wanted.version == 4))


def _reusable_socket(host: str) -> socket.socket:
    """Return an unbound socket with SO_REUSEADDR, without SO_REUSEPORT, and for one IP version only.

    With SO_REUSEPORT two processes share a port silently, each answering some requests.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _refusal(address: str, port: int, remedy: str, error: OSError) -> InputError:
    place = host_port(address, port)
    if error.errno == errno.EADDRINUSE:
        who = holder(address, port)
        taken_by = f"the port is taken by {who}" if who else "the port is taken"
        return InputError(taken_by, where=place, remedy=f"stop that process, or {remedy}", code=PORT_TAKEN)
    if error.errno == errno.EADDRNOTAVAIL:
        return InputError(
            "this machine does not have the address", where=place, remedy="use an address of this machine"
        )
    return InputError(f"cannot listen: {error.strerror}", where=place, remedy=remedy)
