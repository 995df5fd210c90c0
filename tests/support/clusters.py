"""Objects of clusters, as Istio, its injector and Kubernetes make them; plain dicts, one builder per kind.

Every builder returns new objects. `inventory(...)` takes them (and lists of them) together.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import yaml

from meshscrape.kube.objects import Inventory, Manifest, load_inventory, manifest_of
from meshscrape.observe import observe
from meshscrape.observe.model import Observation, Pitfall

T = TypeVar("T")
Object = dict[str, Any]
SECURE = {"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}
LOCALHOST_ONLY = {"METRICS_LOCALHOST_ACCESS_ONLY": "true"}
CONFIG = "proxy.istio.io/config"
SCRAPER_LABELS = {"sidecar.istio.io/inject": "true", "security.istio.io/tlsMode": "disabled"}


def inventory(*parts: Object | Iterable[Object]) -> Inventory:
    """The inventory of objects and lists of objects."""
    found: list[Manifest] = []
    for part in parts:
        for data in [part] if isinstance(part, dict) else part:
            found.append(manifest_of(data, f"{data['kind']} {data['metadata']['name']}"))
    return load_inventory(found)


def observed(*parts: Object | Iterable[Object], istio_version: str | None = None) -> Observation:
    """What is observed in objects and lists of objects."""
    return observe(inventory(*parts), istio_version=istio_version)


def pitfalls(code: str, *parts: Object | Iterable[Object], istio_version: str | None = None) -> list[Pitfall]:
    """The pitfalls of one code."""
    found = observed(*parts, istio_version=istio_version).pitfalls
    return [each for each in found if each.code == code]


def only(found: Iterable[T]) -> T:
    """The one element."""
    (element,) = found
    return element


def proxy_config(metadata: Mapping[str, str] | None = None, **fields: Any) -> dict[str, str]:
    """The annotation `proxy.istio.io/config`."""
    data = dict(fields) | ({"proxyMetadata": dict(metadata)} if metadata else {})
    return {CONFIG: yaml.safe_dump(data)}


def namespace(name: str, **labels: str) -> Object:
    """A Namespace; labels with underscores for what Python cannot spell: istio_injection."""
    known = {
        "istio_injection": "istio-injection",
        "rev": "istio.io/rev",
        "dataplane": "istio.io/dataplane-mode",
    }
    spelled = {known.get(key, key): value for key, value in labels.items()}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, **spelled}},
    }


def deployment(
    name: str = "httpbin",
    namespace: str = "default",
    *,
    kind: str = "Deployment",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    port: int = 8080,
    account: str = "",
    proxy: Object | None = None,
    **spec: Any,
) -> Object:
    """An application with one container and one port; `proxy` is a container istio-proxy of its own."""
    pod_labels = {"app": name, **(labels or {})}
    container: Object = {"name": name, "image": f"example.com/{name}:1", "ports": [{"containerPort": port}]}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": pod_labels, "annotations": dict(annotations or {})},
                "spec": {
                    "serviceAccountName": account or name,
                    "containers": [container, *([proxy] if proxy else [])],
                    **spec,
                },
            },
        },
    }


def service(
    name: str = "httpbin",
    namespace: str = "default",
    *,
    port_name: str = "http",
    target: Any = 8080,
    **extra: Any,
) -> Object:
    """A Service for the application of the same name."""
    port = {"name": port_name, "port": 8000, "targetPort": target, **extra}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [port]},
    }


def env(values: Mapping[str, str]) -> list[Object]:
    """Variables of a container."""
    return [{"name": name, "value": value} for name, value in values.items()]


def proxy_container(
    version: str, role: str = "sidecar", variables: Mapping[str, str] | None = None
) -> Object:
    """An istio-proxy container as the templates write it."""
    return {
        "name": "istio-proxy",
        "image": f"docker.io/istio/proxyv2:{version}",
        "args": ["proxy", role, "--domain", "$(POD_NAMESPACE).svc.cluster.local"],
        "env": env({"PROXY_CONFIG": "{}\n", "TRUST_DOMAIN": "cluster.local", **(variables or {})}),
        "ports": [{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}],
    }


def pod_of(
    owner: Object,
    version: str = "1.31.0",
    *,
    name: str = "",
    native: bool = True,
    variables: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    injected: bool = True,
    role: str = "sidecar",
    ip: str = "10.0.0.7",
    phase: str = "Running",
    status_image: str = "",
) -> Object:
    """A pod of a Deployment as the webhook makes it.

    `variables` are the injected environment (proxyMetadata), `annotations` stand in for the template's
    (None: the template's as they are now).
    """
    template = copy.deepcopy(owner["spec"]["template"])
    metadata, spec = template["metadata"], template["spec"]
    written = dict(metadata.get("annotations") or {}) if annotations is None else dict(annotations)
    hashed = "5d8f6c7b9"
    metadata |= {
        "name": name or f"{owner['metadata']['name']}-{hashed}-x2x4z",
        "namespace": owner["metadata"]["namespace"],
        "labels": {**metadata.get("labels", {}), "pod-template-hash": hashed},
        "ownerReferences": [
            {
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": True,
                "name": f"{owner['metadata']['name']}-{hashed}",
            }
        ],
    }  # fmt: skip
    if owner["kind"] != "Deployment":
        metadata["ownerReferences"][0] |= {"kind": owner["kind"], "name": owner["metadata"]["name"]}
    if injected:
        variables = dict(variables or {})
        container = proxy_container(version, role, variables)
        others = [each for each in spec["containers"] if each["name"] != "istio-proxy"]
        if native and role == "sidecar":
            spec["containers"], spec["initContainers"] = others, [{**container, "restartPolicy": "Always"}]
        else:
            spec["containers"] = [*others, container]
        written |= _injected_annotations(written, variables, native, version)
    metadata["annotations"] = written
    place = "initContainerStatuses" if native else "containerStatuses"
    status: Object = {"phase": phase, "podIP": ip}
    if status_image:
        status[place] = [{"name": "istio-proxy", "image": status_image}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def _injected_annotations(
    written: Mapping[str, str], variables: Mapping[str, str], native: bool, version: str
) -> dict[str, str]:
    status = {"initContainers": ["istio-init"], "containers": ["istio-proxy"], "revision": "default"}
    if native:
        status = {"initContainers": ["istio-init", "istio-proxy"], "revision": "default"}
    found = {"istio.io/rev": "default", "sidecar.istio.io/status": json.dumps(status)}
    if written.get("prometheus.io/scrape") != "false":
        found |= {
            "prometheus.io/port": "15020", "prometheus.io/path": "/stats/prometheus",
            "prometheus.io/scrape": "true",
        }  # fmt: skip
    port = variables.get("ENVOY_SECURE_MERGED_METRICS_PORT", "0")
    if port not in ("", "0") and "prometheus.istio.io/secure-port" not in written and version >= "1.31":
        found["prometheus.istio.io/secure-port"] = port
    return found


def control_plane(
    version: str = "1.31.0",
    revision: str = "default",
    *,
    mesh: Mapping[str, Any] | None = None,
    tags: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
    istiod: bool = True,
) -> list[Object]:
    """istiod with its ConfigMaps and webhooks, as istioctl installs them."""
    suffix = "" if revision == "default" else f"-{revision}"
    labels = {"istio.io/rev": revision}
    found = [
        config_map(f"istio{suffix}", {"mesh": yaml.safe_dump(dict(mesh or {}))}, labels),
        config_map(
            f"istio-sidecar-injector{suffix}",
            {"values": json.dumps({"global": {"tag": version, "hub": "docker.io/istio"}, **(values or {})})},
            labels,
        ),
        webhook(f"istio-sidecar-injector{suffix}", labels),
        *(webhook(f"istio-revision-tag-{tag}", {**labels, "istio.io/tag": tag}) for tag in tags),
    ]
    if istiod:
        server = deployment(f"istiod{suffix}", "istio-system", labels={"app": "istiod", **labels})
        server["metadata"]["labels"] = {"app": "istiod", **labels}
        server["spec"]["template"]["spec"]["containers"] = [
            {"name": "discovery", "image": f"docker.io/istio/pilot:{version}", "env": env(variables or {})}
        ]
        found.append(server)
    return found


def config_map(
    name: str,
    data: Mapping[str, str],
    labels: Mapping[str, str] | None = None,
    namespace: str = "istio-system",
) -> Object:
    """A ConfigMap."""
    metadata: Object = {"name": name, "namespace": namespace}
    if labels:
        metadata["labels"] = dict(labels)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}


def webhook(name: str, labels: Mapping[str, str]) -> Object:
    """A webhook of the injector."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name, "labels": dict(labels)},
        "webhooks": [],
    }


