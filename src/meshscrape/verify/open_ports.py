"""Find the ports of a pod address on which something listens, whether or not the mesh announces them.

For an address of this machine the kernel's tables (/proc/net/tcp, proc(5)) list every port. Any other
address is searched by connecting to a bounded list of ports.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from meshscrape.system.proc import ListeningSocket, holders, listening_sockets, stat_of
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload
from meshscrape.verify.observations import OpenPorts

_DEEPEST = 64

# Usual ports of exporters, admin APIs and debug pages: applications' ports, Prometheus's registry of
# exporter ports (9090 to 10060), kubelets', Envoy's (9901, 15000 to 15100, 19000) and actuators'.
COMMON_PORTS = (
    80, 443, 1234, 2019, 2112, 2379, 2381, 3000, 3100, 3903, 4040, 4191, 5000, 5555, 6060, 6061, 7000, 7070,
    7979, 7980, *range(8000, 8101), 8125, 8181, 8200, *range(8384, 8400), 8404, 8443, 8500, 8686, 8765, 8778,
    8848, *range(8880, 8900), *range(8989, 9001), *range(9001, 10061), *range(10249, 10260), 10901, 10902,
    11434, 12345, 14269, *range(15000, 15101), 16686, 18080, *range(19000, 19011), 19090, 20001, 20014,
    24231, 24240, 26656, 30080, 34567, 42422, 55555, 55679,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of a scan by connecting: the ports, how many at a time, and seconds for each."""

    ports: tuple[int, ...] = COMMON_PORTS
    concurrency: int = 64
    timeout: float = 1.0


async def find_open_ports(mesh: MeshStatus, bounds: Bounds | None = None) -> dict[str, OpenPorts]:
    """Return the open ports of each pod address of `mesh`, by address."""
    bounds = bounds or Bounds()
    local = [address for address in _addresses(mesh) if is_local(address)]
    open_ports: dict[str, OpenPorts] = await asyncio.to_thread(_look_up, mesh, local) if local else {}
    for address in _addresses(mesh):
        if address not in open_ports:
            open_ports[address] = await connect_scan(address, bounds)
    return open_ports


async def connect_scan(address: str, bounds: Bounds) -> OpenPorts:
    """Return which ports of `bounds` accept a connection at `address`."""
    slots = asyncio.Semaphore(bounds.concurrency)

    async def accepts(port: int) -> bool:
        async with slots:
            return await _connects(address, port, bounds.timeout)

    async with asyncio.TaskGroup() as group:
        tasks = {port: group.create_task(accepts(port)) for port in bounds.ports}
    own = tuple(sorted(port for port, task in tasks.items() if task.result()))
    return OpenPorts(own, (), f"{len(tasks)} ports tried by connecting")


def is_local(address: str) -> bool:
    """Return whether this machine (this network namespace) has `address`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _addresses(mesh: MeshStatus) -> tuple[str, ...]:
    return tuple(dict.fromkeys(address for workload in mesh.workloads for address in workload.addresses))


def _look_up(mesh: MeshStatus, addresses: Sequence[str]) -> dict[str, OpenPorts]:
    try:
        sockets = listening_sockets()
    except (OSError, ValueError) as error:
        return dict.fromkeys(addresses, OpenPorts(unable=f"the table of listening ports: {error}"))
    shared = [listening for listening in sockets if listening.address.is_unspecified]
    owners = _owners(mesh, shared)
    by_address: dict[str, MeshWorkload] = {
        address: workload for workload in mesh.workloads for address in workload.addresses
    }
    return {
        address: _of_address(address, by_address[address].title, sockets, owners) for address in addresses
    }


def _of_address(
    address: str, title: str, sockets: Iterable[ListeningSocket], owners: Mapping[str, str]
) -> OpenPorts:
    wanted = ip_address(address)
    own, outside = set(), set()
    for listening in sockets:
        if listening.address == wanted:
            own.add(listening.port)
        elif listening.address.is_unspecified and (listening.address.version == 6 or wanted.version == 4):
            # A wildcard socket of IPv6 usually accepts IPv4 as well. Connecting tells for sure.
            match owners.get(listening.inode, ""):
                case "":
                    outside.add(listening.port)
                case owner if owner == title:
                    own.add(listening.port)
    return OpenPorts(tuple(sorted(own)), tuple(sorted(outside - own)), "every listening port")


def _owners(mesh: MeshStatus, shared: Sequence[ListeningSocket]) -> dict[str, str]:
    """Return the workloads whose processes hold the sockets that are bound to every address, by inode."""
    roots = {pid: workload.title for workload in mesh.workloads for pid in workload.pids}
    owners: dict[str, str] = {}
    for pid, held in holders({listening.inode for listening in shared}) if roots else ():
        if title := _workload_of(pid, roots):
            owners |= dict.fromkeys(held, title)
    return owners


def _workload_of(pid: int, roots: Mapping[int, str]) -> str:
    """Return the workload that `pid` or one of its ancestors belongs to; empty without one."""
    for _ in range(_DEEPEST):
        if pid in roots:
            return roots[pid]
        if pid <= 1:
            return ""
        stat = stat_of(pid)
        if stat is None:
            return ""
        pid = stat.parent
    return ""


async def _connects(address: str, port: int, timeout: float) -> bool:  # noqa: ASYNC109
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except (OSError, TimeoutError):
            return False
    return True
