"""Compute the targets that Prometheus's Kubernetes discovery makes of a pod, with their labels.

After `discovery/kubernetes/pod.go` and `endpoints.go`: one target per declared port of every container
(init containers too), one without a port for a container that declares none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.host_port import host_port
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.kube.views.pod import declared_ports
from meshscrape.kube.views.service import service as view_of
from meshscrape.observe.cluster import owners
from meshscrape.observe.workload import ResolvedWorkload

META = "__meta_kubernetes_"
_INVALID = re.compile(r"[^A-Za-z0-9_]")
_EXAMPLE_IP = "192.0.2.1"
_EXAMPLE_HASH = "5d8f6c7b9"
# Annotations by which jobs select pods, and labels that differ from pod to pod.
_SELECTING = re.compile(r"^prometheus|istio\.io/")
_OF_ONE_POD = (
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
)
_PROXY: Mapping[str, Any] = {
    "name": names.PROXY_CONTAINER,
    "ports": [{"containerPort": 15090, "name": names.ENVOY_STATS_PORT_NAME, "protocol": "TCP"}],
}
_MANAGED_PORTS = ((15020, "metrics"), (15021, "status-port"), (15090, names.ENVOY_STATS_PORT_NAME))

Labels = dict[str, str]


def sanitised(name: str) -> str:
    """Return the name of a label or annotation as Prometheus spells it within a meta label."""
    return _INVALID.sub("_", name)


def shapes(workload: ResolvedWorkload, prometheus_merge: bool) -> list[Manifest]:
    """Return one pod for each distinct shape of a workload's pods; without pods, the predicted one."""
    if not workload.pods:
        return [predicted(workload, prometheus_merge)]
    different: dict[tuple[Any, ...], Manifest] = {}
    for pod in workload.pods:
        # Jobs select by labels and by these annotations. Other annotations, such as an address, differ in
        # every pod.
        annotations = tuple(
            sorted(item for item in objects.annotations(pod.data).items() if _SELECTING.search(item[0]))
        )
        labels = tuple(
            sorted(item for item in objects.labels(pod.data).items() if item[0] not in _OF_ONE_POD)
        )
        phase = str(objects.dig(pod.data, "status", "phase"))
        different.setdefault((labels, annotations, phase, len(list(objects.containers(pod.data)))), pod)
    return list(different.values())


def predicted(workload: ResolvedWorkload, prometheus_merge: bool) -> Manifest:
    """Return a pod of the workload as it would be made now: the template with the injector's additions."""
    annotations = {key: str(value) for key, value in workload.annotations.items()}
    labels = dict(workload.labels)
    spec = dict(objects.as_mapping(workload.template.get("spec")))
    if workload.in_mesh and (workload.proxy is None or not workload.proxy.complete):
        others = [
            container
            for container in objects.as_list(spec.get("containers"))
            if objects.dig(container, "name") != names.PROXY_CONTAINER
        ]
        proxy = _managed_proxy() if workload.gateway_ref else _PROXY
        proxy = {**proxy, "image": f"docker.io/istio/proxyv2:{workload.versions.after}"}
        if workload.kind == "sidecar" and _is_native(workload):
            spec["initContainers"] = [*objects.as_list(spec.get("initContainers")), proxy]
            spec["containers"] = others
        else:
            spec["containers"] = [*others, proxy]
        labels |= _injector_labels(workload)
        annotations |= _injector_annotations(workload, annotations, prometheus_merge)
    if workload.kind in ("gateway-api", "waypoint"):
        annotations |= {
            names.PROMETHEUS_PORT: "15020",
            names.PROMETHEUS_PATH: names.MERGED_PATH,
            names.PROMETHEUS_SCRAPE: "true",
        }
    metadata = {
        "name": f"{workload.name}-0",
        "namespace": workload.namespace,
        "labels": labels,
        "annotations": annotations,
        "ownerReferences": _owner(workload),
    }
    data = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": "Running", "podIP": _EXAMPLE_IP},
    }
    return Manifest(workload.ref, data)


def _is_native(workload: ResolvedWorkload) -> bool:
    """Return whether the proxy becomes an init container; from 1.31 on that is the default."""
    native = workload.versions.native_sidecar
    return bool(workload.versions.after.at_least("1.31")) if native is None else native


def _owner(workload: ResolvedWorkload) -> list[dict[str, Any]]:
    ref = workload.ref
    if ref.kind == "Pod":
        return []
    kind, name = (
        ("ReplicaSet", f"{ref.name}-{_EXAMPLE_HASH}") if ref.kind == "Deployment" else (ref.kind, ref.name)
    )
    api_version = f"{ref.group}/v1" if ref.group else "v1"
    return [{"apiVersion": api_version, "kind": kind, "name": name, "controller": True}]


def _injector_labels(workload: ResolvedWorkload) -> dict[str, str]:
    """Return the labels that the injector adds; those of the template stay."""
    if workload.kind not in ("sidecar", "gateway-injected"):
        return {}
    written = workload.labels
    name = written.get(names.APPLICATION_NAME) or written.get("app") or workload.name
    version = written.get("app.kubernetes.io/version") or written.get("version") or "latest"
    added = {"service.istio.io/canonical-name": name, "service.istio.io/canonical-revision": version}
    if workload.kind == "sidecar":
        added[names.TLS_MODE] = "istio"
    return {key: value for key, value in added.items() if not written.get(key)}


def _managed_proxy() -> dict[str, Any]:
    return {
        "name": names.PROXY_CONTAINER,
        "ports": [{"containerPort": number, "name": name} for number, name in _MANAGED_PORTS],
    }


