"""Find workloads that may list pods and are not known scrapers: a hint that they could read metrics.

This is only a hint, because most components list pods for another purpose. `KNOWN` names well-known
components that read no metrics of pods, each with the public manifest that gives it the right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from meshscrape.istio.versions import split_image
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe.model import Scraper
from meshscrape.observe.permissions import Grants, Right
from meshscrape.observe.workload import DeclaredWorkload


@dataclass(frozen=True, slots=True)
class Lister:
    """A component that lists pods but reads no metrics; `source` is a public manifest with the right."""

    component: str
    image: str
    source: str


KNOWN: tuple[Lister, ...] = (
    Lister(
        "Argo CD",
        r"argoproj/argocd",
        "argoproj/argo-cd: "
        "manifests/cluster-rbac/application-controller/argocd-application-controller-clusterrole.yaml",
    ),
    Lister(
        "Argo Rollouts",
        r"argoproj/argo-rollouts",
        "argoproj/argo-rollouts: manifests/role/argo-rollouts-clusterrole.yaml",
    ),
    Lister(
        "cert-manager",
        r"jetstack/cert-manager-[a-z]+",
        "cert-manager/cert-manager: deploy/charts/cert-manager/templates/rbac.yaml",
    ),
    Lister(
        "Cilium",
        r"cilium/(?:cilium|operator[a-z-]*|hubble-[a-z]+|clustermesh-apiserver)",
        "cilium/cilium: install/kubernetes/cilium/templates/cilium-agent/clusterrole.yaml",
    ),
    Lister(
        "kube-state-metrics",
        r"kube-state-metrics",
        "kubernetes/kube-state-metrics: examples/standard/cluster-role.yaml",
    ),
    Lister(
        "Prometheus Operator",
        r"(?:[a-z-]*)prometheus-operator",
        "prometheus-operator/prometheus-operator: "
        "example/rbac/prometheus-operator/prometheus-operator-cluster-role.yaml",
    ),
    Lister(
        "Prometheus adapter",
        r"prometheus-adapter",
        "kubernetes-sigs/prometheus-adapter: deploy/manifests/cluster-role.yaml",
    ),
    Lister("metrics-server", r"metrics-server", "kubernetes-sigs/metrics-server: manifests/base/rbac.yaml"),
    Lister(
        "ingress-nginx",
        r"ingress-nginx/controller",
        "kubernetes/ingress-nginx: charts/ingress-nginx/templates/clusterrole.yaml",
    ),
    Lister(
        "Cluster Autoscaler",
        r"cluster-autoscaler",
        "kubernetes/autoscaler: cluster-autoscaler/charts/cluster-autoscaler/templates/clusterrole.yaml",
    ),
    Lister(
        "Calico",
        r"calico/(?:node|kube-controllers|typha|apiserver)",
        "projectcalico/calico: manifests/calico.yaml",
    ),
    Lister(
        "istiod",
        r"(?:istio/)?pilot",
        "istio/istio: manifests/charts/istio-control/istio-discovery/templates/clusterrole.yaml",
    ),
    Lister("Istio CNI", r"install-cni", "istio/istio: manifests/charts/istio-cni/templates/clusterrole.yaml"),
    Lister("Kiali", r"kiali/kiali(?:-operator)?", "kiali/helm-charts: kiali-server/templates/role.yaml"),
    Lister(
        "ExternalDNS",
        r"external-dns(?:/external-dns)?",
        "kubernetes-sigs/external-dns: charts/external-dns/templates/clusterrole.yaml",
    ),
    Lister(
        "Fluent Bit",
        r"fluent(?:-bit)?/fluent-bit|fluent-bit",
        "fluent/helm-charts: charts/fluent-bit/templates/clusterrole.yaml",
    ),
    Lister("CoreDNS", r"coredns(?:/coredns)?", "coredns/deployment: kubernetes/coredns.yaml.sed"),
    Lister("KEDA", r"kedacore/keda[a-z-]*", "kedacore/keda: config/rbac/role.yaml"),
    Lister(
        "Kyverno",
        r"kyverno/[a-z-]+",
        "kyverno/kyverno: charts/kyverno/templates/background-controller/clusterrole.yaml",
    ),
    Lister(
        "Flux",
        r"fluxcd/(?:source|kustomize|helm|notification|image-[a-z]+)-controller",
        "fluxcd/flux2: manifests/rbac/controller.yaml",
    ),
    Lister("Flagger", r"(?:fluxcd|weaveworks)/flagger", "fluxcd/flagger: charts/flagger/templates/rbac.yaml"),
)
_KNOWN_IMAGES = re.compile("|".join(rf"(?:(?:^|/)(?:{lister.image})$)" for lister in KNOWN))


def unknown_listers(
    workloads: Iterable[DeclaredWorkload], scrapers: Iterable[Scraper], inventory: Inventory
) -> tuple[Ref, ...]:
    """Return the workloads that may list pods and are neither scrapers nor well-known components."""
    grants = Grants(inventory)
    accounts = set(grants.accounts(Right("pods")))
    scraping = {scraper.ref for scraper in scrapers}
    return tuple(
        workload.ref
        for workload in workloads
        if (workload.namespace, workload.service_account) in accounts
        and workload.ref not in scraping
        and not _is_well_known(workload)
    )


def _is_well_known(workload: DeclaredWorkload) -> bool:
    """Return whether one of the containers is a well-known component."""
    images = [
        split_image(str(container.get("image", "")))[0] for container in objects.containers(workload.template)
    ]
    return any(_KNOWN_IMAGES.search(image) for image in images)
