"""Make a mesh of manifests: parse the objects, join them, and try every workload's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from meshscrape.errors import InputError, Place
from meshscrape.istio import names
from meshscrape.istio.fields import Document, Field, closest
from meshscrape.istio.ports import shorten
from meshscrape.istio.settings import (
    OWN_VARIABLES,
    AgentSettings,
    InboundPort,
    parse_settings,
)
from meshscrape.kube import gateways
from meshscrape.kube.declarations import (
    DeclaredService,
    Deployment,
    Named,
    parse_deployment,
    parse_named,
    parse_service,
)
from meshscrape.kube.gateways import GatewayObject, VirtualService
from meshscrape.kube.mesh_spec import Gateway, Kind, MeshSpec, Workload, agent_environment
from meshscrape.kube.policies import Policies
from meshscrape.spiffe.ids import check_trust_domain

# The mesh sets these for every agent; a pod that sets one would contradict its identity.
_GIVEN = frozenset(
    {
        names.POD_NAME,
        names.POD_NAMESPACE,
        names.SERVICE_ACCOUNT,
        names.TRUST_DOMAIN,
        names.INSTANCE_IP,
        names.INSTANCE_IPS,
        names.ISTIO_META_WORKLOAD_NAME,
        names.ISTIO_PROMETHEUS_ANNOTATIONS,
        names.MESHSCRAPE_INBOUND,
        names.MESHSCRAPE_INSIDE_ADDRESS,
    }
)
# These variables of Istio change what is exposed. A misspelt name is refused, because the default would
# silently stay.
_ISTIO_VARIABLES = (
    names.CA_ADDR,
    names.CA_ROOT_CA,
    names.ECC_CURVE,
    names.ECC_SIGNATURE_ALGORITHM,
    names.ENVOY_PROMETHEUS_PORT,
    names.ENVOY_SECURE_MERGED_METRICS_PORT,
    names.ENVOY_SECURE_METRICS_PORT,
    names.ENVOY_STATUS_PORT,
    names.INBOUND_CAPTURE_PORTS,
    names.METRICS_LOCALHOST_ACCESS_ONLY,
    names.OUTPUT_CERTS,
    names.PILOT_AGENT_MERGE_ENVOY_STATS,
    names.SECRET_GRACE_PERIOD_RATIO,
    names.SECRET_GRACE_PERIOD_RATIO_JITTER,
    names.SECRET_TTL,
    names.STATUS_PORT,
    names.WORKLOAD_RSA_KEY_SIZE,
)

_NETWORKING = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
_KINDS: Mapping[str, tuple[str, ...]] = {
    "Namespace": ("v1",),
    "ServiceAccount": ("v1",),
    "Service": ("v1",),
    "Deployment": ("apps/v1",),
    "PeerAuthentication": ("security.istio.io/v1", "security.istio.io/v1beta1"),
    "Gateway": _NETWORKING,
    "VirtualService": _NETWORKING,
}


@dataclass(slots=True)
class _Objects:
    accounts: set[tuple[str, str]] = field(default_factory=set)
    deployments: list[Deployment] = field(default_factory=list)
    services: list[DeclaredService] = field(default_factory=list)
    policies: list[Named] = field(default_factory=list)
    gateways: list[GatewayObject] = field(default_factory=list)
    virtual_services: list[VirtualService] = field(default_factory=list)


def parse_mesh(
    documents: Iterable[Document], trust_domain: str = "cluster.local", where: str = ""
) -> MeshSpec:
    """Return the mesh that the manifests in `documents` declare.

    Every workload's settings are parsed as its agent parses them. A mistake that would keep an agent from
    starting is thus reported with the manifest's file and line. Raises InputError with the place of the first
    mistake (`where` when no object is at fault).
    """
    check_trust_domain(trust_domain)
    objects = _collect(documents)
    policies = Policies(objects.policies)
    workloads = tuple(_workload(deployment, objects, policies) for deployment in objects.deployments)
    if not workloads:
        raise InputError("no workload is declared", where=where, remedy="write at least one Deployment")
    policies.check_ports((w.namespace, w.labels, {item.port for item in w.inbound}) for w in workloads)
    served = gateways.resolve_gateways(
        objects.gateways, objects.virtual_services, objects.services, workloads
    )
    mesh = MeshSpec(trust_domain, tuple(_listening(workload, served) for workload in workloads), served)
    for workload, deployment in zip(mesh.workloads, objects.deployments, strict=True):
        _check_services(deployment, workload, objects.services)
        _check_settings(workload, deployment, trust_domain)
    return mesh


def _collect(documents: Iterable[Document]) -> _Objects:
    objects = _Objects()
    adders: Mapping[str, Callable[[Named], None]] = {
        # A namespace needs no declaration here, but many manifests have one.
        "Namespace": lambda named: None,
        "ServiceAccount": lambda named: objects.accounts.add((named.namespace, named.name)),
        "Service": lambda named: objects.services.append(parse_service(named)),
        "Deployment": lambda named: objects.deployments.append(parse_deployment(named)),
        "PeerAuthentication": objects.policies.append,
        "Gateway": lambda named: objects.gateways.append(gateways.parse_gateway(named)),
        "VirtualService": lambda named: objects.virtual_services.append(
            gateways.parse_virtual_service(named)
        ),
    }
    declared: dict[tuple[str, str, str], Named] = {}
    for document in documents:
        kind = _kind(document)
        named = parse_named(document, kind)
        first = declared.setdefault((kind, named.namespace, named.name), named)
        if first is not named:
            raise InputError(
                f"declared already at {first.root.document.where}",
                where=named.root.place,
                remedy="rename one of the two",
                code="declared-twice",
            )
        adders[kind](named)
    return objects


def _kind(document: Document) -> str:
    root = Field.of(document, "")
    kind, version = root.text("kind"), root.text("apiVersion")
    if kind not in _KINDS:
        near = closest(kind, _KINDS)
        known = f"did you mean {near}?" if near else f"supported are {', '.join(_KINDS)}"
        root.at("kind").refuse("unsupported-kind", f"kind {shorten(kind)} is not supported", known)
    if version not in _KINDS[kind]:
        root.at("apiVersion").refuse(
            "unsupported-version",
            f"{kind} of {shorten(version)} is not supported",
            f"write {' or '.join(_KINDS[kind])}",
        )
    return kind


def _workload(deployment: Deployment, objects: _Objects, policies: Policies) -> Workload:
    named = deployment.named
    account = deployment.service_account
    if account != "default" and (named.namespace, account) not in objects.accounts:
        deployment.service_account_field.refuse(
            "no-service-account",
            f"there is no ServiceAccount {named.namespace}/{account}",
            "declare it, or correct the name",
        )
    pod_env = dict(deployment.annotations.proxy_config.metadata)
    pod_env |= {name: value for name, (value, _) in deployment.proxy_env.items()}
    _check_pod_env(pod_env, deployment)
    kind = _workload_kind(deployment, pod_env)
    inbound = tuple(
        InboundPort(port.port, policies.mode(named.namespace, deployment.labels, port.port), port.name)
        for container in deployment.containers
        for port in container.ports
    )
    if kind == "gateway":
        inbound = ()
    return Workload(
        name=named.name,
        namespace=named.namespace,
        service_account=account,
        kind=kind,
        annotations=deployment.annotations,
        labels=deployment.labels,
        containers=deployment.containers,
        inbound=tuple(_captured(item, deployment, kind) for item in inbound),
        pod_env=pod_env,
        manifest_where=named.where,
    )


def _check_pod_env(pod_env: Mapping[str, str], deployment: Deployment) -> None:
    known = (*_ISTIO_VARIABLES, *OWN_VARIABLES)
    for name in pod_env:
        where = _variable_place(name, deployment)
        if name in _GIVEN:
            raise InputError(
                f"{name} is set by the mesh", where=where, remedy="remove it", code="set-by-the-mesh"
            )
        if name not in known and (near := closest(name, known, 0.9)):
            raise InputError(
                f"unknown setting {shorten(name)}",
                where=where,
                remedy=f"did you mean {near}?",
                code="unknown-setting",
            )


def _workload_kind(deployment: Deployment, pod_env: Mapping[str, str]) -> Kind:
    annotations = deployment.annotations
    if deployment.labels.get("istio") == "ingressgateway" or "gateway" in annotations.templates:
        return "gateway"
    if pod_env.get(names.INBOUND_CAPTURE_PORTS) == "" or annotations.include_inbound_ports == ():
        return "credentials"
    return "sidecar"


def _captured(item: InboundPort, deployment: Deployment, kind: Kind) -> InboundPort:
    """Return the port with its mode: without capture by the sidecar it is plain text."""
    annotations = deployment.annotations
    included = annotations.include_inbound_ports
    captured = kind == "sidecar" and (included is None or item.port in included)
    if captured and item.port not in annotations.exclude_inbound_ports:
        return item
    return replace(item, mode="DISABLE")


def _listening(workload: Workload, served: Iterable[Gateway]) -> Workload:
    for gateway in served:
        if (gateway.namespace, gateway.name) == (workload.namespace, workload.name):
            return replace(workload, inbound=(InboundPort(gateway.port, "DISABLE", "http"),))
    return workload


def _check_services(deployment: Deployment, workload: Workload, services: Iterable[DeclaredService]) -> None:
    """Raise InputError for a Service's port that leads to no declared port: it would have no listener."""
    for service in services:
        if workload.kind != "gateway" and service.selects(workload.namespace, deployment.labels):
            for port in service.ports:
                service.target_port(port, workload.containers)


