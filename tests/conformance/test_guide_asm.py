"""ASM's guide: an application's own port over mutual TLS, with the Operator and a ServiceMonitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from conformance import operator, prober, shop
from conformance.kube import Kube, Object, until
from conformance.prometheus import Prometheus

SPACE = "bookinfo"
ACCOUNT = "prometheus-full-access"
CERTIFICATES = "/etc/istio-output-certs"
MOUNTED = "/etc/prom-certs"
JOB = f"serviceMonitor/{SPACE}/productpage/0"
Row = Callable[..., None]


def role() -> Object:
    """Return the guide's ClusterRole."""
    read = ["get", "list", "watch"]
    core = {"apiGroups": [""], "resources": ["nodes", "services", "endpoints", "pods"], "verbs": read}
    slices = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": ACCOUNT},
        "rules": [core, slices],
    }


def binding() -> Object:
    """Return the binding that the guide leaves out."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SPACE}],
    }


def prometheus() -> Object:
    """Return the guide's Prometheus object: its pods get a sidecar that writes their certificate."""
    annotations = {
        "traffic.sidecar.istio.io/includeInboundPorts": "",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
        "proxy.istio.io/config": f"proxyMetadata:\n  OUTPUT_CERTS: {CERTIFICATES}\n",
        "sidecar.istio.io/userVolumeMount": f'[{{"name": "istio-certs", "mountPath": "{CERTIFICATES}"}}]',
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {"name": "default"},
        "spec": {
            "podMetadata": {"annotations": annotations, "labels": {"sidecar.istio.io/inject": "true"}},
            "volumes": [{"name": "istio-certs", "emptyDir": {"medium": "Memory"}}],
            "volumeMounts": [{"name": "istio-certs", "mountPath": MOUNTED}],
            "replicas": 1,
            "scrapeInterval": "1s",
            "serviceAccountName": ACCOUNT,
            "serviceMonitorSelector": {"matchLabels": {"team": "bookinfo"}},
        },
    }


def monitor() -> Object:
    """Return the guide's ServiceMonitor of productpage's port 9080."""
    tls = {
        "caFile": f"{MOUNTED}/root-cert.pem",
        "certFile": f"{MOUNTED}/cert-chain.pem",
        "keyFile": f"{MOUNTED}/key.pem",
        "insecureSkipVerify": True,
    }
    endpoint = {
        "port": "http-9080",
        "interval": "1s",
        "path": "/metrics",
        "scheme": "https",
        "tlsConfig": tls,
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "productpage", "labels": {"app": "productpage", "team": "bookinfo"}},
        "spec": {"selector": {"matchLabels": {"app": "productpage"}}, "endpoints": [endpoint]},
    }


def mtls(mode: str) -> Object:
    """Return the namespace's PeerAuthentication."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": prober.named(SPACE, "default"),
        "spec": {"mtls": {"mode": mode}},
    }


@pytest.fixture(scope="module")
def guide(kube: Kube) -> Iterator[Prometheus]:
    """Provide what the guide sets up, under STRICT, without a binding of its ClusterRole."""
    with operator.running(kube), kube.namespace(SPACE, **shop.INJECTED):
        kube.apply(mtls("STRICT"))
        kube.apply(shop.productpage(), "-n", SPACE)
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}
        kube.apply([account, role(), prometheus(), monitor()], "-n", SPACE)
        until(
            lambda: kube.has("-n", SPACE, "statefulset", "prometheus-default"),
            "the Operator makes its StatefulSet",
        )
        kube.rollout(SPACE, "statefulset/prometheus-default", "deployment/productpage")
        try:
            yield Prometheus(kube, SPACE, shop.OPERATED)
        finally:
            kube("delete", "clusterrole,clusterrolebinding", ACCOUNT, "--ignore-not-found")


def test_role_without_binding_gives_no_targets(guide: Prometheus, row: Row) -> None:
    """The guide's ClusterRole has no binding: literally followed, Prometheus finds nothing."""
    asked = ("auth", "can-i", "list", "pods", "-n", SPACE, f"--as=system:serviceaccount:{SPACE}:{ACCOUNT}")
    assert guide.kube.run(*asked).stdout.strip() == "no"
    assert guide.targets() == []
    row("ASM's guide: its objects literally", "no targets: the ClusterRole has no binding")


def test_application_port_is_scraped_under_strict(guide: Prometheus, row: Row) -> None:
    """With the binding, productpage's own metrics come over mutual TLS."""
    guide.kube.apply(binding())
    address = guide.kube.address(SPACE, "app=productpage")
    (target,) = guide.wait_for_up({address}, JOB)
    assert target["scrapeUrl"] == f"https://{address}:9080/metrics"
    answer = until(lambda: guide.query("python_gc_objects_collected_total"), "Prometheus answers the query")
    assert {sample["metric"]["job"] for sample in answer} == {"productpage"}
    row(
        "ASM's guide: ServiceMonitor on productpage's port 9080, STRICT",
        "target up over HTTPS, python_gc_objects_collected_total answered",
        Prometheus=guide.version(),
    )


def test_application_port_is_refused_under_permissive(guide: Prometheus, row: Row) -> None:
    """Under PERMISSIVE the sidecar passes the TLS bytes to the application, which cannot answer them."""
    guide.kube.apply(binding())
    guide.kube.apply(mtls("PERMISSIVE"))
    try:
        until(
            lambda: [t["health"] for t in guide.targets(JOB) or guide.targets()] == ["down"],
            "the target is down",
            detail=lambda: [(t["scrapeUrl"], t["health"], t["lastError"]) for t in guide.targets()],
        )
    finally:
        guide.kube.apply(mtls("STRICT"))
    row("ASM's guide: the same under PERMISSIVE", "target down: the application gets the TLS bytes")
