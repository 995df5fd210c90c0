"""Ports that cannot be listened on are reported before anything starts."""

from __future__ import annotations

import os
import socket

import pytest

from meshscrape.errors import InputError
from meshscrape.system.net import check_free, holder


def test_a_taken_port_names_its_holder() -> None:
    """The line has the address, the process that listens, and what to change."""
    with socket.create_server(("127.0.7.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError) as caught:
            check_free([("127.0.7.1", port)], {port: "change X"})
    line = str(caught.value)
    assert line.startswith(f"127.0.7.1:{port}: the port is taken by pid {os.getpid()} (")
    assert line.endswith("stop that process, or change X")


def test_a_shared_port_counts_as_taken() -> None:
    """A listener with SO_REUSEPORT would share connections with Envoy: it is refused too."""
    server = socket.create_server(("127.0.7.1", 0), reuse_port=True)
    with server, pytest.raises(InputError, match="taken"):
        check_free([("127.0.7.1", server.getsockname()[1])], {})


def test_a_listener_on_every_address_is_found() -> None:
    """A process on 0.0.0.0 holds the port of each address."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert holder("127.0.7.1", port).startswith(f"pid {os.getpid()} ")


def test_a_dual_stack_listener_is_found() -> None:
    """A process on [::] that takes IPv4 too holds the port of an IPv4 address."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert holder("127.0.7.1", server.getsockname()[1]).startswith(f"pid {os.getpid()} ")


def test_free_ports_stay_free() -> None:
    """The look itself does not keep the port: looking twice succeeds, for both families."""
    with socket.create_server(("127.0.7.1", 0)) as server:
        port = server.getsockname()[1]
    for _ in range(2):
        check_free([("127.0.7.1", port), ("::1", port)], {})


def test_an_address_of_another_machine_is_refused() -> None:
    """An address that this machine lacks is not reported as a taken port."""
    with pytest.raises(InputError, match=r"192\.0\.2\.1:80: this machine does not have the address"):
        check_free([("192.0.2.1", 80)], {})