def _check_settings(workload: Workload, deployment: Deployment, trust_domain: str) -> None:
    # Names and addresses are assigned when the mesh starts. To check the others, placeholders do.
    env = agent_environment(workload, trust_domain) | {
        names.POD_NAME: workload.name,
        names.INSTANCE_IP: "127.0.0.2",
    }
    try:
        settings = parse_settings(env, workload.role)
    except InputError as error:
        outer = _variable_place(error.place.variable, deployment)
        raise InputError(
            error.what, where=error.place.within(outer), remedy=error.remedy, code=error.code
        ) from error
    _check_announced(settings, deployment)


def _check_announced(settings: AgentSettings, deployment: Deployment) -> None:
    """Raise InputError for an annotation that leads scrapers to a port other than the open one."""
    annotations = deployment.annotations
    for name, announced, variable, port in (
        (
            names.SECURE_PORT,
            annotations.secure_port,
            names.ENVOY_SECURE_MERGED_METRICS_PORT,
            settings.secure_merged_port,
        ),
        (
            names.SECURE_ENVOY_PORT,
            annotations.secure_envoy_port,
            names.ENVOY_SECURE_METRICS_PORT,
            settings.secure_stats_port,
        ),
    ):
        if announced not in (None, port):
            deployment.annotations_field.at(name).refuse(
                "announced-port",
                f"port {announced} is announced, but {variable} is {port or 'off'}",
                f"set {variable} in proxyMetadata to the same port",
            )


def _variable_place(name: str, deployment: Deployment) -> Place:
    """Return where the pod sets the agent's variable `name`; the whole object when the pod does not."""
    if name in deployment.proxy_env:
        return deployment.proxy_env[name][1].place
    lines = deployment.annotations.proxy_config.lines
    if name not in lines:
        return deployment.named.root.place
    place = deployment.annotations_field.at(names.PROXY_CONFIG_ANNOTATION)
    line = place.document.place_of(place.path, within=lines[name])
    return replace(line, object=deployment.named.root.owner, annotation=names.PROXY_CONFIG_ANNOTATION)
