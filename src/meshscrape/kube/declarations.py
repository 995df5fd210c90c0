"""Kubernetes objects that declare workloads: Deployment, Service, ServiceAccount.

Fields that only matter in a cluster (images, probes, resources) are accepted and ignored; fields that look
misspelt are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from meshscrape.errors import InputError
from meshscrape.istio.annotations import PodAnnotations, parse_annotations
from meshscrape.istio.environment import check_kubernetes_name, check_namespace, parse_boolean
from meshscrape.istio.fields import Document, Field
from meshscrape.istio.names import INJECT, LOCAL_COMMAND, PROXY_CONTAINER
from meshscrape.istio.ports import refuse_reserved, shorten
from meshscrape.kube.mesh_spec import Container, ContainerPortSpec
from meshscrape.kube.selectors import matches
from meshscrape.kube.views import service as views
from meshscrape.kube.views.pod import ContainerPort, container_ports, env_variables
from meshscrape.kube.views.reading import Reading, refuse_faults
from meshscrape.kube.views.service import ServicePort

_OWN_NAMESPACES = ("meshscrape.io/", "prometheus.istio.io/", "proxy.istio.io/", "traffic.sidecar.istio.io/")

# A field with nearly the name of one in the first list is an error, unless the second list has it.
_POD_FIELDS = ("serviceAccountName", "containers", "initContainers")
_POD_ALSO = ("serviceAccount", "ephemeralContainers")
_CONTAINER_FIELDS = ("name", "env", "ports")
_CONTAINER_ALSO = ("envFrom",)
_DEPLOYMENT_FIELDS = ("replicas", "selector", "template")


@dataclass(frozen=True, slots=True)
class Named:
    """Kind and name of an object; `root` is the whole document as a field with its place."""

    kind: str
    namespace: str
    name: str
    root: Field

    @property
    def where(self) -> str:
        """Return the place of the object: `mesh.yaml:12: Deployment default/httpbin`."""
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
class DeclaredService:
    """A Service with its place; `view` has its ports and its selector."""

    named: Named
    view: views.Service

    @property
    def ports(self) -> tuple[ServicePort, ...]:
        """Return its TCP ports."""
        return tuple(port for port in self.view.ports if port.tcp)

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Return whether a pod in `namespace` with `labels` is behind the Service."""
        return self.named.namespace == namespace and self.view.selects(labels)

    def target_port(self, port: ServicePort, containers: tuple[Container, ...]) -> int:
        """Return the container port behind a port; raise InputError when no container declares it."""
        declared = [ContainerPort(known.port, known.name) for item in containers for known in item.ports]
        number = port.number(declared)
        if number is not None and any(item.number == number for item in declared):
            return number
        spelled = ", ".join(f"{item.number}{f' ({item.name})' if item.name else ''}" for item in declared)
        raise InputError(
            f"no container declares port {port.target}",
            where=self.named.root.below(port.path).place,
            remedy=f"declare it as a containerPort; declared are {spelled or 'none'}",
            code="no-such-port",
        )


def parse_named(document: Document, kind: str) -> Named:
    """Return the name and namespace of the object in `document`; the namespace defaults to `default`."""
    metadata = Field.of(document, kind).mapping("metadata", required=True)
    metadata.no_misspelt("name", "namespace", "labels", "annotations", also=("generateName",))
    name = check_kubernetes_name(metadata.text("name"), metadata.at("name").place)
    namespace = check_namespace(metadata.text("namespace", "default"), metadata.at("namespace").place)
    root = Field.of(document, f"{kind} {namespace}/{name}")
    root.no_misspelt("apiVersion", "kind", "metadata", "spec", "status")
    return Named(kind, namespace, name, root)


def parse_deployment(named: Named) -> Deployment:
    """Return the pod that a Deployment declares. Raise InputError with the place of a wrong field."""
    _refuse_misplaced_annotations(named.root.mapping("metadata"))
    spec = named.root.mapping("spec", required=True)
    spec.no_misspelt(*_DEPLOYMENT_FIELDS)
    replicas = spec.at("replicas")
    if replicas.value not in (None, 1) or isinstance(replicas.value, bool):
        replicas.refuse(
            "replicas", "the local mesh runs one pod per workload", "write replicas: 1 or remove it"
        )
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
                "misplaced-annotation",
                "the annotation does nothing here",
                "move it to spec.template.metadata.annotations",
            )


def _check_selector(spec: Field, labels: Mapping[str, str]) -> None:
    selector = spec.mapping("selector")
    selector.only("matchLabels", "matchExpressions")
    if not matches(selector.strings("matchLabels"), labels):
        selector.refuse(
            "selector-mismatch",
            "does not match the labels of the template",
            "write the same labels in both places",
        )