def peer_authentication(
    mode: str, namespace: str = "istio-system", *, name: str = "default", app: str = "", **ports: str
) -> Object:
    """A PeerAuthentication; for one application with `app`; ports as p15091="STRICT"."""
    spec: Object = {"mtls": {"mode": mode}} if mode else {}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    if ports:
        spec["portLevelMtls"] = {port.removeprefix("p"): {"mode": wanted} for port, wanted in ports.items()}
    return istio("security", "PeerAuthentication", name, namespace, spec)


def istio(group: str, kind: str, name: str, namespace: str, spec: Mapping[str, Any]) -> Object:
    """An object of one of Istio's API groups."""
    return {
        "apiVersion": f"{group}.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }


def legacy_sidecar(
    namespace: str = "default", *, app: str = "", target: int = 15020, ports: Iterable[int] = ()
) -> Object:
    """The Sidecar of Istio's recipe for proxies before 1.31; `ports` are the application's, listed too."""
    ingress = [
        {
            "port": {"number": 15091, "name": "https-metrics", "protocol": "HTTP"},
            "defaultEndpoint": f"127.0.0.1:{target}",
        }
    ]
    ingress += [
        {
            "port": {"number": port, "name": f"http-{port}", "protocol": "HTTP"},
            "defaultEndpoint": f"127.0.0.1:{port}",
        }
        for port in ports
    ]
    spec: Object = {"ingress": ingress}
    if app:
        spec["workloadSelector"] = {"labels": {"app": app}}
    return istio("networking", "Sidecar", "secure-metrics", namespace, spec)


def legacy_gateway(selector: str = "ingressgateway", export_to: list[str] | None = None) -> list[Object]:
    """Gateway, ServiceEntry and VirtualService of Istio's recipe for gateways before 1.31."""
    entry: Object = {
        "hosts": ["gateway-admin.local"], "location": "MESH_INTERNAL", "resolution": "STATIC",
        "ports": [{"number": 15020, "name": "http-metrics", "protocol": "HTTP"}],
        "endpoints": [{"address": "127.0.0.1"}],
    }  # fmt: skip
    if export_to is not None:
        entry["exportTo"] = export_to
    server = {
        "port": {"number": 15091, "name": "https-metrics", "protocol": "HTTPS"},
        "tls": {"mode": "ISTIO_MUTUAL"},
        "hosts": ["*"],
    }
    route = {"destination": {"host": "gateway-admin.local", "port": {"number": 15020}}}
    match = [{"uri": {"prefix": "/stats/prometheus"}}]
    gateway = {"selector": {"istio": selector}, "servers": [server]}
    return [
        istio("networking", "Gateway", "metrics-gateway", "istio-system", gateway),
        istio("networking", "ServiceEntry", "gateway-admin", "istio-system", entry),
        istio(
            "networking", "VirtualService", "gateway-metrics", "istio-system",
            {"hosts": ["*"], "gateways": ["metrics-gateway"], "http": [{"match": match, "route": [route]}]},
        ),
    ]  # fmt: skip


def injected_gateway(
    name: str = "istio-ingressgateway",
    namespace: str = "istio-ingress",
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """The Deployment of the chart istio/gateway: injected by the gateway template."""
    found = deployment(
        name,
        namespace,
        labels={"istio": "ingressgateway", "sidecar.istio.io/inject": "true"},
        annotations={"inject.istio.io/templates": "gateway", **(annotations or {})},
    )
    found["spec"]["template"]["spec"]["containers"] = [{"name": "istio-proxy", "image": "auto"}]
    return found


def classic_gateway(
    version: str = "1.31.0",
    variables: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """The Deployment of istioctl's ingress gateway: a whole proxy that nothing injects."""
    found = deployment(
        "istio-ingressgateway",
        "istio-system",
        labels={
            "istio": "ingressgateway", "sidecar.istio.io/inject": "false",
            "operator.istio.io/component": "IngressGateways",
        },
        annotations=annotations,
    )  # fmt: skip
    found["spec"]["template"]["spec"]["containers"] = [proxy_container(version, "router", variables)]
    return found


def gateway_api(
    name: str = "edge",
    namespace: str = "default",
    *,
    gateway_class: str = "istio",
    annotations: Mapping[str, str] | None = None,
    infrastructure: Mapping[str, Any] | None = None,
) -> Object:
    """A Gateway of the Gateway API."""
    spec: Object = {
        "gatewayClassName": gateway_class,
        "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
    }
    if infrastructure is not None:
        spec["infrastructure"] = dict(infrastructure)
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace, "annotations": dict(annotations or {})},
        "spec": spec,
    }


def managed_deployment(
    gateway: Object, version: str = "1.31.0", variables: Mapping[str, str] | None = None
) -> Object:
    """The Deployment that istiod makes for a Gateway."""
    metadata = gateway["metadata"]
    waypoint = "waypoint" in gateway["spec"]["gatewayClassName"]
    controller = "istio.io-mesh-controller" if waypoint else "istio.io-gateway-controller"
    name = metadata["name"] if waypoint else f"{metadata['name']}-{gateway['spec']['gatewayClassName']}"
    labels = {
        "gateway.istio.io/managed": controller,
        "gateway.networking.k8s.io/gateway-name": metadata["name"],
        "sidecar.istio.io/inject": "false",
    }
    found = deployment(name, metadata["namespace"], labels=labels)
    found["metadata"] |= {
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": metadata["name"],
                "uid": "0", "controller": True,
            }
        ],
    }  # fmt: skip
    role = "waypoint" if waypoint else "router"
    found["spec"]["template"]["metadata"]["annotations"] = {
        "prometheus.io/path": "/stats/prometheus",
        "prometheus.io/port": "15020",
        "prometheus.io/scrape": "true",
    }
    found["spec"]["template"]["spec"]["containers"] = [proxy_container(version, role, variables)]
    return found


