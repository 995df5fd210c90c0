"""Workloads that may list pods: a hint, from which well-known components are left out."""

from __future__ import annotations

import pytest

from meshscrape.observe.pod_listers import KNOWN
from support.objects import Object, control_plane, deployment, namespace, observed
from support.scraping_objects import kubernetes_pods, permissions, plain_prometheus, prometheus


def lister(name: str, image: str) -> list[Object]:
    app = deployment(name, "tools")
    app["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return [app, *permissions(name, "tools")]


def hints(*parts: object) -> list[str]:
    found = observed(control_plane(), namespace("tools"), *parts)  # type: ignore[arg-type]
    return [ref.name for ref in found.unknown_listers]


def test_an_unknown_program_that_lists_pods_is_a_hint() -> None:
    """Only the right to list pods counts, and only of workloads that are there."""
    assert hints(lister("mystery", "corp.example/mystery:1")) == ["mystery"]
    without = [deployment("mystery", "tools"), *permissions("mystery", "tools", resources=["services"])]
    assert hints(without) == []


def test_scrapers_are_not_hints() -> None:
    """What they read is known, or they are named as unread."""
    assert hints(prometheus(kubernetes_pods())) == []
    assert hints(plain_prometheus(), permissions("prometheus", "monitoring")) == []


@pytest.mark.parametrize(
    "image",
    [
        "quay.io/argoproj/argocd:v3.2.0",
        "quay.io/jetstack/cert-manager-controller:v1.19.0",
        "quay.io/jetstack/cert-manager-cainjector:v1.19.0",
        "quay.io/cilium/cilium:v1.18.0",
        "quay.io/cilium/operator-generic:v1.18.0",
        "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.17.0",
        "quay.io/prometheus-operator/prometheus-operator:v0.85.0",
        "registry.k8s.io/metrics-server/metrics-server:v0.8.0",
        "registry.k8s.io/ingress-nginx/controller:v1.13.0",
        "registry.k8s.io/coredns/coredns:v1.12.0",
        "docker.io/calico/node:v3.30.0",
        "ghcr.io/fluxcd/flagger:1.42.0",
    ],
)
def test_well_known_components_are_left_out(image: str) -> None:
    """A usual cluster gives no list that nobody reads."""
    assert hints(lister("known", image)) == []


@pytest.mark.parametrize(
    "image", ["corp.example/coredns-metrics:1", "corp.example/my-argocd/tool:1", "pilots:1"]
)
def test_a_similar_name_is_not_a_well_known_component(image: str) -> None:
    """The end of the image's path counts, as a whole."""
    assert hints(lister("similar", image)) == ["similar"]


def test_every_well_known_component_has_its_source() -> None:
    """A repository and the manifest that gives the right, so that it can be looked up."""
    for known in KNOWN:
        repository, _, manifest = known.source.partition(": ")
        assert repository.count("/") == 1 and "/" in manifest, known.component
