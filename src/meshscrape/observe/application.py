"""Find an application's ports, and how Istio treats them, from the Services that select the pod."""

from __future__ import annotations

from typing import Any

from meshscrape.kube.objects import Manifest
from meshscrape.kube.views.pod import declared_ports
from meshscrape.kube.views.service import ServicePort, service
from meshscrape.observe.model import WorkloadPort

_HTTP = ("http", "http2", "grpc", "grpc-web")
_PREFIXES = (*_HTTP, "tcp", "tls", "https", "mongo", "mysql", "redis", "udp")


def application_ports(template: Any, services: tuple[Manifest, ...]) -> tuple[WorkloadPort, ...]:
    """Return the TCP ports that containers declare and that Services lead to, by number."""
    declared = [port for port in declared_ports(template, proxy=False) if port.tcp]
    port_of: dict[int, WorkloadPort] = {}
    for port in declared:
        port_of.setdefault(port.number, WorkloadPort(port.number, port.name))
    for manifest in services:
        for service_port in service(manifest.data).ports:
            number = service_port.number(declared)
            if number is not None and service_port.tcp:
                same = port_of.get(number)
                port_of[number] = _served(number, same.name if same else "", service_port)
    return tuple(port_of[number] for number in sorted(port_of))


def _served(number: int, name: str, port: ServicePort) -> WorkloadPort:
    # Istio takes the protocol from appProtocol, else from the first word of the port's name.
    spelled = (port.app_protocol or port.name.partition("-")[0]).lower()
    if spelled.removeprefix("kubernetes.io/") in (*_HTTP, "h2c", "ws"):
        return WorkloadPort(number, name, "http", port.name)
    if port.app_protocol or spelled in _PREFIXES:
        return WorkloadPort(number, name, "tcp", port.name)
    return WorkloadPort(number, name, "auto", port.name)
