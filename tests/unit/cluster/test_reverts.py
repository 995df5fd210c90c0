"""Which manager takes changes back, and how long to wait for it."""

from __future__ import annotations

from typing import Any

from meshscrape.cluster.reverts import other_managers, reconcile_seconds, taken_back
from meshscrape.kube.objects import Ref
from meshscrape.plan.model import Change
from support.objects import cluster, deployment

FLUX = {"kustomize.toolkit.fluxcd.io/name": "apps"}
ARGO = {"argocd.argoproj.io/instance": "shop"}


def tracked(name: str, namespace: str, marks: dict[str, str]) -> Any:
    """Return a Deployment with the labels of a tool."""
    found = deployment(name, namespace)
    found["metadata"]["labels"] = {**found["metadata"].get("labels", {}), **marks}
    return found


def test_waits_for_the_slowest_tool_of_the_same_namespaces() -> None:
    found = cluster(tracked("a", "shop", ARGO), tracked("b", "bank", FLUX), deployment("c", "free"))
    spaces = ({"shop"}, {"shop", "bank"}, {"free"}, {"bank"})
    assert [reconcile_seconds(found, each) for each in spaces] == [180, 600, 0, 600]


def test_finds_what_this_run_wrote_and_is_planned_again() -> None:
    mine, other = Ref("apps", "Deployment", "shop", "web"), Ref("apps", "Deployment", "shop", "cart")
    changes = [Change("update", ref, {}, {}, "", (), "listeners") for ref in (mine, other, mine)]
    assert taken_back(changes, {("listeners", mine), ("scrape", other)}) == [mine]


def test_names_the_latest_manager_that_is_neither_meshscrape_nor_kubernetes() -> None:
    entries = [
        {"manager": "helm", "time": "2026-11-29T10:00:00Z"},
        {"manager": "meshscrape", "time": "2026-11-29T12:00:00Z"},
        {"manager": "argocd-controller", "time": "2026-11-29T12:00:01Z"},
        {"manager": "kube-controller-manager", "time": "2026-11-29T12:00:02Z"},
        {"manager": "scaler", "time": "2026-11-29T12:00:03Z", "subresource": "scale"},
    ]
    assert other_managers({"metadata": {"managedFields": entries}}) == ["argocd-controller", "helm"]
    assert other_managers({}) == []
