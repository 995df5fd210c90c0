"""Pods and pod templates: containers, ports, environment, identity, addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshscrape.istio.fields import Path
from meshscrape.istio.names import PROXY_CONTAINER
from meshscrape.istio.ports import shorten
from meshscrape.kube.objects import as_list, as_mapping, containers, dig
from meshscrape.kube.views.reading import Reading

PROTOCOLS = ("TCP", "UDP", "SCTP")
DEFAULT_ACCOUNT = "default"


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a container declares."""

    number: int
    name: str = ""
    protocol: str = "TCP"
    path: Path = ()

    @property
    def tcp(self) -> bool:
        """Return whether it is a TCP port."""
        return self.protocol == "TCP"


@dataclass(frozen=True, slots=True)
class EnvVariable:
    """A variable of a container; `value` is None when it comes from elsewhere (`valueFrom`)."""

    name: str
    value: str | None
    path: Path = ()


def container_port(item: Reading) -> ContainerPort | None:
    """Return a declared port; None when its number cannot be used."""
    item.only("containerPort", "name", "protocol", "hostPort", "hostIP")
    protocol = item.text("protocol", "TCP")
    if protocol not in PROTOCOLS:
        item.at("protocol").fault(
            "not-a-protocol", f"{shorten(protocol)} is not a protocol", "write TCP or remove it"
        )
    number = item.port("containerPort")
    return None if number is None else ContainerPort(number, item.text("name"), protocol, item.path)


def container_ports(container: Reading) -> list[ContainerPort]:
    """Return the ports that a container declares, of all protocols."""
    ports = (container_port(item) for item in container.items("ports"))
    return [port for port in ports if port is not None]


def env_variables(container: Reading) -> list[EnvVariable]:
    """Return the variables of a container in their order; of a repeated name, the last one counts."""
    variables = []
    for item in container.items("env"):
        item.only("name", "value", "valueFrom")
        name = item.text("name")
        if not name:
            item.at("name").fault("missing", "missing", "write name")
        elif item.at("valueFrom").value is not None:
            variables.append(EnvVariable(name, None, item.path))
        else:
            variables.append(EnvVariable(name, item.text("value"), item.path))
    return variables


def declared_ports(template: Any, *, proxy: bool = True) -> list[ContainerPort]:
    """Return the ports that a pod's containers declare; `proxy=False` leaves those of istio-proxy out."""
    return [
        port
        for container in containers(template)
        if proxy or container.get("name") != PROXY_CONTAINER
        for port in container_ports(Reading.of(container))
    ]


def env_of(container: Any) -> dict[str, str]:
    """Return the variables of a container that have a value of their own; the last of a name counts."""
    variables = {}
    for item in as_list(dig(container, "env")):
        name, value = dig(item, "name"), dig(item, "value")
        if isinstance(name, str) and value is not None:
            # A user's manifest may have a number here, which the API server would refuse.
            variables[name] = str(value)
    return variables


def service_account(template: Any) -> str:
    """Return the name of the ServiceAccount that a pod runs as."""
    spec = as_mapping(dig(template, "spec"))
    # serviceAccount is Kubernetes' deprecated name of the field.
    account = dig(spec, "serviceAccountName") or dig(spec, "serviceAccount")
    return account if isinstance(account, str) else DEFAULT_ACCOUNT


def pod_addresses(pod: Any) -> tuple[str, ...]:
    """Return the addresses of a running pod: one, or one of each family (dual stack); its main one first."""
    status = as_mapping(dig(pod, "status"))
    listed = [dig(item, "ip") for item in as_list(status.get("podIPs"))]
    addresses = [status.get("podIP"), *listed]
    return tuple(dict.fromkeys(ip for ip in addresses if isinstance(ip, str) and ip))
