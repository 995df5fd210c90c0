"""Whole example clusters, for every verb that reads a cluster and for what every plan must keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshscrape.istio.allow_list import parse_scrapers
from support.objects import (
    LOCALHOST_ONLY,
    SECURE,
    Object,
    classic_gateway,
    control_plane,
    deployment,
    gateway_api,
    injected_gateway,
    istio,
    legacy_gateway,
    legacy_sidecar,
    managed_deployment,
    namespace,
    peer_authentication,
    pod_of,
    proxy_config,
    proxy_container,
    service,
    webhook,
)
from support.scraping_objects import (
    kubernetes_pods,
    operated_prometheus,
    permissions,
    pod_monitor,
    prometheus,
    secure_job,
)


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

# The intents that every cluster is planned with.
ALLOW = parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus")
WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "bootstrap": {"mode": "bootstrap", "network_policy": True},
    "legacy": {"mode": "legacy", "prometheus": "operator", "network_policy": True},
    "native": {"mode": "native", "prometheus": "addon", "inject": True},
    "everything": {"inject": True, "envoy_port": 15091, "scrapers": ALLOW, "network_policy": True},
    "scrape proxy": {"scrape_proxy": True, "proxy_image": "registry.example/meshscrape:1"},
    "new with scrape proxy": {
        "prometheus": "addon",
        "proxy_image": "registry.example/meshscrape:1",
        "inject": True,
    },
    "operator with scrape proxy": {
        "prometheus": "operator",
        "scrape_proxy": True,
        "proxy_image": "registry.example/meshscrape:1",
        "mode": "bootstrap",
    },
    "a version is said": {"istio_version": "1.31.0", "prometheus": "none", "inject": True},
}
