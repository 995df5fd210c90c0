"""Read control planes: revisions, tags, versions and mesh configuration, as far as the dump has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.istio.names import (
    ASM_GROUP,
    ISTIO_INSTALL,
    PROXY_CONTAINER,
    REVISION,
    ROOT_NAMESPACE,
    TOLD_VERSION,
)
from meshscrape.istio.proxy_config import proxy_metadata
from meshscrape.istio.versions import UNKNOWN, IstioVersion, image_version, parse_version
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Manifest
from meshscrape.kube.views.pod import env_of
from meshscrape.observe.cluster import TAG_LABEL, Cluster
from meshscrape.observe.injection_template import SIDECAR, TEMPLATE, InjectionTemplate, read_template
from meshscrape.observe.model import ControlPlane, Flavour, MeshSettings

DEFAULT = "default"
_INJECTOR = "istio-sidecar-injector"
_WEBHOOKS = (_INJECTOR, "istio-revision-tag")
_STOCK_TEMPLATES = frozenset(
    {
        "sidecar",
        "gateway",
        "grpc-simple",
        "grpc-agent",
        "waypoint",
        "kube-gateway",
        "agentgateway",
        "agentgateway-waypoint",
    }
)
_ALIYUN_IMAGE = re.compile(r"aliyuncs\.com/.*proxyv2")


@dataclass(frozen=True, slots=True)
class Control:
    """The control planes, and which revision each name (revision or tag) stands for.

    `webhooks_seen` tells whether the dump has any webhook of a control plane. `names` are revisions and
    tags that some webhook serves. `given` is `--istio-version`.
    """

    planes: tuple[ControlPlane, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    webhooks_seen: bool = False
    flavour: Flavour = "istio"
    given: IstioVersion = UNKNOWN

    def plane(self, name: str) -> ControlPlane | None:
        """Return the control plane of a revision or tag; if the name is unknown, the only one there is."""
        revision = self.names.get(name, name)
        for plane in self.planes:
            if plane.revision == revision:
                return plane
        if len(self.planes) == 1 and name in ("", DEFAULT):
            return self.planes[0]
        return None

    @property
    def mesh(self) -> MeshSettings:
        """Return the settings of the default revision, or of the first, or Istio's defaults."""
        plane = self.plane(DEFAULT) or next(iter(self.planes), None)
        return plane.mesh if plane else MeshSettings()

    def version_of(self, revision: str) -> IstioVersion:
        """Return the version that a proxy of this revision gets when its pod is recreated."""
        plane = self.plane(revision)
        if plane is not None and plane.version.known:
            return plane.version
        return self.given


def read_control(cluster: Cluster, given: IstioVersion, *, upgraded: bool = False) -> Control:
    """Return the control planes of a cluster; `given` (--istio-version) fills in versions that nothing tells.

    `upgraded`: all of them have the given version, whatever the objects tell.
    """
    flavour = _flavour(cluster)
    names, webhooks = _names(cluster)
    parts_of: dict[str, dict[str, Manifest]] = {}
    for role, revision, manifest in _parts(cluster.inventory):
        parts_of.setdefault(revision, {}).setdefault(role, manifest)
    for revision in names.values():
        parts_of.setdefault(revision, {})
    planes = [_plane(revision, parts, names, flavour, given) for revision, parts in sorted(parts_of.items())]
    if not planes and given.known:
        planes = [
            ControlPlane(DEFAULT, given, (), ROOT_NAMESPACE, False, flavour, version_source="--istio-version")
        ]
    if upgraded:
        planes = [replace(plane, version=given, version_source="--istio-version") for plane in planes]
    return Control(tuple(planes), names, webhooks, flavour, given)


def injector_of(inventory: Inventory, revision: str) -> Manifest | None:
    """Return the ConfigMap with the settings of a revision's injector; None if it is not in the dump."""
    parts = _parts(inventory)
    return next((manifest for role, of, manifest in parts if role == "injector" and of == revision), None)


def istiods_of_unknown_version(inventory: Inventory) -> list[Manifest]:
    """Return the istiod Deployments whose version neither they nor their injector's ConfigMap tell."""
    parts_of: dict[str, dict[str, Manifest]] = {}
    for role, revision, manifest in _parts(inventory):
        parts_of.setdefault(revision, {}).setdefault(role, manifest)
    return [
        istiod
        for parts in parts_of.values()
        if (istiod := parts.get("istiod")) and not _version(istiod, parts.get("injector"))[0].known
    ]