def _parse_pod_annotations(metadata: Field, named: Named) -> PodAnnotations:
    try:
        return parse_annotations(metadata.strings("annotations"))
    except InputError as error:
        if not error.place.annotation:
            raise
        annotation = metadata.at("annotations").at(error.place.annotation)
        # The text of an annotation may be YAML, which has lines of its own.
        within = error.place.text_line
        spot = replace(annotation.document.place_of(annotation.path, within), object=named.root.owner)
        inner = error.place.within(spot)
        if annotation.path in annotation.document.blocks:
            inner = replace(inner, text_line=0)
        raise InputError(error.what, where=inner, remedy=error.remedy, code=error.code) from error


def _refuse_uninjected(metadata: Field, labels: Mapping[str, str], annotations: PodAnnotations) -> None:
    label = labels.get(INJECT)
    place = metadata.at("labels").at(INJECT)
    inject = annotations.inject if label is None else parse_boolean(label, place.place)
    if inject is False:
        where = place if label is not None else metadata.at("annotations").at(INJECT)
        where.refuse(
            "not-in-mesh",
            "a workload without a sidecar is not part of the mesh",
            f"remove {INJECT} or the whole workload",
        )


def _containers(pod: Field, annotations: PodAnnotations, annotations_field: Field) -> tuple[Container, ...]:
    items = [item for item in pod.items("containers") if item.text("name") != PROXY_CONTAINER]
    names = [item.text("name") for item in items]
    for item in items:
        if names.count(item.text("name")) > 1:
            item.at("name").refuse(
                "container-twice", "two containers have this name", "give each container its own name"
            )
    commands = _commands(names, annotations, annotations_field)
    ports: set[int] = set()
    return tuple(_container(item, commands, ports) for item in items)


def _commands(names: list[str], annotations: PodAnnotations, place: Field) -> dict[str, str]:
    commands = dict(annotations.local_commands)
    only = commands.pop("", None)
    for name in commands:
        if name not in names:
            place.at(f"{LOCAL_COMMAND}.{name}").refuse(
                "no-container",
                f"no container is called {shorten(name)}",
                f"containers are {', '.join(names) or 'none'}",
            )
    if only is None:
        return commands
    if len(names) != 1 or commands:
        place.at(LOCAL_COMMAND).refuse(
            "which-container",
            f"the pod has {len(names)} containers",
            f"write {LOCAL_COMMAND}.CONTAINER for each",
        )
    return {names[0]: only}


def _container(item: Field, commands: Mapping[str, str], taken: set[int]) -> Container:
    """Return one container. Add its ports to `taken`, the ports of the pod's other containers."""
    item.no_misspelt(*_CONTAINER_FIELDS, also=_CONTAINER_ALSO)
    name = item.text("name")
    reading = Reading.of(item.value)
    declared = container_ports(reading)
    refuse_faults(item, reading.faults)
    ports = []
    for port in declared:
        if not port.tcp:
            continue
        place = item.below(port.path).at("containerPort")
        refuse_reserved(port.number, place.place)
        if port.number in taken:
            place.refuse(
                "port-twice",
                f"port {port.number} is declared twice",
                "use another port: the containers of a pod share one network",
            )
        taken.add(port.number)
        ports.append(ContainerPortSpec(port.name, port.number))
    env = tuple((variable, value) for variable, (value, _) in _env(item).items())
    return Container(name, commands.get(name), env, tuple(ports))


def _env(container: Field) -> dict[str, tuple[str, Field]]:
    reading = Reading.of(container.value)
    variables = env_variables(reading)
    refuse_faults(container, reading.faults)
    env: dict[str, tuple[str, Field]] = {}
    for variable in variables:
        item = container.below(variable.path)
        if variable.value is None:
            item.at("valueFrom").refuse(
                "value-from", "the local mesh cannot read values from other objects", "write the value itself"
            )
        if "=" in variable.name or "\0" in variable.name:
            item.at("name").refuse(
                "not-a-variable", f"{shorten(variable.name)} cannot name a variable", "remove the '=' from it"
            )
        env[variable.name] = (variable.value, item)
    return env


def _proxy_env(pod: Field) -> dict[str, tuple[str, Field]]:
    """Return the variables of the template's own container istio-proxy, which may be an init container."""
    env: dict[str, tuple[str, Field]] = {}
    for item in (*pod.items("containers"), *pod.items("initContainers")):
        if item.text("name") == PROXY_CONTAINER:
            env |= _env(item)
    return env


def parse_service(named: Named) -> DeclaredService:
    """Return a Service. Raises InputError with the place of the field that is wrong."""
    named.root.mapping("spec", required=True).no_misspelt("selector", "ports", "type")
    view = views.service(named.root.document.data)
    refuse_faults(named.root, view.faults)
    return DeclaredService(named, view)
