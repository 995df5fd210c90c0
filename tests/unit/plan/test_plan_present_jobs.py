"""Jobs over mutual TLS that are there already, under names of the user's own."""

from __future__ import annotations

import pytest

from support import objects, scraping_objects
from support.examples import CLUSTERS, secured
from support.planning import codes, observe, refs, settled


@pytest.mark.parametrize("name", ["secured", "operator"])
def test_a_job_that_reads_all_secure_ports_gets_no_other_beside_it(name: str) -> None:
    """With ours in addition, each pod would be scraped twice."""
    inventory = objects.cluster(*CLUSTERS[name]())
    plan = settled(inventory)
    assert not [each for each in refs(plan) if each[:2] == ("scrape", "create")]
    assert "read-already" in codes(plan)
    pitfalls = {pitfall.code for pitfall in observe(plan.apply(inventory)).pitfalls}
    assert "scraped-twice" not in pitfalls


def test_a_job_that_reads_some_of_them_does_not_count() -> None:
    """Else the others would be scraped by nobody."""
    parts = secured()
    other = objects.deployment("other", "elsewhere", annotations={"prometheus.io/scrape": "true"})
    joined = objects.namespace("elsewhere", istio_injection="enabled")
    job = scraping_objects.secure_job("secure")
    job["kubernetes_sd_configs"] = [{"role": "pod", "namespaces": {"names": ["default"]}}]
    kept = [each for each in parts if each["metadata"]["name"] != "prometheus"]
    inventory = objects.cluster(kept, joined, other, scraping_objects.prometheus(job))
    plan = settled(inventory)
    assert ("scrape", "update", "ConfigMap/prometheus") in refs(plan)
    assert "read-already" not in codes(plan)
