"""Kubernetes objects that declare workloads: Deployment, Service, ServiceAccount.

Fields that only matter in a cluster (images, probes, resources) are accepted and ignored; fields that look
misspelt are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from meshscrape.errors import InputError
from meshscrape.istio.annotations import PodAnnotations, parse_annotations
from meshscrape.istio.environment import check_kubernetes_name, check_namespace, parse_boolean
from meshscrape.istio.fields import Document, Field
from meshscrape.istio.names import INJECT, LOCAL_COMMAND, PROXY_CONTAINER
from meshscrape.istio.ports import parse_port, refuse_reserved, shorten
from meshscrape.kube.mesh_spec import Container, ContainerPortSpec

_OWN_NAMESPACES = ("meshscrape.io/", "prometheus.istio.io/", "proxy.istio.io/", "traffic.sidecar.istio.io/")

# Near misses of the first are mistakes, unless they are one of the second.
_POD_FIELDS = ("serviceAccountName", "containers", "initContainers")
_POD_ALSO = ("serviceAccount", "ephemeralContainers")
_CONTAINER_FIELDS = ("name", "env", "ports")
_CONTAINER_ALSO = ("envFrom",)
_DEPLOYMENT_FIELDS = ("replicas", "selector", "template")


@dataclass(frozen=True, slots=True)
class Named:
    """What every object has; `root` is the whole document as a field, which knows its place."""

    kind: str
    namespace: str
    name: str
    root: Field

    @property
    def where(self) -> str:
        """`mesh.yaml:12: Deployment default/httpbin`."""
        return self.root.where


@dataclass(frozen=True, slots=True)
class Deployment:
    """A Deployment's pod, parsed; `proxy_env` is the environment of its istio-proxy container."""

    named: Named
    service_account: str
    service_account_field: Field
    labels: Mapping[str, str]
    annotations: PodAnnotations
    annotations_field: Field
    containers: tuple[Container, ...]
    proxy_env: Mapping[str, tuple[str, Field]]


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A Service's port; `target` is a number or the name of a container port."""

    name: str
    port: int
    target: int | str
    field: Field


@dataclass(frozen=True, slots=True)
class Service:
    """A Service: which pods it selects, and its TCP ports."""

    named: Named
    selector: Mapping[str, str]
    ports: tuple[ServicePort, ...]

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a pod in `namespace` with `labels` belongs to the Service; without a selector none does."""
        return self.named.namespace == namespace and bool(self.selector) and matches(self.selector, labels)


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether `labels` has everything that `selector` asks for."""
    return all(labels.get(key) == value for key, value in selector.items())


def parse_named(document: Document, kind: str) -> Named:
    """The name and namespace of the object in `document`; the namespace defaults to `default`."""
    metadata = Field.of(document, kind).mapping("metadata", required=True)
    metadata.no_misspelt("name", "namespace", "labels", "annotations", also=("generateName",))
    name = check_kubernetes_name(metadata.text("name"), metadata.at("name").where)
    namespace = check_namespace(metadata.text("namespace", "default"), metadata.at("namespace").where)
    root = Field.of(document, f"{kind} {namespace}/{name}")
    root.no_misspelt("apiVersion", "kind", "metadata", "spec", "status")
    return Named(kind, namespace, name, root)


def parse_deployment(named: Named) -> Deployment:
    """The pod that a Deployment declares. Raises InputError with the place of the field that is wrong."""
    _refuse_misplaced_annotations(named.root.mapping("metadata"))
    spec = named.root.mapping("spec", required=True)
    spec.no_misspelt(*_DEPLOYMENT_FIELDS)
    replicas = spec.at("replicas")
    if replicas.value not in (None, 1) or isinstance(replicas.value, bool):
        replicas.refuse("the local mesh runs one pod per workload", "write replicas: 1 or remove it")
    template = spec.mapping("template", required=True)
    template.no_misspelt("metadata", "spec")
    metadata = template.mapping("metadata")
    metadata.no_misspelt("labels", "annotations")
    labels = metadata.strings("labels")
    _check_selector(spec, labels)
    pod = template.mapping("spec", required=True)
    pod.no_misspelt(*_POD_FIELDS, also=_POD_ALSO)
    annotations_field = metadata.at("annotations")
    annotations = _parse_pod_annotations(metadata, named)
    _refuse_uninjected(metadata, labels, annotations)
    # serviceAccount is Kubernetes' deprecated name of the field.
    account_field = pod.at("serviceAccountName")
    if account_field.value is None:
        account_field = pod.at("serviceAccount")
    account = "default" if account_field.value is None else account_field.as_text()
    return Deployment(
        named=named,
        service_account=account,
        service_account_field=account_field,
        labels=labels,
        annotations=annotations,
        annotations_field=annotations_field,
        containers=_containers(pod, annotations, annotations_field),
        proxy_env=_proxy_env(pod),
    )


def _refuse_misplaced_annotations(metadata: Field) -> None:
    for name in metadata.strings("annotations"):
        if name.startswith(_OWN_NAMESPACES):
            metadata.at("annotations").at(name).refuse(
                "the annotation does nothing here", "move it to spec.template.metadata.annotations"
            )


def _check_selector(spec: Field, labels: Mapping[str, str]) -> None:
    selector = spec.mapping("selector")
    selector.only("matchLabels", "matchExpressions")
    if not matches(selector.strings("matchLabels"), labels):
        selector.refuse("does not match the labels of the template", "write the same labels in both places")


