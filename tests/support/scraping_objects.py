"""Objects of those who scrape: Prometheus with its jobs, the Operator's objects, permissions."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from support.objects import (
    SCRAPER_LABELS,
    Object,
    config_map,
    deployment,
    meta,
    proxy_config,
)

ANNOTATION = "__meta_kubernetes_pod_annotation_prometheus_io"
PHASE, POD_IP = "__meta_kubernetes_pod_phase", "__meta_kubernetes_pod_ip"
SECURE_PORT = "__meta_kubernetes_pod_annotation_prometheus_istio_io_secure_port"
ADDON_POD_RULES: list[Object] = [
    {"action": "keep", "regex": True, "source_labels": [f"{ANNOTATION}_scrape"]},
    {
        "action": "replace", "regex": "(.+)", "target_label": "__metrics_path__",
        "source_labels": [f"{ANNOTATION}_path"],
    },
    {
        "action": "replace", "regex": r"(\d+);((([0-9]+?)(\.|$)){4})", "replacement": "$2:$1",
        "source_labels": [f"{ANNOTATION}_port", POD_IP],
        "target_label": "__address__",
    },
    {"action": "drop", "regex": "Pending|Succeeded|Failed|Completed", "source_labels": [PHASE]},
]  # fmt: skip


def kubernetes_pods() -> Object:
    """The add-on's plaintext job."""
    return {
        "job_name": "kubernetes-pods",
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": copy.deepcopy(ADDON_POD_RULES),
    }


def envoy_stats() -> Object:
    """The widespread plaintext job for Envoy's statistics."""
    return {
        "job_name": "envoy-stats",
        "metrics_path": "/stats/prometheus",
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": [
            {
                "action": "keep",
                "regex": ".*-envoy-prom",
                "source_labels": ["__meta_kubernetes_pod_container_port_name"],
            }
        ],
    }


def secure_job(name: str = "secure", *, directory: str = "/etc/istio-certs", **changes: Any) -> Object:
    """A secure job without a fault; `rules` replaces its relabeling."""
    address: Object = {"source_labels": [POD_IP, SECURE_PORT], "target_label": "__address__"}
    rules = [
        {"action": "keep", "source_labels": [SECURE_PORT], "regex": ".+"},
        {"action": "keep", "source_labels": [PHASE], "regex": "Running"},
        {"action": "keep", "source_labels": ["__meta_kubernetes_pod_container_name"], "regex": "istio-proxy"},
        {"action": "keep", "source_labels": ["__meta_kubernetes_pod_container_port_number"], "regex": 15090},
        {**address, "regex": "([^:;]+);(.+)", "replacement": "$1:$2"},
        {**address, "regex": "(.*:.*);(.+)", "replacement": "[$1]:$2"},
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
    ]
    files = {"ca_file": "root-cert.pem", "cert_file": "cert-chain.pem", "key_file": "key.pem"}
    tls = {key: f"{directory}/{file}" for key, file in files.items()}
    found: Object = {
        "job_name": name,
        "scheme": "https",
        "metrics_path": "/stats/prometheus",
        "kubernetes_sd_configs": [{"role": "pod"}],
        "tls_config": tls | {"insecure_skip_verify": True},
        "relabel_configs": rules,
    }
    if "rules" in changes:
        found["relabel_configs"] = changes.pop("rules")
    return found | changes


def prometheus(
    *jobs: Object,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    volume: Mapping[str, Any] | None = None,
    mount: str | None = "/etc/istio-certs",
    proxy: Object | None = None,
    rbac: bool = True,
) -> list[Object]:
    """A Prometheus with its configuration and permissions; with a mesh certificate unless told otherwise."""
    wanted = {
        "traffic.sidecar.istio.io/includeInboundPorts": "",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
        "sidecar.istio.io/userVolumeMount": json.dumps({"istio-certs": {"mountPath": "/etc/istio-certs"}}),
        **proxy_config({"OUTPUT_CERTS": "/etc/istio-certs"}, holdApplicationUntilProxyStarts=True),
    }
    found = deployment(
        "prometheus",
        "istio-system",
        labels=SCRAPER_LABELS if labels is None else labels,
        annotations=wanted if annotations is None else annotations,
        proxy=proxy,
        volumes=[
            {"name": "config-volume", "configMap": {"name": "prometheus"}},
            {"name": "istio-certs", **({"emptyDir": {"medium": "Memory"}} if volume is None else volume)},
        ],
    )
    container = found["spec"]["template"]["spec"]["containers"][0]
    container |= {
        "name": "prometheus-server",
        "image": "docker.io/prom/prometheus:v3.10.0",
        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/config"}],
    }
    if mount:
        container["volumeMounts"].append({"name": "istio-certs", "mountPath": mount})
    text = yaml.safe_dump({"scrape_configs": list(jobs)}, sort_keys=False)
    return [found, config_map("prometheus", {"prometheus.yml": text}), *(permissions() if rbac else [])]


