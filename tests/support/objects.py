"""Objects of clusters, as Istio, its injector and Kubernetes make them; plain dicts, one builder per kind.

Every builder returns new objects. `cluster(...)` takes them (and lists of them) together.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

from meshscrape.kube.objects import Inventory, Manifest, load_inventory, manifest_of
from meshscrape.observe import observe
from meshscrape.observe.model import Pitfall
from meshscrape.observe.observation import Observation

T = TypeVar("T")
Object = dict[str, Any]
SECURE = {"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}
LOCALHOST_ONLY = {"METRICS_LOCALHOST_ACCESS_ONLY": "true"}
CONFIG = "proxy.istio.io/config"
SCRAPER_LABELS = {"sidecar.istio.io/inject": "true", "security.istio.io/tlsMode": "disabled"}


def cluster(*parts: Object | Iterable[Object]) -> Inventory:
    """The inventory of objects and lists of objects."""
    found: list[Manifest] = []
    for part in parts:
        for data in [part] if isinstance(part, dict) else part:
            found.append(manifest_of(data, f"{data['kind']} {data['metadata']['name']}"))
    return load_inventory(found)


def observed(*parts: Object | Iterable[Object], istio_version: str | None = None) -> Observation:
    """What is observed in objects and lists of objects."""
    return observe(cluster(*parts), istio_version=istio_version)


def pitfalls(code: str, *parts: Object | Iterable[Object], istio_version: str | None = None) -> list[Pitfall]:
    """The pitfalls of one code."""
    found = observed(*parts, istio_version=istio_version).pitfalls
    return [each for each in found if each.code == code]


def meta(name: str, namespace: str = "default", **more: Any) -> Object:
    """An object's metadata; empty values are left out."""
    return {"name": name, "namespace": namespace} | {key: value for key, value in more.items() if value}


def only(found: Iterable[T]) -> T:
    """The one element."""
    (element,) = found
    return element


def proxy_config(metadata: Mapping[str, str] | None = None, **fields: Any) -> dict[str, str]:
    """The annotation `proxy.istio.io/config`."""
    data = dict(fields) | ({"proxyMetadata": dict(metadata)} if metadata else {})
    return {CONFIG: yaml.safe_dump(data)}


def injected_namespace(name: str = "default") -> Object:
    """A Namespace whose pods get a sidecar."""
    return namespace(name, istio_injection="enabled")


def namespace(name: str = "default", labels: Mapping[str, str] | None = None, **spelled: str) -> Object:
    """A Namespace with labels as they are, and some by names that Python can spell: istio_injection."""
    known = {
        "istio_injection": "istio-injection",
        "rev": "istio.io/rev",
        "dataplane": "istio.io/dataplane-mode",
    }
    own = {**(labels or {}), **{known.get(key, key): value for key, value in spelled.items()}}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, **own}},
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


def own_proxy(name: str = "gw", *, image: str = "auto", **options: Any) -> Object:
    """A Deployment whose one container is a router; the injector fills in the image `auto`."""
    made = deployment(name, **options)
    router = {"name": "istio-proxy", "image": image, "args": ["proxy", "router"]}
    made["spec"]["template"]["spec"]["containers"] = [router]
    return made


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
    mesh: Mapping[str, Any] | str | None = None,
    tags: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
    istiod: bool = True,
) -> list[Object]:
    """istiod with its ConfigMaps and webhooks, as istioctl installs them."""
    suffix = "" if revision == "default" else f"-{revision}"
    labels = {"istio.io/rev": revision}
    settings = mesh if isinstance(mesh, str) else yaml.safe_dump(dict(mesh or {}))
    found = [
        config_map(f"istio{suffix}", {"mesh": settings}, labels),
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
        "metadata": meta(name, namespace, annotations=dict(annotations or {})),
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


def rendered_gateway(
    name: str = "gw",
    namespace: str = "default",
    *,
    gateway_class: str = "istio",
    annotations: Mapping[str, str] | None = None,
    infrastructure: Mapping[str, Any] | None = None,
) -> list[Object]:
    """A Gateway of the Gateway API, and the Deployment that istiod made of it."""
    gateway = gateway_api(
        name,
        namespace,
        gateway_class=gateway_class,
        annotations=annotations,
        infrastructure=infrastructure,
    )
    return [gateway, managed_deployment(gateway)]


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
