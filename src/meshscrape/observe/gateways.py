"""Read gateways that a controller renders: the Gateway API's, and ASM's IstioGateway.

istiod renders a Deployment from the mesh's defaults, ProxyConfig objects, and the overlays of
`infrastructure.parametersRef` and of the class's defaults (`deploymentcontroller.go`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.istio.names import ASM_GROUP, PROXY_CONTAINER
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Manifest, Ref, oldest
from meshscrape.kube.views.pod import env_of
from meshscrape.observe.cluster import GATEWAY_GROUP, Cluster, owners
from meshscrape.observe.control import yaml_mapping

MANAGED = "gateway.istio.io/managed"
GATEWAY_NAME = f"{GATEWAY_GROUP}/gateway-name"
OLD_GATEWAY_NAME = "istio.io/gateway-name"
CLASS_DEFAULTS = "gateway.istio.io/defaults-for-class"
OVERLAY_KEYS = ("deployment", "service", "serviceAccount", "horizontalPodAutoscaler", "podDisruptionBudget")
_CLASSES = {"istio": "gateway-api", "istio-waypoint": "waypoint", "istio-east-west": "gateway-api"}
_CONTROLLERS = {
    "istio.io/gateway-controller": "gateway-api",
    "istio.io/mesh-controller": "waypoint",
    "istio.io/eastwest-controller": "gateway-api",
}
AGENTGATEWAY = "agentgateway"


@dataclass(frozen=True, slots=True)
class Overlay:
    """The environment and annotations that overlays add to the proxy of a managed gateway."""

    env: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    deployment: Mapping[str, Any] = field(default_factory=dict)


def class_kind(name: str, inventory: Inventory) -> str:
    """Return `gateway-api` or `waypoint` for Istio's managed classes, `agentgateway`, or empty text."""
    if AGENTGATEWAY in name:
        return AGENTGATEWAY
    if name in _CLASSES:
        return _CLASSES[name]
    gateway_class = inventory.get(Ref(GATEWAY_GROUP, "GatewayClass", "", name))
    return (
        _CONTROLLERS.get(str(objects.dig(gateway_class.data, "spec", "controllerName")), "")
        if gateway_class
        else ""
    )


def is_managed(gateway: Manifest) -> bool:
    """Return whether istiod makes a Deployment for a Gateway; it does not if the Gateway names a Service."""
    addresses = objects.as_list(objects.dig(gateway.data, "spec", "addresses"))
    hostname = any(objects.dig(address, "type") == "Hostname" for address in addresses)
    return not hostname and len(addresses) <= 1


def gateway_of(manifest: Manifest, template: Any) -> Ref | None:
    """Return the Gateway that a Deployment was made for, by owner, or by the label of its pods."""
    for owner in owners(manifest):
        if owner.kind == "Gateway" and owner.group == GATEWAY_GROUP:
            return owner
    labels = objects.labels(template)
    name = labels.get(GATEWAY_NAME) or labels.get(OLD_GATEWAY_NAME)
    if name and MANAGED in {**objects.labels(manifest.data), **labels}:
        return Ref(GATEWAY_GROUP, "Gateway", manifest.ref.namespace, name)
    return None


def managed_deployment(gateway: Manifest) -> Ref:
    """Return the Deployment that istiod makes for a Gateway."""
    name = objects.annotations(gateway.data).get("gateway.istio.io/name-override")
    gateway_class = str(objects.dig(gateway.data, "spec", "gatewayClassName", default=""))
    if not name:
        plain = gateway_class in ("istio-waypoint", "istio-east-west")
        name = gateway.ref.name if plain else f"{gateway.ref.name}-{gateway_class}"
    return Ref("apps", "Deployment", gateway.ref.namespace, name)


def parameters_of(gateway: Manifest) -> Ref | None:
    """Return the ConfigMap of `infrastructure.parametersRef`, or None if there is none or another kind."""
    reference = objects.dig(gateway.data, "spec", "infrastructure", "parametersRef")
    if objects.dig(reference, "kind") != "ConfigMap" or objects.dig(reference, "group", default="") != "":
        return None
    return Ref("", "ConfigMap", gateway.ref.namespace, str(objects.dig(reference, "name", default="")))


def overlay_of(gateway: Manifest, cluster: Cluster, root_namespace: str) -> Overlay:
    """Return the overlays of a Gateway: its class's defaults, then its own parameters."""
    gateway_class = str(objects.dig(gateway.data, "spec", "gatewayClassName", default=""))
    defaults = oldest(
        manifest
        for manifest in cluster.inventory.in_namespace(root_namespace, "ConfigMap")
        if objects.labels(manifest.data).get(CLASS_DEFAULTS) == gateway_class
    )
    own = parameters_of(gateway)
    env: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deployment: Mapping[str, Any] = {}
    for config_map in (defaults, cluster.inventory.get(own) if own else None):
        if config_map is None:
            continue
        deployment = yaml_mapping(str(objects.dig(config_map.data, "data", "deployment", default="")))
        template = objects.dig(deployment, "spec", "template")
        annotations |= objects.annotations(template)
        for container in objects.containers(template):
            if container.get("name") == PROXY_CONTAINER:
                env |= env_of(container)
    return Overlay(env, annotations, deployment)


def gateway_annotations(gateway: Manifest) -> Mapping[str, str]:
    """Return the annotations that a Gateway gives to its pods: its infrastructure's, else its own."""
    infrastructure = objects.dig(gateway.data, "spec", "infrastructure", "annotations")
    if isinstance(infrastructure, Mapping):
        return infrastructure
    return objects.annotations(gateway.data)


def istio_gateway_of(manifest: Manifest, inventory: Inventory) -> Ref | None:
    """Return ASM's IstioGateway of a Deployment `istio-NAME`: only the name connects the two."""
    for owner in owners(manifest):
        if owner.kind == "IstioGateway":
            return owner
    name = manifest.ref.name.removeprefix("istio-")
    if name == manifest.ref.name:
        return None
    ref = Ref(ASM_GROUP, "IstioGateway", manifest.ref.namespace, name)
    return ref if ref in inventory else None


def istio_gateway_env(gateway: Manifest) -> dict[str, str]:
    """Return the variables that an IstioGateway gives to its proxies."""
    return env_of({"env": objects.dig(gateway.data, "spec", "env")})


def istio_gateway_volumes(gateway: Manifest) -> dict[str, Any]:
    """Return the pod template that an IstioGateway's configVolumes add to its Deployment."""
    volumes = objects.as_list(objects.dig(gateway.data, "spec", "configVolumes"))
    mounts = [
        {"name": objects.dig(volume, "name"), "mountPath": objects.dig(volume, "mountPath")}
        for volume in volumes
    ]
    return {
        "spec": {
            "volumes": [
                {
                    "name": objects.dig(volume, "name"),
                    "configMap": {"name": objects.dig(volume, "configMapName")},
                }
                for volume in volumes
            ],
            "containers": [{"name": PROXY_CONTAINER, "volumeMounts": mounts}],
        }
    }
