"""Plans as people meet them: long texts, and the order in which kubectl takes files."""

from __future__ import annotations

import json
from itertools import pairwise

from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.plan.render.diff import plan_text
from meshscrape.plan.render.files import plan_files
from meshscrape.plan.render.plan_document import plan_document
from support.examples import legacy
from support.objects import cluster, control_plane, deployment, injected_namespace
from support.planning import planned

ALLOW = parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus")


def test_listeners_are_cut_and_the_allow_list_is_not() -> None:
    """Who may scrape is what one decides on; the listeners are the same in every namespace."""
    namespaces = [injected_namespace(name) for name in ("one", "two", "three")]
    workloads = [deployment("web", name) for name in ("one", "two", "three")]
    objects = cluster(control_plane(), namespaces, workloads)
    plan = planned(objects, mode="bootstrap", scrapers=ALLOW, prometheus="none")
    text = plan_text(plan)
    assert text.count("more lines: `meshscrape render` writes them all") == 3
    assert text.count('"exact": "spiffe://cluster.local/ns/monitoring/sa/prometheus"') == 3
    assert len(text.splitlines()) < 700
    files = plan_files(plan)
    for name in ("one", "two", "three"):
        assert "more lines" not in files[f"3-listeners/{name}_configmap_meshscrape-bootstrap.yaml"]
    assert "more lines" not in json.dumps(plan_document(plan))


def test_port_is_removed_before_its_policy() -> None:
    """kubectl goes by file names: without the policies first, the port would be open for a moment."""
    before = cluster(legacy())
    ours = planned(before, mode="legacy", scrapers=ALLOW).apply(before)
    plan = planned(ours, mode="bootstrap", scrapers=ALLOW)
    names = [name for name in plan_files(plan) if name.startswith("6-removal/delete/")]
    kinds = [name.split("_")[2].partition(".")[0] for name in names]
    guards = {"authorizationpolicy", "peerauthentication"}
    assert guards & set(kinds)
    assert not [pair for pair in pairwise(kinds) if pair[0] in guards and pair[1] not in guards]