def permissions(
    account: str = "prometheus",
    namespace: str = "istio-system",
    *,
    resources: Iterable[str] = ("pods", "services", "endpoints"),
) -> list[Object]:
    """ClusterRole and ClusterRoleBinding of a Prometheus."""
    verbs = ["get", "list", "watch"]
    rules = [{"apiGroups": [""], "resources": list(resources), "verbs": verbs}]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": account}, "rules": rules,
    }  # fmt: skip
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }  # fmt: skip
    return [role, binding]


def operator(
    kind: str, name: str, spec: Mapping[str, Any], namespace: str = "monitoring", **labels: str
) -> Object:
    """An object of the Prometheus Operator."""
    version = "v1alpha1" if kind in ("ScrapeConfig", "PrometheusAgent") else "v1"
    return {
        "apiVersion": f"monitoring.coreos.com/{version}",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": dict(spec),
    }


SCRAPE_CLASS: Object = {
    "name": "istio-mtls",
    "tlsConfig": {
        "caFile": "/etc/prom-certs/root-cert.pem", "certFile": "/etc/prom-certs/cert-chain.pem",
        "keyFile": "/etc/prom-certs/key.pem", "insecureSkipVerify": True,
    },
}  # fmt: skip


def operated_prometheus(**changes: Any) -> Object:
    """A Prometheus object that takes all monitors and has a scrape class with the mesh's certificate."""
    directory = "/etc/istio-output-certs"
    spec: Object = {
        "serviceAccountName": "prometheus",
        "podMonitorSelector": {}, "podMonitorNamespaceSelector": {},
        "serviceMonitorSelector": {}, "serviceMonitorNamespaceSelector": {},
        "scrapeConfigSelector": {}, "scrapeConfigNamespaceSelector": {},
        "podMetadata": {
            "labels": dict(SCRAPER_LABELS),
            "annotations": {
                "traffic.sidecar.istio.io/includeInboundPorts": "",
                "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
                "sidecar.istio.io/userVolumeMount": json.dumps({"istio-certs": {"mountPath": directory}}),
                **proxy_config({"OUTPUT_CERTS": directory}, holdApplicationUntilProxyStarts=True),
            },
        },
        "volumes": [{"name": "istio-certs", "emptyDir": {"medium": "Memory"}}],
        "volumeMounts": [{"name": "istio-certs", "mountPath": "/etc/prom-certs", "readOnly": True}],
        "scrapeClasses": [copy.deepcopy(SCRAPE_CLASS)],
    }  # fmt: skip
    return operator("Prometheus", "main", spec | changes)


def pod_monitor(name: str = "envoy", *, secure: bool = True, **endpoint: Any) -> Object:
    """A PodMonitor on the declared port; the secure one rewrites the address, through the scrape class."""
    port = SECURE_PORT
    found: Object = {"port": "http-envoy-prom", "path": "/stats/prometheus"}
    spec: Object = {"namespaceSelector": {"any": True}, "selector": {}}
    if secure:
        spec["scrapeClass"] = "istio-mtls"
        found |= {
            "scheme": "https",
            "relabelings": [
                {"action": "keep", "sourceLabels": [port], "regex": r"\d+"},
                {
                    "sourceLabels": ["__meta_kubernetes_pod_ip", port], "regex": "([^:;]+);(.+)",
                    "targetLabel": "__address__", "replacement": "$1:$2",
                },
            ],
        }  # fmt: skip
    return operator("PodMonitor", name, spec | {"podMetricsEndpoints": [found | endpoint]})


KUBERNETES_PODS = """\
# the add-on's own
global:
  scrape_interval: 15s
scrape_configs:
- job_name: kubernetes-pods  # annotations
  kubernetes_sd_configs:
  - role: pod
  relabel_configs:
  - action: keep
    regex: true
    source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape]
  - action: replace
    regex: (.+)
    source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_path]
    target_label: __metrics_path__
  - action: replace
    regex: (\\d+);(([A-Fa-f0-9]{1,4}::?){1,7}[A-Fa-f0-9]{1,4})
    replacement: '[$2]:$1'
    source_labels:
    - __meta_kubernetes_pod_annotation_prometheus_io_port
    - __meta_kubernetes_pod_ip
    target_label: __address__
  - action: replace
    regex: (\\d+);([^:]+)
    replacement: $2:$1
    source_labels:
    - __meta_kubernetes_pod_annotation_prometheus_io_port
    - __meta_kubernetes_pod_ip
    target_label: __address__
"""


def plain_prometheus(
    config: str = KUBERNETES_PODS, namespace: str = "monitoring", **metadata: Any
) -> list[Object]:
    """A Prometheus as a Deployment with its ConfigMap, outside the mesh."""
    template = {
        "metadata": {"labels": {"app": "prometheus"}, **metadata},
        "spec": {
            "serviceAccountName": "prometheus",
            "containers": [
                {
                    "name": "prometheus-server",
                    "image": "prom/prometheus:v3.5.0",
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}],
                }
            ],
            "volumes": [{"name": "config", "configMap": {"name": "prometheus"}}],
        },
    }
    return [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("prometheus", namespace),
            "spec": {"selector": {"matchLabels": {"app": "prometheus"}}, "template": template},
        },
        {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("prometheus", namespace),
            "data": {"prometheus.yml": config},
        },
    ]  # fmt: skip