def overlay(
    deployment_patch: Mapping[str, Any], name: str = "edge-options", namespace: str = "default"
) -> Object:
    """The ConfigMap of `infrastructure.parametersRef`."""
    return config_map(name, {"deployment": yaml.safe_dump(dict(deployment_patch))}, namespace=namespace)


PARAMETERS = {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "edge-options"}}


def secure_overlay(name: str = "edge-options", namespace: str = "default") -> Object:
    """An overlay that opens the merged secure port, as it should be."""
    return overlay(
        {
            "spec": {
                "template": {
                    "metadata": {"annotations": {"prometheus.istio.io/secure-port": "15092"}},
                    "spec": {"containers": [{"name": "istio-proxy", "env": env(SECURE)}]},
                }
            }
        },
        name,
        namespace,
    )


# Who scrapes

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


# Whole clusters


def secured() -> list[Object]:
    """A cluster with nothing wrong: one native workload, excluded under STRICT, scraped over mTLS only."""
    annotations = {
        **proxy_config({**SECURE, **LOCALHOST_ONLY}),
        "traffic.sidecar.istio.io/excludeInboundPorts": "15091,15092",
    }
    app = deployment(annotations=annotations)
    return [
        *control_plane("1.31.0", values={}),
        namespace("default", istio_injection="enabled"),
        peer_authentication("STRICT"),
        app,
        service(),
        pod_of(app, variables={**SECURE, **LOCALHOST_ONLY}),
        *prometheus(secure_job()),
    ]


