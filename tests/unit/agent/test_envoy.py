"""Which ports are looked at before Envoy starts, and what is said about one that is taken."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from meshscrape.agent import envoy
from meshscrape.errors import InputError, MissingBinaryError
from meshscrape.istio.settings import AgentSettings, parse_settings
from support.addresses import loopback

ENVIRONMENT = {
    "POD_NAMESPACE": "demo",
    "SERVICE_ACCOUNT": "web",
    "POD_NAME": "web-0",
    "ENVOY_SECURE_METRICS_PORT": "15091",
    "ENVOY_SECURE_MERGED_METRICS_PORT": "15092",
    "MESHSCRAPE_INBOUND": '[{"port": 9080, "mode": "STRICT"}]',
}


def settings(**changes: str) -> AgentSettings:
    addresses = {"INSTANCE_IP": loopback(), "MESHSCRAPE_INSIDE_ADDRESS": loopback()}
    return parse_settings(ENVIRONMENT | addresses | changes, "sidecar")


def test_every_port_that_envoy_binds_is_known() -> None:
    """Secure ports, health and the application's port on the pod's address; statistics inside too."""
    chosen = settings()
    bound = set(envoy.render(chosen).addresses())
    pod, inside = chosen.pod_addresses[0], chosen.inside_address
    assert {(pod, port) for port in (15091, 15092, 15021, 15090, 15020, 9080)} | {(inside, 15090)} == bound


def test_all_addresses_of_a_dual_stack_workload_are_known() -> None:
    """A second address of the pod is looked at as the first one is."""
    bound = set(envoy.render(settings(INSTANCE_IPS="127.9.9.9,::1")).addresses())
    assert {("127.9.9.9", 15091), ("::1", 15091)} <= bound


def test_an_application_on_every_address_is_told_where_to_listen() -> None:
    """An application that binds 0.0.0.0 takes the pod's port from Envoy: the line says what to change."""
    with socket.create_server(("0.0.0.0", 0)) as application:
        port = application.getsockname()[1]
        chosen = settings(MESHSCRAPE_INBOUND=f'[{{"port": {port}, "mode": "STRICT"}}]')
        with pytest.raises(InputError) as caught:
            asyncio.run(envoy.await_ports(chosen, envoy.render(chosen), patience=0.1))
    assert f"{chosen.pod_addresses[0]}:{port}: the port is taken by pid {os.getpid()}" in str(caught.value)
    assert f"let the application listen only on {chosen.inside_address}" in str(caught.value)


def test_a_directory_is_not_an_envoy(tmp_path: Path) -> None:
    """What cannot be executed is refused before anything starts."""
    with pytest.raises(MissingBinaryError, match="is not executable"):
        envoy.find_binary(settings(MESHSCRAPE_ENVOY=str(tmp_path)))
