"""A small shop in the mesh, and the Prometheus that reads it: what the scenarios of plans start from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from conformance import operator, prober, samples
from conformance.kube import Kube, Object, until
from conformance.prober import Prober
from conformance.prometheus import Prometheus

NAMESPACE = "shop"
INJECTED = {"istio-injection": "enabled"}
PROMETHEUS = "app.kubernetes.io/name=prometheus"


def objects() -> list[Object]:
    """Return the shop: httpbin, productpage with metrics of its own, a gateway by the Gateway API."""
    return [*samples.httpbin(), *productpage(), *samples.gateway()]


def productpage() -> list[Object]:
    """Return an application that exports metrics on its own port."""
    labels = {"app": "productpage", "version": "v1"}
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9080",
        "prometheus.io/path": "/metrics",
    }
    container = {
        "name": "productpage",
        "image": "docker.io/istio/examples-bookinfo-productpage-v1:1.20.3",
        "ports": [{"containerPort": 9080}],
    }
    template = {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {"serviceAccountName": "productpage", "containers": [container]},
    }
    service = {"ports": [{"name": "http-9080", "port": 9080}], "selector": {"app": "productpage"}}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "productpage"}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "productpage", "labels": {"app": "productpage"}},
            "spec": service,
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "productpage"},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        },
    ]


@contextlib.contextmanager
def shop(kube: Kube, *, strict: bool, revision: str = "") -> Iterator[str]:
    """Provide the shop in a namespace of its own, running."""
    label = {"istio.io/rev": revision} if revision else INJECTED
    with kube.namespace(NAMESPACE, **label):
        mode = "STRICT" if strict else "PERMISSIVE"
        kube.apply(
            {
                "apiVersion": "security.istio.io/v1",
                "kind": "PeerAuthentication",
                "metadata": prober.named(NAMESPACE, "default"),
                "spec": {"mtls": {"mode": mode}},
            }
        )
        kube.apply(objects(), "-n", NAMESPACE)
        until(
            lambda: kube.has("-n", NAMESPACE, "deployment", "httpbin-gateway-istio"),
            "istiod makes the gateway",
        )
        kube.rollout(NAMESPACE)
        yield NAMESPACE


@contextlib.contextmanager
def addon(kube: Kube, *, secure: bool) -> Iterator[Prometheus]:
    """Provide Istio's Prometheus add-on in istio-system, running."""
    things = samples.prometheus(secure=secure)
    kube.apply(things)
    try:
        kube.rollout("istio-system", "deployment/prometheus")
        yield Prometheus(kube, "istio-system", PROMETHEUS)
    finally:
        kube("delete", "--ignore-not-found", "-f", "-", stdin=_list(things))
        until(lambda: not kube.terminating("istio-system"), "Prometheus has gone")


def _list(things: list[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": things})


def addresses(kube: Kube) -> dict[str, str]:
    """Return the address of each pod of the shop, by the name of its application."""
    found = {}
    for pod in kube.pods(NAMESPACE):
        labels = pod["metadata"]["labels"]
        name = labels.get("app") or labels["gateway.networking.k8s.io/gateway-name"]
        found[name] = str(pod["status"]["podIP"])
    return found


@contextlib.contextmanager
def probers(kube: Kube, space: str = "outside") -> Iterator[Prober]:
    """Provide a stranger: a workload of the mesh that is no scraper."""
    with kube.namespace(space):
        yield prober.start(kube, space, "stranger")


OPERATED = "operator.prometheus.io/name"  # a label of the pods that the Operator makes


@contextlib.contextmanager
def found(kube: Kube, kind: str) -> Iterator[Prometheus | None]:
    """Provide what is there before the plan: the add-on, an empty namespace, or a running Operator."""
    if kind == "existing":
        with addon(kube, secure=False) as prometheus:
            yield prometheus
    elif kind == "addon":
        with kube.namespace("monitoring"):
            yield None
    else:
        with operator.running(kube), kube.namespace("monitoring"):
            yield None


def places(kind: str) -> tuple[str, ...]:
    """Return the namespaces with workloads of the Prometheus of a kind."""
    return ("istio-system",) if kind == "existing" else ("monitoring",)


def rendered(kube: Kube, kind: str) -> Prometheus:
    """Return the Prometheus that a plan has made, running."""
    selector = OPERATED if kind == "operator" else "app.kubernetes.io/instance=meshscrape-prometheus"
    until(lambda: kube.pods("monitoring", selector), "the new Prometheus runs")
    return Prometheus(kube, "monitoring", selector)
