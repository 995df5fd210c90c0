"""Service: which pods it selects, and which port of a pod each of its ports leads to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshscrape.istio.fields import Path
from meshscrape.istio.ports import shorten
from meshscrape.kube.objects import Object
from meshscrape.kube.selectors import matches
from meshscrape.kube.views.pod import PROTOCOLS, ContainerPort
from meshscrape.kube.views.reading import Fault, Reading


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a Service; `target` is a number or the name of a container port."""

    name: str
    port: int
    target: int | str
    protocol: str = "TCP"
    app_protocol: str = ""
    path: Path = ()

    @property
    def tcp(self) -> bool:
        """Return whether it is a TCP port."""
        return self.protocol == "TCP"

    def number(self, declared: Iterable[ContainerPort]) -> int | None:
        """Return the port of a pod that this port leads to; None for a name that no container declares.

        A number needs no declaration in Kubernetes. Of several containers the first with the name counts.
        """
        if isinstance(self.target, int):
            return self.target
        return next((port.number for port in declared if port.name == self.target), None)


@dataclass(frozen=True, slots=True)
class Service:
    """The selector and the ports of a Service; without a selector it selects no pod."""

    selector: Mapping[str, str]
    ports: tuple[ServicePort, ...]
    faults: tuple[Fault, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Return whether a pod of the Service's namespace with `labels` is behind it."""
        return bool(self.selector) and matches(self.selector, labels)


def service(data: Object) -> Service:
    """Return the view of a Service object."""
    spec = Reading.of(data).mapping("spec")
    ports = (_port(item) for item in spec.items("ports"))
    readable = tuple(port for port in ports if port is not None)
    return Service(spec.strings("selector"), readable, tuple(spec.faults))


def _port(item: Reading) -> ServicePort | None:
    item.only("name", "port", "targetPort", "protocol", "nodePort", "appProtocol")
    protocol = item.text("protocol", "TCP")
    if protocol not in PROTOCOLS:
        item.at("protocol").fault(
            "not-a-protocol", f"{shorten(protocol)} is not a protocol", "write TCP or remove it"
        )
    port = item.port("port")
    target = item.at("targetPort")
    if port is None:
        return None
    number: int | str | None = port
    if isinstance(target.value, int):
        number = target.port_number()
    elif target.value is not None:
        number = item.text("targetPort") or None
    if number is None:
        return None
    return ServicePort(item.text("name"), port, number, protocol, item.text("appProtocol"), item.path)
