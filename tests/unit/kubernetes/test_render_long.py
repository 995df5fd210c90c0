"""Long texts in plans: people see their beginning, files have all of them."""

from __future__ import annotations

import json

from meshscrape.istio.scrapers import parse_scrapers
from meshscrape.kubernetes.render.diff import plan_text
from meshscrape.kubernetes.render.document import plan_document
from meshscrape.kubernetes.render.files import plan_files
from support.plans import cluster, control_plane, deployment, namespace, planned

ALLOW = parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus")


def test_listeners_are_cut_and_the_allow_list_is_not() -> None:
    """Who may scrape is what one decides on; the listeners are the same in every namespace."""
    namespaces = [namespace(name) for name in ("one", "two", "three")]
    workloads = [deployment("web", name) for name in ("one", "two", "three")]
    objects = cluster(control_plane(), namespaces, workloads)
    plan = planned(objects, mode="bootstrap", scrapers=ALLOW, prometheus="none")
    text = plan_text(plan)
    assert text.count("more lines: `meshscrape render` writes all of them") == 3
    assert text.count('"exact": "spiffe://cluster.local/ns/monitoring/sa/prometheus"') == 3
    assert len(text.splitlines()) < 700
    files = plan_files(plan)
    for name in ("one", "two", "three"):
        assert "more lines" not in files[f"3-listeners/{name}_configmap_meshscrape-bootstrap.yaml"]
    assert "more lines" not in json.dumps(plan_document(plan))