def plain(version: str = "1.31.0", native: bool = True) -> list[Object]:
    """An unsecured mesh: one injected workload, and the add-on that scrapes it in plain text."""
    app = deployment()
    return [
        *control_plane(version),
        namespace("default", istio_injection="enabled"),
        app,
        service(),
        pod_of(app, version, native=native),
        *prometheus(
            kubernetes_pods(), labels={"sidecar.istio.io/inject": "false"}, annotations={}, mount=None
        ),
    ]


def mid_upgrade() -> list[Object]:
    """Two revisions and a tag; pods of the one workload still run with the old proxy."""
    app = deployment()
    return [
        *control_plane("1.29.2", "1-29-2"),
        *control_plane("1.31.0", "1-31-0", tags=["default", "stable"]),
        namespace("default", rev="stable"),
        app,
        service(),
        pod_of(app, "1.29.2", name="httpbin-5d8f6c7b9-aaaaa"),
        pod_of(app, "1.31.0", name="httpbin-5d8f6c7b9-bbbbb"),
    ]


def dual_stack() -> list[Object]:
    """A workload whose pod has an IPv6 address first."""
    app = deployment(annotations=proxy_config(SECURE))
    pod = pod_of(app, variables=SECURE, ip="2001:db8::7")
    pod["status"]["podIPs"] = [{"ip": "2001:db8::7"}, {"ip": "10.0.0.7"}]
    return [
        *control_plane(),
        namespace("default", istio_injection="enabled"),
        app,
        service(),
        pod,
        *prometheus(secure_job()),
    ]


