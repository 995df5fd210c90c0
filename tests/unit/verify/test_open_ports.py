"""Finding listening ports: the kernel's table, whose a socket is, and the search by connecting."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

from meshscrape.system.proc import parse_listening
from meshscrape.verify.mesh_status import parse_mesh
from meshscrape.verify.open_ports import Bounds, connect_scan, find_open_ports, is_local
from support.addresses import free_port, loopback
from support.polling import eventually
from support.status import sidecar, status

LISTEN = "import socket,time; s=socket.socket(); s.bind(('0.0.0.0',{port})); s.listen(); time.sleep(60)"
V4 = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 01011F7F:24F8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0   0 4711 1 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0   0 4712 1 0
   2: 01011F7F:24F8 01011F7F:9999 01 00000000:00000000 00:00000000 00000000  0   0 4713 1 0
"""
V6 = """\
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4714
   1: 0000000000000000FFFF000001011F7F:1F91 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4715
"""


def test_the_kernel_s_table_is_read() -> None:
    """Listening sockets only, in this machine's byte order; mapped IPv4 addresses are IPv4 addresses."""
    if sys.byteorder == "big":
        return
    assert [(str(a), p, i) for a, p, i in parse_listening(V4)] == [
        ("127.31.1.1", 0x24F8, "4711"),
        ("0.0.0.0", 22, "4712"),
    ]
    assert [(str(a), p) for a, p, _ in parse_listening(V6)] == [("::1", 0x1F90), ("127.31.1.1", 0x1F91)]


def test_addresses_of_this_machine_are_recognised() -> None:
    """Loopback is here; an address of the documentation's range is not."""
    assert is_local("127.77.1.2")
    assert not is_local("192.0.2.1")
    assert not is_local("2001:db8::1")


def test_a_search_by_connecting_finds_what_listens() -> None:
    """Only ports of the list are tried, and only those that accept are found."""
    address = loopback()
    with socket.create_server((address, 9464)), socket.create_server((address, 9465)):
        found = asyncio.run(connect_scan(address, Bounds(ports=(9464, 9466, 9467))))
    assert found.own == (9464,)
    assert found.how == "3 ports tried by connecting"


def test_ports_belong_to_the_workload_of_the_process() -> None:
    """On the pod address: the workload's. On every address: the workload's whose process has it, or nobody's.

    The second workload does not have what the first one's process opened on every address.
    """
    one, two, port = loopback(), loopback(), free_port("0.0.0.0")
    with socket.create_server((one, 0)) as own, socket.create_server(("", 0)) as ours:
        child = subprocess.Popen(
            [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.call({_child(port)!r}))"],
            process_group=0,
        )
        try:
            eventually(lambda: socket.create_connection((two, port)).close() is None)
            mesh = parse_mesh(
                status(
                    sidecar(addresses=[one], pids={"agent": child.pid, "envoy": None, "application": []}),
                    sidecar(name="other", addresses=[two]),
                )
            )
            found = asyncio.run(find_open_ports(mesh))
        finally:
            os.killpg(child.pid, 9)
            child.wait()
        assert found[one].own == tuple(sorted((own.getsockname()[1], port)))
        assert found[two].own == ()
        assert ours.getsockname()[1] in found[one].outside
        assert port not in found[two].outside


def _child(port: int) -> list[str]:
    return [sys.executable, "-c", LISTEN.format(port=port)]
