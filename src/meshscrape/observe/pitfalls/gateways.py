"""Pitfalls of gateways that a controller renders, and of ports that gateways expose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshscrape.istio import ports
from meshscrape.istio.names import (
    ASM_GROUP,
    ENVOY_SECURE_MERGED_METRICS_PORT,
    ENVOY_SECURE_METRICS_PORT,
    ISTIO_BOOTSTRAP_OVERRIDE,
    METRICS_LOCALHOST_ACCESS_ONLY,
    PROXY_CONFIG_ANNOTATION,
    REVISION,
)
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.proxy import annotation_metadata
from meshscrape.observe import gateways
from meshscrape.observe.cluster import GATEWAY_GROUP
from meshscrape.observe.control import yaml_mapping
from meshscrape.observe.model import Pitfall
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.workload import ObservedWorkload

# Istio reads these from the Gateway itself, even if it has infrastructure annotations.
_OWN = (
    "kubectl.kubernetes.io/",
    "gateway.istio.io/",
    "networking.istio.io/",
    "sidecar.istio.io/",
    GATEWAY_GROUP,
)
_SETTINGS = (
    ENVOY_SECURE_MERGED_METRICS_PORT,
    ENVOY_SECURE_METRICS_PORT,
    METRICS_LOCALHOST_ACCESS_ONLY,
    ISTIO_BOOTSTRAP_OVERRIDE,
)
_PLAINTEXT = (ports.MERGED, ports.STATS)


def gateway_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of gateways."""
    for gateway in facts.cluster.inventory.of_kind("Gateway", GATEWAY_GROUP):
        name = str(objects.dig(gateway.data, "spec", "gatewayClassName", default=""))
        kind = gateways.class_kind(name, facts.cluster.inventory)
        if kind == gateways.AGENTGATEWAY:
            yield _agentgateway(gateway, name)
        elif kind:
            yield from _annotations(gateway)
            yield from _parameters(gateway, facts)
    for workload in facts.workloads:
        if workload.gateway_ref is not None and workload.manifest is not None:
            yield from _patched(workload)
    for service in facts.cluster.inventory.of_kind("Service", ""):
        yield from _exposed(service.ref, service, "spec", "ports")
    for gateway in facts.cluster.inventory.of_kind("IstioGateway", ASM_GROUP):
        yield from _exposed(gateway.ref, gateway, "spec", "ports")


def _agentgateway(gateway: Manifest, name: str) -> Pitfall:
    return Pitfall(
        "agentgateway",
        "info",
        gateway.ref,
        f"The class {name} runs agentgateway, which has no Envoy: nothing here applies to it.",
        "Nothing to do: meshscrape plans nothing for it.",
    )


def _annotations(gateway: Manifest) -> Iterator[Pitfall]:
    own = objects.annotations(gateway.data)
    infrastructure = objects.dig(gateway.data, "spec", "infrastructure", "annotations")
    effective = gateways.gateway_annotations(gateway)
    metadata = annotation_metadata(effective)
    useless = [
        name
        for name in (ENVOY_SECURE_MERGED_METRICS_PORT, ENVOY_SECURE_METRICS_PORT, ISTIO_BOOTSTRAP_OVERRIDE)
        if name in metadata
    ]
    if useless:
        place = "infrastructure.annotations" if isinstance(infrastructure, Mapping) else "the Gateway"
        yield Pitfall(
            "gateway-infrastructure-proxy-config",
            "error",
            gateway.ref,
            f"{PROXY_CONFIG_ANNOTATION} in {place} sets {', '.join(useless)}, but on a Gateway API "
            "gateway it does not become the container's environment, from which the agent reads them: no "
            "secure port opens.",
            "Use infrastructure.parametersRef: a ConfigMap whose key deployment adds env and annotations.",
        )
    if not isinstance(infrastructure, Mapping):
        return
    lost = [name for name in own if not name.startswith(_OWN) and name not in infrastructure]
    if lost:
        yield Pitfall(
            "gateway-annotations-dropped",
            "warning",
            gateway.ref,
            f"infrastructure.annotations is set, so Istio no longer copies the Gateway's own annotations to "
            f"its Service and pods: {', '.join(sorted(lost))}. Settings of the load balancer are lost.",
            "Repeat them in infrastructure.annotations, or drop that field and use parametersRef.",
        )