def _injector_annotations(
    workload: ResolvedWorkload, annotations: Mapping[str, str], prometheus_merge: bool
) -> dict[str, str]:
    """Return the annotations that the injector would write.

    As in Istio's `applyPrometheusMerge` and `applySecurePrometheusAnnotation`.
    """
    written: dict[str, str] = {}
    if workload.kind in ("sidecar", "gateway-injected"):
        revision = workload.revision or "default"
        written |= {names.REVISION: revision, names.STATUS: json.dumps({"revision": revision})}
    merge = annotations.get(names.MERGE_METRICS, "true" if prometheus_merge else "false").lower() != "false"
    if workload.kind in ("sidecar", "gateway-injected"):
        if merge and annotations.get(names.PROMETHEUS_SCRAPE, "").lower() != "false":
            written |= {
                names.PROMETHEUS_PORT: "15020",
                names.PROMETHEUS_PATH: names.MERGED_PATH,
                names.PROMETHEUS_SCRAPE: "true",
            }
        if workload.metrics.announced is not None:
            written[names.SECURE_PORT] = workload.metrics.announced
    return written


def pod_targets(pod: Manifest) -> Iterator[Labels]:
    """Return the targets of a pod, with the labels before relabelling."""
    common = _pod_labels(pod)
    ip = common[f"{META}pod_ip"]
    for place, init in (("containers", "false"), ("initContainers", "true")):
        for container in objects.as_list(objects.dig(pod.data, "spec", place)):
            base = common | {
                f"{META}pod_container_name": str(objects.dig(container, "name", default="")),
                f"{META}pod_container_image": str(objects.dig(container, "image", default="")),
                f"{META}pod_container_init": init,
            }
            ports = objects.as_list(objects.dig(container, "ports"))
            if not ports:
                yield base | {"__address__": ip}
            for port in ports:
                number = objects.dig(port, "containerPort", default=0)
                yield base | {
                    "__address__": host_port(ip, number),
                    f"{META}pod_container_port_number": str(number),
                    f"{META}pod_container_port_name": str(objects.dig(port, "name", default="")),
                    f"{META}pod_container_port_protocol": str(objects.dig(port, "protocol", default="TCP")),
                }


def _pod_labels(pod: Manifest) -> Labels:
    status, spec = objects.as_mapping(pod.data.get("status")), objects.as_mapping(pod.data.get("spec"))
    labels = {
        f"{META}namespace": pod.ref.namespace,
        f"{META}pod_name": str(objects.dig(pod.data, "metadata", "name", default=pod.ref.name)),
        f"{META}pod_ip": str(status.get("podIP") or _EXAMPLE_IP),
        f"{META}pod_phase": str(status.get("phase") or "Running"),
        f"{META}pod_ready": "true",
        f"{META}pod_node_name": str(spec.get("nodeName") or "node"),
        f"{META}pod_host_ip": str(status.get("hostIP") or _EXAMPLE_IP),
        f"{META}pod_uid": "uid",
        "__scheme__": "http",
        "__metrics_path__": "/metrics",
    }
    if owner := next(owners(pod), None):
        labels[f"{META}pod_controller_kind"] = owner.kind
        labels[f"{META}pod_controller_name"] = owner.name
    for word, values in (("label", objects.labels(pod.data)), ("annotation", objects.annotations(pod.data))):
        for name, value in values.items():
            labels[f"{META}pod_{word}_{sanitised(name)}"] = str(value)
            labels[f"{META}pod_{word}present_{sanitised(name)}"] = "true"
    return labels


def service_targets(pod: Manifest, service: Manifest) -> Iterator[tuple[Labels, str]]:
    """Return the targets of a pod behind a Service (role endpoints), each with its Service port's name.

    Declared container ports that no Service port leads to are targets too, with an empty port name.
    """
    common = _pod_labels(pod) | _service_labels(service)
    common |= {
        f"{META}endpoints_name": service.ref.name,
        f"{META}endpoint_ready": "true",
        f"{META}endpointslice_endpoint_conditions_ready": "true",
        f"{META}endpoint_node_name": common[f"{META}pod_node_name"],
        f"{META}endpoint_address_target_kind": "Pod",
        f"{META}endpoint_address_target_name": common[f"{META}pod_name"],
        f"{META}endpointslice_address_target_kind": "Pod",
        f"{META}endpointslice_address_target_name": common[f"{META}pod_name"],
    }
    ip = common[f"{META}pod_ip"]
    declared = declared_ports(pod.data)
    covered = set()
    for port in view_of(service.data).ports:
        number = port.number(declared)
        if number is None:
            continue
        covered.add(str(number))
        yield (
            common
            | {
                "__address__": host_port(ip, number),
                f"{META}endpoint_port_name": port.name,
                f"{META}endpointslice_port_name": port.name,
                f"{META}service_port_name": port.name,
            },
            port.name,
        )
    for target_labels in pod_targets(pod):
        number_text = target_labels.get(f"{META}pod_container_port_number", "")
        if number_text and number_text not in covered:
            yield common | target_labels, ""


def _service_labels(service: Manifest) -> Labels:
    labels = {f"{META}service_name": service.ref.name}
    for word, values in (
        ("label", objects.labels(service.data)),
        ("annotation", objects.annotations(service.data)),
    ):
        for name, value in values.items():
            labels[f"{META}service_{word}_{sanitised(name)}"] = str(value)
            labels[f"{META}service_{word}present_{sanitised(name)}"] = "true"
    return labels
