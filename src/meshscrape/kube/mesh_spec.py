"""A mesh as its manifests declare it: the specification, not the running mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from meshscrape.istio import names
from meshscrape.istio import scrape_targets as targets
from meshscrape.istio.annotations import PodAnnotations
from meshscrape.istio.fields import Document, load_documents
from meshscrape.istio.settings import InboundPort, Role, inbound_to_env
from meshscrape.spiffe.ids import SpiffeId, workload_id

__all__ = [
    "Container",
    "ContainerPortSpec",
    "Document",
    "Gateway",
    "Kind",
    "MeshSpec",
    "Route",
    "Workload",
    "agent_environment",
    "load_documents",
]

# credentials: a sidecar without Envoy, which only fetches the workload's certificate.
Kind = Literal["sidecar", "gateway", "credentials"]


@dataclass(frozen=True, slots=True)
class ContainerPortSpec:
    """A TCP port that a container declares."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Container:
    """An application container; `command_line` runs in its place on this machine, None runs nothing."""

    name: str
    command_line: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    ports: tuple[ContainerPortSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """One pod with its identity, its application and its sidecar (or a gateway).

    `inbound` are the application's ports with the mode that PeerAuthentication gives them; of a gateway, the
    port where it listens. `pod_env` are the environment variables that the pod gives to its agent
    (proxyMetadata, and the environment of a container called istio-proxy).
    """

    name: str
    namespace: str
    service_account: str
    kind: Kind
    annotations: PodAnnotations = field(default_factory=PodAnnotations)
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[Container, ...] = ()
    inbound: tuple[InboundPort, ...] = ()
    pod_env: Mapping[str, str] = field(default_factory=dict)
    manifest_where: str = ""

    @property
    def role(self) -> Role:
        """Return the role of its agent: it is started as `proxy sidecar` or `proxy router`."""
        return "router" if self.kind == "gateway" else "sidecar"

    def spiffe_id(self, trust_domain: str) -> SpiffeId:
        """Return the workload's identity."""
        return workload_id(trust_domain, self.namespace, self.service_account)


@dataclass(frozen=True, slots=True)
class Route:
    """Requests whose path begins with `prefix` go to a workload's port.

    As in Istio, a prefix counts characters, not path segments. The routes of a gateway are ordered so that
    the first route that matches is also the longest.
    """

    prefix: str
    destination_namespace: str
    destination_name: str
    port: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a gateway workload serves: plain HTTP on `port` of its pod address, along `routes`."""

    namespace: str
    name: str
    port: int
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class MeshSpec:
    """All workloads, in the order in which they are declared, and what the gateways serve."""

    trust_domain: str
    workloads: tuple[Workload, ...]
    gateways: tuple[Gateway, ...] = ()

    def workload(self, namespace: str, name: str) -> Workload | None:
        """Return the workload of that name, or None."""
        return next((w for w in self.workloads if (w.namespace, w.name) == (namespace, name)), None)

    def gateway(self, workload: Workload) -> Gateway | None:
        """Return what `workload` serves as a gateway, or None."""
        key = (workload.namespace, workload.name)
        return next((g for g in self.gateways if (g.namespace, g.name) == key), None)

    def routes_of(self, workload: Workload) -> tuple[Route, ...]:
        """Return the routes of a gateway workload; none for others."""
        gateway = self.gateway(workload)
        return gateway.routes if gateway else ()

    @property
    def routes(self) -> tuple[Route, ...]:
        """Return the routes of all gateways."""
        return tuple(route for gateway in self.gateways for route in gateway.routes)


def agent_environment(workload: Workload, trust_domain: str) -> dict[str, str]:
    """Return the environment variables that the injector would give to the workload's agent.

    They come from the pod: proxyMetadata, scrape annotations, statusPort, ports, namespace and service
    account. The caller adds the values of the running mesh (POD_NAME, INSTANCE_IP, CA_ADDR, files).
    """
    env = dict(workload.pod_env)
    if (status_port := workload.annotations.proxy_config.status_port) is not None:
        env.setdefault(names.STATUS_PORT, str(status_port))
    env |= {
        names.TRUST_DOMAIN: trust_domain,
        names.POD_NAMESPACE: workload.namespace,
        names.SERVICE_ACCOUNT: workload.service_account,
        names.ISTIO_META_WORKLOAD_NAME: workload.name,
    }
    # A gateway has no application to merge; Istio's agent reads the variable on sidecars only.
    if workload.kind != "gateway" and (sources := targets.sources_to_env(workload.annotations.sources)):
        env[names.ISTIO_PROMETHEUS_ANNOTATIONS] = sources
    if workload.kind == "credentials":
        env[names.INBOUND_CAPTURE_PORTS] = ""
    elif inbound := inbound_to_env(workload.inbound):
        env[names.MESHSCRAPE_INBOUND] = inbound
    return env