def _parameters(gateway: Manifest, facts: Facts) -> Iterator[Pitfall]:
    reference = objects.dig(gateway.data, "spec", "infrastructure", "parametersRef")
    if reference is None:
        return
    plane = facts.control.plane(objects.labels(gateway.data).get(REVISION, ""))
    if plane is not None and plane.version.at_least("1.26") is False:
        yield Pitfall(
            "gateway-parameters-unsupported",
            "error",
            gateway.ref,
            f"infrastructure.parametersRef needs istiod 1.26; this is {plane.version}.",
            "Use a ProxyConfig object that selects gateway.networking.k8s.io/gateway-name, or upgrade.",
        )
    ref = gateways.parameters_of(gateway)
    config_map = facts.cluster.inventory.get(ref) if ref else None
    if config_map is None:
        yield Pitfall(
            "gateway-parameters-missing",
            "error",
            gateway.ref,
            f"infrastructure.parametersRef leads to no ConfigMap among these objects ({ref or 'no such'}). "
            "If it is missing in the cluster too, istiod renders nothing for this Gateway any more.",
            'Create the ConfigMap, or correct the reference (group "", kind ConfigMap).',
        )
        return
    data = objects.as_mapping(config_map.data.get("data"))
    wrong = [key for key in data if key not in gateways.OVERLAY_KEYS]
    wrong += [key for key, text in data.items() if key not in wrong and not yaml_mapping(str(text))]
    if wrong:
        yield Pitfall(
            "gateway-parameters-unusable",
            "error",
            gateway.ref,
            f"{config_map.ref} has {', '.join(sorted(wrong))}, which istiod does not know or cannot read: it "
            "renders nothing for this Gateway any more.",
            f"Keys are {', '.join(gateways.OVERLAY_KEYS)}, each a YAML patch.",
        )


def _patched(workload: ObservedWorkload) -> Iterator[Pitfall]:
    """Report settings of a rendered Deployment that do not come from its Gateway."""
    if workload.manifest is None or workload.manifest.ref == workload.gateway_ref or workload.proxy is None:
        return
    foreign = [
        name
        for name in _SETTINGS
        if name in workload.proxy.env and workload.proxy.env[name] != workload.env.get(name)
    ]
    if not foreign:
        return
    asm = workload.kind == "asm-gateway"
    yield Pitfall(
        "managed-deployment-patched",
        "warning",
        workload.ref,
        f"{', '.join(foreign)} is in the Deployment, but {workload.gateway_ref} does not set it: the "
        "controller owns the Deployment and removes it.",
        "Use spec.env of the IstioGateway." if asm else "Use infrastructure.parametersRef of the Gateway.",
    )


def _exposed(ref: Ref, manifest: Manifest, *path: str) -> Iterator[Pitfall]:
    kind = objects.dig(manifest.data, "spec", "serviceType" if ref.kind == "IstioGateway" else "type")
    if kind not in ("LoadBalancer", "NodePort") and not (ref.kind == "IstioGateway" and kind is None):
        return
    for port in objects.as_list(objects.dig(manifest.data, *path)):
        target = objects.dig(port, "targetPort", default=objects.dig(port, "port"))
        number = target if isinstance(target, int) else objects.dig(port, "port")
        if number in _PLAINTEXT:
            yield Pitfall(
                "metrics-port-exposed",
                "warning",
                ref,
                f"The load balancer or node port leads to {number}: every client that reaches it reads the "
                "gateway's metrics without any authentication.",
                f"Remove port {number} from the Service.",
            )