def _parts(inventory: Inventory) -> Iterator[tuple[str, str, Manifest]]:
    for deployment in inventory.of_kind("Deployment"):
        if is_istiod(deployment):
            labels = objects.labels(deployment.data)
            yield (
                "istiod",
                labels.get(REVISION) or _revision_of_name(deployment.ref.name, "istiod"),
                deployment,
            )
    for config_map in inventory.of_kind("ConfigMap", ""):
        data = objects.as_mapping(config_map.data.get("data"))
        name = config_map.ref.name
        labels = objects.labels(config_map.data)
        if "mesh" in data and (name == "istio" or name.startswith("istio-")):
            yield "mesh", labels.get(REVISION) or _revision_of_name(name, "istio"), config_map
        elif name.startswith(_INJECTOR) and "values" in data:
            yield "injector", labels.get(REVISION) or _revision_of_name(name, _INJECTOR), config_map
    for operator in inventory.of_kind("IstioOperator", ISTIO_INSTALL):
        yield "operator", str(objects.dig(operator.data, "spec", "revision", default=DEFAULT)), operator


def _revision_of_name(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).removeprefix("-") or DEFAULT


def is_istiod(manifest: Manifest) -> bool:
    """Return whether a Deployment is Istio's control plane."""
    template = objects.pod_template(manifest.data)
    if objects.dig(template, "metadata", "labels", "app") == "istiod":
        return True
    return any(
        container.get("name") == "discovery" and "pilot" in str(container.get("image", ""))
        for container in objects.containers(template)
    )


def _names(cluster: Cluster) -> tuple[dict[str, str], bool]:
    """Return the revisions and tags that have a webhook, and whether the dump has any webhook."""
    names: dict[str, str] = {}
    webhooks = False
    for hook in cluster.inventory.of_kind("MutatingWebhookConfiguration"):
        labels = objects.labels(hook.data)
        if REVISION not in labels and not hook.ref.name.startswith(_WEBHOOKS):
            continue
        webhooks = True
        revision = labels.get(REVISION) or DEFAULT
        names.setdefault(revision, revision)
        if tag := labels.get(TAG_LABEL):
            names[tag] = revision
    for service in cluster.inventory.of_kind("Service", ""):
        labels = objects.labels(service.data)
        if TAG_LABEL in labels and REVISION in labels:
            names[labels[TAG_LABEL]] = labels[REVISION]
    if DEFAULT not in names:
        for hook in cluster.inventory.of_kind("ValidatingWebhookConfiguration"):
            default = objects.labels(hook.data).get(REVISION, "")
            if hook.ref.name == "istiod-default-validator" and default in names:
                names[DEFAULT] = default
    return names, webhooks


def _plane(
    revision: str,
    parts: Mapping[str, Manifest],
    names: Mapping[str, str],
    flavour: Flavour,
    given: IstioVersion,
) -> ControlPlane:
    istiod, injector, operator = parts.get("istiod"), parts.get("injector"), parts.get("operator")
    version, source = _version(istiod, injector)
    if not version.known and operator is not None:
        tag = objects.dig(operator.data, "spec", "tag", default="")
        version, source = parse_version(str(tag)), f"{operator.ref}: spec.tag"
    if not version.known and given.known:
        version, source = given, "--istio-version"
    some = istiod or injector or parts.get("mesh") or operator
    env = _istiod_env(istiod)
    values = _values(injector) or _operator_part(operator, "values")
    mesh = _mesh(parts.get("mesh"), operator, some)
    excluded = objects.dig(values, "global", "proxy", "excludeInboundPorts", default="")
    injection = (
        yaml_mapping(str(objects.dig(injector.data, "data", "config", default=""))) if injector else {}
    )
    template = read_template(str(objects.dig(injection, "templates", TEMPLATE, default="")))
    return ControlPlane(
        revision=revision,
        version=version,
        tags=tuple(sorted(tag for tag, of in names.items() if of == revision and tag != revision)),
        namespace=some.ref.namespace if some else ROOT_NAMESPACE,
        external=istiod is None,
        flavour=flavour,
        mesh=replace(mesh, exclude_inbound_ports=split_ports(str(excluded))),
        version_source=source,
        native_sidecars=_native_sidecars(env),
        env=env,
        custom_templates=_custom_templates(injection, template),
        default_templates=tuple(map(str, objects.as_list(injection.get("defaultTemplates")))) or (SIDECAR,),
        override_template=template,
    )