def gateways() -> list[Object]:
    """Gateways of all of Istio's kinds, and a waypoint."""
    edge, waypoint = gateway_api(), gateway_api("waypoint", gateway_class="istio-waypoint")
    return [
        *control_plane(),
        injected_gateway(),
        classic_gateway(),
        edge,
        managed_deployment(edge),
        waypoint,
        managed_deployment(waypoint),
        gateway_api("unrendered", "other"),
    ]


def legacy(version: str = "1.29.2") -> list[Object]:
    """Istio's recipe before 1.31, done right, for a sidecar and the classic gateway."""
    app = deployment(
        annotations={
            "prometheus.io/scrape": "true", "prometheus.io/path": "/stats/prometheus",
            "prometheus.istio.io/secure-port": "15091",
        }
    )  # fmt: skip
    rules = [
        {
            "from": [{"source": {"notPrincipals": ["cluster.local/ns/istio-system/sa/prometheus"]}}],
            "to": [{"operation": {"ports": ["15091"]}}],
        }
    ]
    policy = {"selector": {"matchLabels": {"app": "httpbin"}}, "action": "DENY", "rules": rules}
    return [
        *control_plane(version),
        namespace("default", istio_injection="enabled"),
        app,
        service(),
        pod_of(app, version, native=False),
        legacy_sidecar(app="httpbin", ports=[8080]),
        peer_authentication("", "default", name="metrics", app="httpbin", p15091="STRICT"),
        istio("security", "AuthorizationPolicy", "metrics", "default", policy),
        classic_gateway(version, annotations={"prometheus.istio.io/secure-port": "15091"}),
        *legacy_gateway(export_to=["."]),
        *prometheus(secure_job()),
    ]


ASM_TAG = "v1.18.0.1-ga31201346f-aliyun"
ASM_IMAGE = f"registry-vpc.cn-hangzhou.aliyuncs.com/acs/proxyv2:{ASM_TAG}"


