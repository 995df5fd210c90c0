"""Small inputs of the kinds that people install: no plan makes them worse, and how much it holds back."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshscrape.kube.manifests import load_manifests
from meshscrape.kube.objects import Inventory, load_inventory
from support.planning import planned, settled

DIRECTORY = Path(__file__).parents[2] / "examples"
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
REFUSED = {"Knative": 1, "Kubeflow": 1, "Flagger": 1}
MODES = ("native", "bootstrap", "legacy")


def inputs(*names: str) -> Inventory:
    """The objects of these files and of Istio's charts."""
    found = []
    for name in ("istio-charts", *names):
        with (DIRECTORY / f"{name}.yaml").open() as lines:
            found += load_manifests(lines, name)
    return load_inventory(found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_plan_makes_it_worse(kind: str, mode: str) -> None:
    """No scrape is lost or doubled, no error is new, and a second plan changes nothing."""
    settled(inputs(*KINDS[kind][0]), mode=mode)


@pytest.mark.parametrize("kind", KINDS)
def test_each_workload_gets_its_expected_outcome(kind: str) -> None:
    """Who is read now is secured; a template that another controller makes is refused, and stays."""
    files, wanted = KINDS[kind]
    outcome = planned(inputs(*files)).outcome
    assert {ref.name for ref in outcome.secured} == wanted["secured"]
    assert {ref.name for ref in outcome.held} == wanted.get("held", set())
    assert len(outcome.refused) == REFUSED.get(kind, 0)


def test_share_of_held_back_workloads_is_bounded() -> None:
    """Of all workloads that can be changed, in all modes: only those that no scraper reads are held back."""
    held, total = 0, 0
    for files, wanted in KINDS.values():
        for mode in MODES:
            outcome = planned(inputs(*files), mode=mode).outcome
            total += len(outcome.secured) + len(outcome.held)
            held += len([ref for ref in outcome.held if ref.name not in wanted.get("held", set())])
    assert total > 50
    assert held == 0
