"""What scrapes yield stays the same: labels before and after, and the selectors that go by them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meshscrape.kube.objects import Inventory
from meshscrape.plan.model import Note
from meshscrape.plan.selectors import LabelChange, broken_selectors
from support.objects import (
    Object,
    cluster,
    config_map,
    control_plane,
    deployment,
    injected_namespace,
    namespace,
    service,
)
from support.planning import changed, codes, refs, settled
from support.scraping_objects import envoy_stats, operated_prometheus, operator, plain_prometheus, pod_monitor

CHANGE = LabelChange("job", "envoy-stats", "istio-secure-merged-metrics")


def mesh(*objects: Any) -> Inventory:
    scraper = plain_prometheus(yaml.safe_dump({"scrape_configs": [envoy_stats()]}, sort_keys=False))
    return cluster(control_plane(), injected_namespace(), deployment(), service(), scraper, *objects)


def rule(expression: str) -> Object:
    """A PrometheusRule with one alert."""
    groups = [{"name": "g", "rules": [{"alert": "A", "expr": expression}]}]
    return operator("PrometheusRule", "alerts", {"groups": groups})


def test_a_moved_scrape_keeps_its_job_label() -> None:
    """So an alert on it goes on, and nothing is noted."""
    plan = settled(mesh(rule('up{job="envoy-stats"} == 0')))
    assert len(plan.outcome.secured) == 1
    assert not {"labels-change", "selector-breaks"} & codes(plan)


def test_new_job_label_is_reported() -> None:
    """With --new-job the label follows the job, and the plan says so."""
    plan = settled(mesh(), new_job=True)
    assert "labels-change" in codes(plan)
    assert len(plan.outcome.secured) == 1


def test_a_note_on_labels_is_at_the_workload_when_there_is_one_alone() -> None:
    """Several workloads whose labels change alike share one note."""
    (note,) = label_notes_of(mesh())
    assert note.ref is not None and note.ref.name == "httpbin"
    (note,) = label_notes_of(mesh(deployment("other")))
    assert note.ref is None


def label_notes_of(inventory: Inventory) -> list[Note]:
    """The notes on labels of a plan with --new-job."""
    return [note for note in settled(inventory, new_job=True).notes if note.code == "labels-change"]


def test_a_selector_that_would_stop_matching_holds_the_move_back() -> None:
    """The rule is named; neither its scraper's jobs nor the ports change."""
    plan = settled(mesh(rule('up{job="envoy-stats"} == 0')), new_job=True)
    assert "selector-breaks" in codes(plan)
    assert {phase for phase, _, _ in refs(plan)} == {"listeners"}
    assert any("alerts" in missing.text for gate in plan.gates for missing in gate.waits_for)


@pytest.mark.parametrize(
    ("selecting", "breaks"),
    [
        (rule('up{job="envoy-stats"}'), True),
        (rule('up{job=~"envoy-.+"}'), True),
        (rule('up{job=~"envoy-stats|istio-secure-merged-metrics"}'), False),
        (rule('up{job="other"}'), False),
        (rule('up{job!="istio-secure-merged-metrics"}'), True),
        (config_map("rules", {"r.yml": 'groups: [{rules: [{expr: \'up{job="envoy-stats"}\'}]}]'}), True),
        (config_map("board", {"b.json": '{"expr": "up{job=\\"envoy-stats\\"}"}'}), True),
        (config_map("adapter", {"c": "rules: [{seriesQuery: 'x{job=\"envoy-stats\"}'}]"}), True),
        (config_map("else", {"c": 'job="envoy-stats"'}), False),
        (
            {
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "h", "namespace": "default"},
                "spec": {"metrics": [{"external": {"metric": {"selector": {"matchLabels": {
                    "job": "envoy-stats"}}}}}]},
            },
            True,
        ),
    ],
)  # fmt: skip
def test_selectors_are_found_wherever_they_are(selecting: Object, breaks: bool) -> None:
    """In rules, rule files, dashboards, the adapter's configuration and autoscalers."""
    assert bool(broken_selectors(cluster(selecting), [CHANGE])) == breaks


def test_a_derived_monitor_keeps_what_its_monitor_has() -> None:
    """Namespaces, interval, limits and the label `job` of the PodMonitor; only a scrape class is new."""
    own = pod_monitor("mesh", secure=False, interval="9s")
    own["spec"] |= {"sampleLimit": 7, "namespaceSelector": {"matchNames": ["default"]}}
    plan = settled(
        cluster(
            control_plane(), injected_namespace(), namespace("monitoring"), deployment(), service(),
            operated_prometheus(podMonitorSelector={"matchLabels": {"release": "kps"}}),
            own | {"metadata": own["metadata"] | {"labels": {"release": "kps", "app": "Helm"}}},
        )
    )  # fmt: skip
    derived = changed(plan, "PodMonitor", "meshscrape-mesh")
    assert derived["metadata"]["labels"] == {"release": "kps", "app.kubernetes.io/managed-by": "meshscrape"}
    spec = derived["spec"]
    assert (spec["sampleLimit"], spec["namespaceSelector"]) == (7, {"matchNames": ["default"]})
    assert (spec["scrapeClass"], spec["podMetricsEndpoints"][0]["interval"]) == ("istio-mtls", "9s")
    assert not {"labels-change"} & codes(plan)
