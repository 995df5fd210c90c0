"""Small inputs of the kinds that people install: no plan makes them worse, and how much it holds back."""

from __future__ import annotations

import pytest

from support.kinds import KINDS, inputs
from support.planning import planned, settled

REFUSED = {"Knative": 1, "Kubeflow": 1, "Flagger": 1}
MODES = ("native", "bootstrap", "legacy")


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
