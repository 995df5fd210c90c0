"""Tell the kinds of workloads apart, and workloads from parts of Istio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.proxy import Proxy, is_injected, proxy_of, uses_gateway_template
from meshscrape.observe import gateways
from meshscrape.observe.control import is_asm_container, is_istiod
from meshscrape.observe.model import Flavour, Injection, Kind

DATAPLANE_MODE = "istio.io/dataplane-mode"


def owned_by_controller(manifest: Manifest) -> bool:
    """Return whether an operator or istiod made the object, not a controller of Kubernetes itself."""
    owner = next(
        (
            reference
            for reference in objects.as_list(objects.dig(manifest.data, "metadata", "ownerReferences"))
        ),
        None,
    )
    return objects.dig(owner, "kind") not in ("Deployment", "CronJob", "StatefulSet", "DaemonSet", "Rollout")


def is_infrastructure(manifest: Manifest | None, template: Mapping[str, Any]) -> bool:
    """Return whether it is a part of Istio, not a workload: istiod, ztunnel, the CNI agent, agentgateway."""
    if manifest is not None and is_istiod(manifest):
        return True
    if objects.labels(template).get("app") in ("ztunnel", "istiod") or is_agentgateway(template):
        return True
    return objects.labels(template).get("k8s-app") == "istio-cni-node"


def is_agentgateway(template: Any) -> bool:
    """Return whether a managed gateway runs agentgateway, which has no Envoy."""
    proxy = proxy_of(template)
    return proxy is not None and gateways.AGENTGATEWAY in proxy.image.rpartition("/")[2]


def kind_of(
    manifest: Manifest | None,
    template: Mapping[str, Any],
    proxy: Proxy | None,
    injection: Injection,
    gateway_ref: Ref | None,
    space: Mapping[str, str],
) -> Kind:
    """Return the kind of workload, from its labels, its proxy's role and its owner."""
    labels, annotations = objects.labels(template), objects.annotations(template)
    role = proxy.role if proxy else ""
    if gateway_ref is not None and gateway_ref.kind == "IstioGateway":
        return "asm-gateway"
    managed = {**(objects.labels(manifest.data) if manifest else {}), **labels}.get(gateways.MANAGED, "")
    if managed or gateway_ref is not None:
        return "waypoint" if role == "waypoint" or "mesh-controller" in managed else "gateway-api"
    if role == "router" and proxy is not None and proxy.complete and not is_injected(annotations):
        return "gateway-classic"
    if role == "router" or (injection.injected and uses_gateway_template(annotations)):
        return "gateway-injected"
    if injection.injected:
        return "sidecar"
    if is_ambient(space, labels):
        return "ambient"
    return "uninjected"


def is_ambient(namespace_labels: Mapping[str, str], pod_labels: Mapping[str, str]) -> bool:
    """Return whether ztunnel carries the traffic of a pod without a sidecar; the pod's label wins."""
    return pod_labels.get(DATAPLANE_MODE, namespace_labels.get(DATAPLANE_MODE)) == "ambient"


def service_account(template: Any) -> str:
    """Return the ServiceAccount of a pod template."""
    spec = objects.dig(template, "spec")
    return str(objects.dig(spec, "serviceAccountName") or objects.dig(spec, "serviceAccount") or "default")


def flavour_of(template: Any, flavour: Flavour) -> Flavour:
    """Return `asm` when the proxy is ASM's, else the cluster's flavour."""
    return (
        "asm" if any(is_asm_container(container) for container in objects.containers(template)) else flavour
    )
