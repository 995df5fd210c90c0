"""Small inputs of the kinds that people install, with what becomes of their workloads."""

from __future__ import annotations

from pathlib import Path

from meshscrape.kube.manifests import load_manifests
from meshscrape.kube.objects import Inventory, load_inventory

DIRECTORY = Path(__file__).parents[1] / "examples"
# Each input with the scraper that reads it, and its workloads by what becomes of them in native mode.
KINDS: dict[str, tuple[tuple[str, ...], dict[str, set[str]]]] = {
    "Istio's charts": (("prometheus",), {"secured": {"gateway"}}),
    "kube-prometheus": (
        ("kube-prometheus", "online-boutique"),
        {"secured": {"frontend", "cart"}, "held": {"gateway"}},
    ),
    "kube-prometheus-stack": (
        ("kube-prometheus-stack", "online-boutique"),
        {"secured": {"frontend", "cart", "gateway"}},
    ),
    "Online Boutique": (("prometheus", "online-boutique"), {"secured": {"frontend", "cart", "gateway"}}),
    "Knative": (("kube-prometheus-stack", "knative"), {"secured": {"activator", "gateway"}}),
    "Kubeflow": (
        ("kube-prometheus-stack", "kubeflow"),
        {"secured": {"dashboard", "metadata-db", "gateway"}},
    ),
    "Argo CD": (
        ("kube-prometheus-stack", "argo-cd"),
        {"secured": {"application-controller", "repo-server", "gateway"}},
    ),
    "Flagger": (("prometheus", "flagger"), {"secured": {"podinfo", "gateway"}}),
}


def inputs(*names: str) -> Inventory:
    """The objects of these files and of Istio's charts."""
    found = []
    for name in ("istio-charts", *names):
        with (DIRECTORY / f"{name}.yaml").open() as lines:
            found += load_manifests(lines, name)
    return load_inventory(found)