def _version(istiod: Manifest | None, injector: Manifest | None) -> tuple[IstioVersion, str]:
    tag = objects.dig(_values(injector), "global", "tag", default="")
    if injector is not None and (version := parse_version(str(tag))).known:
        return version, f"{injector.ref}: values.global.tag"
    if istiod is not None:
        for container in objects.containers(objects.pod_template(istiod.data)):
            if container.get("name") == "discovery":
                version = image_version(str(container.get("image", "")))
                if version.known:
                    return version, f"{istiod.ref}: image"
        told = parse_version(objects.annotations(istiod.data).get(TOLD_VERSION, ""))
        if told.known:
            return told, f"{istiod.ref}: /version"
    return UNKNOWN, ""


def _values(injector: Manifest | None) -> Mapping[str, Any]:
    text = objects.dig(injector.data, "data", "values", default="{}") if injector else "{}"
    try:
        return objects.as_mapping(json.loads(text))
    except (ValueError, TypeError):
        return {}


def _custom_templates(injection: Mapping[str, Any], own: InjectionTemplate | None) -> tuple[str, ...]:
    known = _STOCK_TEMPLATES | ({TEMPLATE} if own else set())
    templates = objects.as_mapping(injection.get("templates"))
    return tuple(sorted(str(name) for name in templates if name not in known))


def _istiod_env(istiod: Manifest | None) -> dict[str, str]:
    for container in objects.containers(objects.pod_template(istiod.data)) if istiod else ():
        if container.get("name") == "discovery":
            return env_of(container)
    return {}


def _native_sidecars(env: Mapping[str, str]) -> bool | None:
    value = env.get("ENABLE_NATIVE_SIDECARS")
    return {"true": True, "false": False}.get(value) if value else None


def _operator_part(operator: Manifest | None, field: str) -> Mapping[str, Any]:
    """Return `meshConfig` or `values` of an IstioOperator. Objects in the cluster take precedence over it."""
    return objects.as_mapping(objects.dig(operator.data, "spec", field)) if operator else {}


def _mesh(config_map: Manifest | None, operator: Manifest | None, some: Manifest | None) -> MeshSettings:
    root = some.ref.namespace if some else ROOT_NAMESPACE
    mesh = _operator_part(operator, "meshConfig")
    if config_map is not None:
        mesh = yaml_mapping(str(objects.dig(config_map.data, "data", "mesh", default="")))
    elif not mesh:
        return MeshSettings(root_namespace=root)
    default_config = objects.as_mapping(mesh.get("defaultConfig"))
    return MeshSettings(
        trust_domain=str(mesh.get("trustDomain") or "cluster.local"),
        trust_domain_aliases=tuple(map(str, objects.as_list(mesh.get("trustDomainAliases")))),
        root_namespace=str(mesh.get("rootNamespace") or root),
        default_config=default_config,
        default_metadata=proxy_metadata(default_config),
        prometheus_merge=mesh.get("enablePrometheusMerge") is not False,
        ca_certificates=bool(objects.as_list(mesh.get("caCertificates"))),
        found=True,
    )


def yaml_mapping(text: str) -> Mapping[str, Any]:
    """Return the mapping in a YAML text within an object; empty when it cannot be read."""
    try:
        documents = load_documents(text, "")
    except InputError:
        return {}
    return documents[0].data if len(documents) == 1 else {}


def split_ports(text: str) -> tuple[str, ...]:
    """Return the entries of a comma-separated list."""
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _flavour(cluster: Cluster) -> Flavour:
    """Return `asm` if the dump has something that only Alibaba Cloud's ASM has, else `istio`."""
    inventory = cluster.inventory
    if any(manifest.ref.group == ASM_GROUP for manifest in inventory):
        return "asm"
    for definition in inventory.of_kind("CustomResourceDefinition"):
        if definition.ref.name.endswith(f".{ASM_GROUP}"):
            return "asm"
    for kind in ("Deployment", "StatefulSet", "DaemonSet", "Pod"):
        for manifest in inventory.of_kind(kind):
            template = objects.pod_template(manifest.data)
            if any(is_asm_container(container) for container in objects.containers(template)):
                return "asm"
    return "istio"


def is_asm_container(container: Mapping[str, Any]) -> bool:
    """Return whether an istio-proxy container is ASM's, by its image or environment."""
    if container.get("name") != PROXY_CONTAINER:
        return False
    image = str(container.get("image", ""))
    if image_version(image).vendor == "aliyun" or _ALIYUN_IMAGE.search(image):
        return True
    return any(
        objects.dig(variable, "name") in ("ASM_ID", "ASM_APP_VERSION")
        for variable in objects.as_list(container.get("env"))
    )