def asm() -> list[Object]:
    """A data plane of ASM: no istiod, a webhook by URL, an IstioGateway, the ARMS agent."""
    app = deployment()
    pod = pod_of(app, ASM_TAG, native=False, variables={"ASM_ID": "c-example"})
    for container in pod["spec"]["containers"]:
        if container["name"] == "istio-proxy":
            container["image"] = ASM_IMAGE
    gateway = {
        "apiVersion": "istio.alibabacloud.com/v1beta1",
        "kind": "IstioGateway",
        "metadata": {"name": "ingressgateway", "namespace": "istio-system"},
        "spec": {
            "gatewayType": "ingress", "serviceType": "LoadBalancer", "replicaCount": 1,
            "ports": [{"name": "status-port", "port": 15020}, {"name": "http", "port": 80}],
        },
    }  # fmt: skip
    rendered = deployment("istio-ingressgateway", "istio-system", labels={"istio": "ingressgateway"})
    rendered["spec"]["template"]["spec"]["containers"] = [
        {**proxy_container(ASM_TAG, "router"), "image": ASM_IMAGE}
    ]
    agent = deployment("arms-prometheus-ack-arms-prometheus", "arms-prom")
    agent["spec"]["template"]["spec"]["containers"][0] |= {
        "name": "arms-prometheus-operator",
        "image": "registry-vpc.cn-hangzhou.aliyuncs.com/acs/arms-prometheus-agent:v4.0.0",
    }
    hook = webhook("istio-sidecar-injector", {"istio.io/rev": "default"})
    hook["webhooks"] = [
        {"name": "sidecar-injector.istio.io", "clientConfig": {"url": "https://asm.example/inject"}}
    ]
    return [
        hook,
        namespace("default", istio_injection="enabled"),
        app,
        service(),
        pod,
        gateway,
        rendered,
        agent,
    ]


def ambient() -> list[Object]:
    """A namespace in ambient mode with ztunnel and a waypoint."""
    ztunnel = deployment("ztunnel", "istio-system", kind="DaemonSet", labels={"app": "ztunnel"})
    ztunnel["spec"]["template"]["spec"]["containers"] = [
        {"name": "istio-proxy", "image": "docker.io/istio/ztunnel:1.31.0", "args": ["proxy", "ztunnel"]}
    ]
    waypoint = gateway_api("waypoint", gateway_class="istio-waypoint")
    return [
        *control_plane(),
        namespace("default", dataplane="ambient"),
        ztunnel,
        deployment(),
        service(),
        waypoint,
        managed_deployment(waypoint),
    ]


def operated() -> list[Object]:
    """A mesh that the Prometheus Operator scrapes, with a plaintext and a secure PodMonitor."""
    app = deployment(annotations=proxy_config(SECURE))
    return [
        *control_plane(),
        namespace("default", istio_injection="enabled"),
        namespace("monitoring"),
        app,
        service(),
        pod_of(app, variables=SECURE),
        operated_prometheus(),
        pod_monitor(),
        pod_monitor("envoy-stats-monitor", secure=False),
        *permissions(namespace="monitoring"),
    ]


def manifests() -> list[Object]:
    """What a user has in Git: no control plane, no pods."""
    return [namespace("default", istio_injection="enabled"), deployment(), service(), gateway_api()]


CLUSTERS: dict[str, Callable[[], list[Object]]] = {
    "secured": secured,
    "plain 1.31": plain,
    "plain 1.31, classic sidecars": lambda: plain(native=False),
    "plain 1.29": lambda: plain("1.29.2"),
    "plain 1.21": lambda: plain("1.21.6", native=False),
    "mid-upgrade": mid_upgrade,
    "dual stack": dual_stack,
    "gateways": gateways,
    "legacy": legacy,
    "ASM": asm,
    "ambient": ambient,
    "operator": operated,
    "manifests": manifests,
}
