"""Small clusters for plans, from a few words each, and what every plan must keep."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from meshscrape.kube.manifests import load_manifests
from meshscrape.kube.objects import Inventory, Manifest, Ref, load_inventory, manifest_of
from meshscrape.observe import observe
from meshscrape.plan.model import PHASES, Change, Intent, Plan, revert
from meshscrape.plan.planner import plan
from support.schemas import CRDS, known, problems

SAMPLES = Path(__file__).parents[3] / "shared/samples"
Data = dict[str, Any]


def cluster(*objects: Data | Iterable[Data]) -> Inventory:
    """An inventory of these objects."""
    flat: list[Manifest] = []
    for each in objects:
        flat += [manifest_of(each)] if isinstance(each, dict) else [manifest_of(item) for item in each]
    return load_inventory(flat)


def sample(*names: str) -> Inventory:
    """The upstream samples of these names."""
    found: list[Manifest] = []
    for name in names:
        with (SAMPLES / name).open() as lines:
            found += load_manifests(lines, name)
    return load_inventory(found)


def meta(name: str, namespace: str = "shop", **more: Any) -> Data:
    return {"name": name, "namespace": namespace} | {key: value for key, value in more.items() if value}


def control_plane(version: str = "1.31.0", revision: str = "default", mesh: str = "") -> list[Data]:
    """istiod with its injector, mesh configuration and values."""
    suffix = "" if revision == "default" else f"-{revision}"
    labels = {"app": "istiod", "istio.io/rev": revision}
    image = f"docker.io/istio/pilot:{version}"
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "discovery", "image": image}]},
    }
    values = json.dumps({"global": {"tag": version, "hub": "docker.io/istio"}, "revision": revision})
    return [
        {
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": meta(f"istiod{suffix}", "istio-system", labels=labels),
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": meta(f"istio{suffix}", "istio-system", labels={"istio.io/rev": revision}),
            "data": {"mesh": mesh or "trustDomain: cluster.local\n"},
        },
        {
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": meta(
                f"istio-sidecar-injector{suffix}", "istio-system", labels={"istio.io/rev": revision}
            ),
            "data": {"values": values, "config": "policy: enabled\n"},
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": f"istio-sidecar-injector{suffix}", "labels": {"istio.io/rev": revision}},
            "webhooks": [],
        },
    ]  # fmt: skip


def namespace(name: str = "shop", labels: Mapping[str, str] | None = None) -> Data:
    """A namespace; injected by default."""
    found = {"istio-injection": "enabled"} if labels is None else dict(labels)
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": found}}


def deployment(
    name: str = "httpbin",
    namespace: str = "shop",
    *,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    port: int = 8080,
    kind: str = "Deployment",
    proxy: str = "",
    **spec: Any,
) -> Data:
    """A workload of one container; `proxy` adds the container istio-proxy with this image."""
    own = {"app": name}
    containers: list[Data] = [{"name": "app", "image": "app:1", "ports": [{"containerPort": port}]}]
    if proxy:
        containers = [{"name": "istio-proxy", "image": proxy, "args": ["proxy", "router"]}]
    template = {
        "metadata": {"labels": {**own, **(labels or {})}}
        | ({"annotations": dict(annotations)} if annotations else {}),
        "spec": {"serviceAccountName": name, "containers": containers, **spec},
    }
    body: Data = {"selector": {"matchLabels": own}, "template": template}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": meta(name, namespace), "spec": body}


def service(
    name: str = "httpbin", namespace: str = "shop", port: int = 8080, port_name: str = "http"
) -> Data:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(name, namespace),
        "spec": {"selector": {"app": name}, "ports": [{"name": port_name, "port": port}]},
    }


def peer_authentication(mode: str = "STRICT", namespace: str = "istio-system", **spec: Any) -> Data:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": meta("default", namespace),
        "spec": {"mtls": {"mode": mode}, **spec},
    }


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


def prometheus(config: str = KUBERNETES_PODS, namespace: str = "monitoring", **metadata: Any) -> list[Data]:
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


def gateway_api(
    name: str = "gw", namespace: str = "shop", class_name: str = "istio", **more: Any
) -> list[Data]:
    """A Gateway and the Deployment that istiod made of it."""
    suffix = f"-{class_name}" if class_name == "istio" else ""
    labels = {"gateway.networking.k8s.io/gateway-name": name}
    controller = (
        "istio.io-mesh-controller" if class_name == "istio-waypoint" else "istio.io-gateway-controller"
    )
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": meta(name, namespace, annotations=more.pop("annotations", None)),
        "spec": {
            "gatewayClassName": class_name,
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
            **more,
        },
    }  # fmt: skip
    role = "waypoint" if class_name == "istio-waypoint" else "router"
    proxy = {
        "name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.31.0", "args": ["proxy", role],
        "ports": [{"containerPort": 15090, "name": "http-envoy-prom"}],
    }  # fmt: skip
    made = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": meta(
            f"{name}{suffix}", namespace,
            labels={**labels, "gateway.istio.io/managed": controller},
            ownerReferences=[
                {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": name,
                 "uid": "1", "controller": True}
            ],
        ),
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {
                    "labels": {**labels, "sidecar.istio.io/inject": "false"},
                    "annotations": {"prometheus.io/port": "15020", "prometheus.io/scrape": "true"},
                },
                "spec": {"serviceAccountName": f"{name}{suffix}", "containers": [proxy]},
            },
        },
    }  # fmt: skip
    return [gateway, made]


def planned(inventory: Inventory, **intent: Any) -> Plan:
    """Observe and plan."""
    wanted = Intent(**intent)
    return plan(observe(inventory, istio_version=wanted.istio_version), inventory, wanted)


def settled(inventory: Inventory, **intent: Any) -> Plan:
    """Plan, and check what every plan must keep: order, idempotence, reversibility, valid objects."""
    found = planned(inventory, **intent)
    order = [PHASES.index(change.phase) for change in found.changes]
    assert order == sorted(order)
    after = found.apply(inventory)
    again = planned(after, **intent)
    assert [_told(change) for change in again.changes] == []
    assert same(revert(found).apply(after), inventory)
    assert not [problem for change in found.changes for problem in _problems(change)]
    return found


def same(one: Inventory, other: Inventory) -> bool:
    """Whether two inventories hold equal data."""
    return {each.ref: each.data for each in one} == {each.ref: each.data for each in other}


def _told(change: Change) -> str:
    before, after = (yaml.safe_dump(each) for each in (change.before, change.after))
    return f"{change.action} {change.ref}: {change.reason}\n{before}\n->\n{after}"


def _problems(change: Change) -> list[str]:
    if change.after is None or not CRDS.is_dir() or not known(change.after):
        return []
    before = set(problems(change.before)) if change.before else set()
    return [each for each in problems(change.after) if each not in before]


def changed(found: Plan, kind: str, name: str = "") -> Any:
    """The object of this kind (and name) as the plan leaves it; fails unless there is exactly one."""
    latest = {c.ref: c.after for c in found.changes if c.ref.kind == kind and name in ("", c.ref.name)}
    assert len(latest) == 1, [str(change.ref) for change in found.changes]
    return next(iter(latest.values()))


def template(found: Plan, kind: str = "Deployment", name: str = "") -> Any:
    """The pod template of a changed workload."""
    return changed(found, kind, name)["spec"]["template"]


def annotations(found: Plan, kind: str = "Deployment", name: str = "") -> Any:
    """The annotations of a changed pod template."""
    return template(found, kind, name)["metadata"]["annotations"]


def proxy_config(found: Plan, kind: str = "Deployment", name: str = "") -> Any:
    """The data of `proxy.istio.io/config` of a changed pod template."""
    return yaml.safe_load(annotations(found, kind, name)["proxy.istio.io/config"])


def refs(found: Plan) -> list[tuple[str, str, str]]:
    """Phase, action and kind/name of every change, in order."""
    return [(each.phase, each.action, f"{each.ref.kind}/{each.ref.name}") for each in found.changes]


def notes(found: Plan) -> str:
    """All notes as one text."""
    return "\n".join(f"{note.ref}: {note.text}; {note.remedy}" for note in found.notes)


def ref(kind: str, name: str, namespace: str = "shop", group: str = "apps") -> Ref:
    return Ref(group, kind, namespace, name)
