"""What a plan makes of a cluster does not depend on how the cluster is written."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.plan.model import Plan
from support.examples import CLUSTERS
from support.kinds import KINDS, inputs
from support.objects import cluster
from support.planning import planned, settled
from support.variations import VARIATIONS, Variation, in_two_namespaces, written_elsewhere

INTENTS: dict[str, dict[str, Any]] = {"bootstrap": {"mode": "bootstrap"}, "defaults": {"scope": "namespace"}}


def objects_of(name: str) -> list[dict[str, Any]]:
    """The objects of an example, as plain data."""
    found = inputs(*KINDS[name][0]) if name in KINDS else cluster(*CLUSTERS[name]())
    return [dict(each.data) for each in found]


def outcome(plan: Plan) -> tuple[int, ...]:
    """How many workloads are secured, unchanged, left alone, held back and refused."""
    found = plan.outcome
    groups = (found.secured, found.unchanged, found.left, found.held, found.refused)
    return tuple(map(len, groups))


@pytest.mark.parametrize("vary", VARIATIONS, ids=lambda vary: vary.__name__)
@pytest.mark.parametrize("name", KINDS)
def test_a_variation_has_the_same_outcome(name: str, vary: Variation) -> None:
    """No variation loses or doubles a scrape, adds an error, changes again, or holds more back."""
    objects = objects_of(name)
    wanted, found = outcome(planned(cluster(objects))), outcome(settled(cluster(vary(objects))))
    if vary is in_two_namespaces:
        assert all(more >= less for more, less in zip(found, wanted, strict=True))
        assert bool(found[3]) == bool(wanted[3])
    else:
        assert found == wanted


@pytest.mark.parametrize("intent", INTENTS)
@pytest.mark.parametrize("name", KINDS)
def test_other_intents_do_not_depend_on_names_either(name: str, intent: str) -> None:
    """An allow list, and settings by Istio's defaults."""
    objects = objects_of(name)
    wanted = outcome(planned(cluster(objects), **INTENTS[intent]))
    assert outcome(settled(cluster(written_elsewhere(objects)), **INTENTS[intent])) == wanted


@pytest.mark.parametrize("name", CLUSTERS)
def test_small_clusters_do_not_depend_on_names_either(name: str) -> None:
    """The examples of single features."""
    objects = objects_of(name)
    assert outcome(settled(cluster(written_elsewhere(objects)))) == outcome(planned(cluster(objects)))


@pytest.mark.parametrize("vary", VARIATIONS, ids=lambda vary: vary.__name__)
def test_every_variation_changes_something(vary: Variation) -> None:
    """A variation that does nothing would prove nothing."""
    objects = objects_of("Online Boutique")
    assert vary(objects) != objects
