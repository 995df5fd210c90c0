"""An application's ports, and how Istio treats them: by the Services that select the pod."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import PROXY_CONTAINER
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.observe.model import ContainerPort

_HTTP = ("http", "http2", "grpc", "grpc-web")
_PREFIXES = (*_HTTP, "tcp", "tls", "https", "mongo", "mysql", "redis", "udp")


def application_ports(template: Any, services: tuple[Manifest, ...]) -> tuple[ContainerPort, ...]:
    """The TCP ports that containers declare and that Services lead to, by number."""
    found: dict[int, ContainerPort] = {}
    named: dict[str, int] = {}
    for container in objects.containers(template):
        if container.get("name") == PROXY_CONTAINER:
            continue
        for port in objects.as_list(container.get("ports")):
            number = objects.dig(port, "containerPort")
            if isinstance(number, int) and objects.dig(port, "protocol", default="TCP") == "TCP":
                name = str(objects.dig(port, "name", default=""))
                found.setdefault(number, ContainerPort(number, name))
                named.setdefault(name, number)
    for service in services:
        for port in objects.as_list(objects.dig(service.data, "spec", "ports")):
            target = objects.dig(port, "targetPort", default=objects.dig(port, "port"))
            number = target if isinstance(target, int) else named.get(str(target))
            if number is not None:
                found[number] = _service_port(number, found.get(number), port)
    return tuple(found[number] for number in sorted(found))


def _service_port(number: int, known: ContainerPort | None, port: Any) -> ContainerPort:
    name = str(objects.dig(port, "name", default=""))
    spelled = str(objects.dig(port, "appProtocol") or name.partition("-")[0] or "").lower()
    known_name = known.name if known else ""
    if spelled.removeprefix("kubernetes.io/") in (*_HTTP, "h2c", "ws"):
        return ContainerPort(number, known_name, "http", name)
    if objects.dig(port, "appProtocol") or spelled in _PREFIXES:
        return ContainerPort(number, known_name, "tcp", name)
    return ContainerPort(number, known_name, "auto", name)