def _parse_pod_annotations(metadata: Field, named: Named) -> PodAnnotations:
    texts = metadata.strings("annotations")
    try:
        return parse_annotations(texts)
    except InputError as error:
        guilty = [name for name in texts if name in error.where or repr(name) in error.what]
        found = metadata.at("annotations").at(max(guilty, key=len, default=""))
        # An annotation that is YAML itself has lines within.
        within = re.search(r": line:([0-9]+)", error.where)
        line = found.document.line_of(found.path, int(within[1]) if within else 0)
        where = f"{line}: {named.root.owner}"
        raise InputError(
            error.what, where=f"{where}: {error.where}" if error.where else where, remedy=error.remedy
        ) from error


def _refuse_uninjected(metadata: Field, labels: Mapping[str, str], annotations: PodAnnotations) -> None:
    label = labels.get(INJECT)
    place = metadata.at("labels").at(INJECT)
    inject = annotations.inject if label is None else parse_boolean(label, place.where)
    if inject is False:
        where = place if label is not None else metadata.at("annotations").at(INJECT)
        where.refuse(
            "a workload without a sidecar is not part of the mesh", f"remove {INJECT} or the whole workload"
        )


def _containers(pod: Field, annotations: PodAnnotations, annotations_field: Field) -> tuple[Container, ...]:
    items = [item for item in pod.items("containers") if item.text("name") != PROXY_CONTAINER]
    names = [item.text("name") for item in items]
    for item in items:
        if names.count(item.text("name")) > 1:
            item.at("name").refuse("two containers have this name", "give each its own")
    commands = _commands(names, annotations, annotations_field)
    ports: set[int] = set()
    return tuple(_container(item, commands, ports) for item in items)


def _commands(names: list[str], annotations: PodAnnotations, place: Field) -> dict[str, str]:
    commands = dict(annotations.local_commands)
    only = commands.pop("", None)
    for name in commands:
        if name not in names:
            place.at(f"{LOCAL_COMMAND}.{name}").refuse(
                f"no container is called {shorten(name)}", f"containers are {', '.join(names) or 'none'}"
            )
    if only is None:
        return commands
    if len(names) != 1 or commands:
        place.at(LOCAL_COMMAND).refuse(
            f"the pod has {len(names)} containers", f"write {LOCAL_COMMAND}.CONTAINER for each"
        )
    return {names[0]: only}


def _container(item: Field, commands: Mapping[str, str], taken: set[int]) -> Container:
    """One container; the ports that it declares are added to those that the pod's others have `taken`."""
    item.no_misspelt(*_CONTAINER_FIELDS, also=_CONTAINER_ALSO)
    name = item.text("name")
    ports = []
    for port_item in item.items("ports"):
        port_item.only("containerPort", "name", "protocol", "hostPort", "hostIP")
        if not _is_tcp(port_item):
            continue
        port = port_item.port("containerPort")
        place = port_item.at("containerPort")
        refuse_reserved(port, place.where)
        if port in taken:
            place.refuse(
                f"port {port} is declared twice", "containers of a pod share their ports: use another"
            )
        taken.add(port)
        ports.append(ContainerPortSpec(port_item.text("name", ""), port))
    env = tuple((variable, value) for variable, (value, _) in _env(item).items())
    return Container(name, commands.get(name), env, tuple(ports))


def _is_tcp(port_item: Field) -> bool:
    protocol = port_item.text("protocol", "TCP")
    if protocol not in ("TCP", "UDP", "SCTP"):
        port_item.at("protocol").refuse(f"{shorten(protocol)} is not a protocol", "write TCP or remove it")
    return protocol == "TCP"


def _env(container: Field) -> dict[str, tuple[str, Field]]:
    env: dict[str, tuple[str, Field]] = {}
    for item in container.items("env"):
        item.only("name", "value", "valueFrom")
        if item.at("valueFrom").value is not None:
            item.at("valueFrom").refuse(
                "values from elsewhere are not known to the local mesh", "write the value itself"
            )
        name = item.text("name")
        if "=" in name or "\0" in name:
            item.at("name").refuse(f"{shorten(name)} cannot name a variable", "remove the '=' from it")
        value = item.at("value")
        env[name] = ("" if value.value is None else value.as_text(), item)
    return env


def _proxy_env(pod: Field) -> dict[str, tuple[str, Field]]:
    """The settings that a customised istio-proxy container adds (native sidecars are init containers)."""
    env: dict[str, tuple[str, Field]] = {}
    for item in (*pod.items("containers"), *pod.items("initContainers")):
        if item.text("name") == PROXY_CONTAINER:
            env |= _env(item)
    return env


def parse_service(named: Named) -> Service:
    """A Service's selector and TCP ports. Raises InputError with the place of the field that is wrong."""
    spec = named.root.mapping("spec", required=True)
    spec.no_misspelt("selector", "ports", "type")
    ports = tuple(_service_port(item) for item in spec.items("ports") if _is_tcp(item))
    return Service(named, spec.strings("selector"), ports)


def _service_port(item: Field) -> ServicePort:
    item.only("name", "port", "targetPort", "protocol", "nodePort", "appProtocol")
    port = item.port("port")
    target = item.at("targetPort")
    if target.value is None:
        resolved: int | str = port
    elif isinstance(target.value, int) and not isinstance(target.value, bool):
        resolved = parse_port(str(target.value), target.where)
    else:
        resolved = target.as_text()
    return ServicePort(item.text("name", ""), port, resolved, item)


def target_port(service_port: ServicePort, containers: tuple[Container, ...]) -> int:
    """The container port behind a Service's port; raises InputError when no container declares it."""
    declared = [port for container in containers for port in container.ports]
    for port in declared:
        if service_port.target in (port.port, port.name):
            return port.port
    known = ", ".join(f"{port.port}{f' ({port.name})' if port.name else ''}" for port in declared) or "none"
    raise InputError(
        f"no container declares port {service_port.target}",
        where=service_port.field.where,
        remedy=f"declare it as a containerPort; declared are {known}",
    )
