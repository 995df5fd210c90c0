"""The Grafana dashboard: a model that Grafana reads as it is written, and panels that do not overlap."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

from meshscrape.prometheus.recorded import QUERIES, RECORDINGS, recorded_dashboard
from meshscrape.prometheus.rules import RuleOptions, rule_groups
from meshscrape.prometheus.selectors import PLAINTEXT, SECURE, SECURE_PORTS
from support.dashboard import dashboard

WIDTH = 24
BOARD = dashboard()
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def test_grafanas_own_model_knows_every_field() -> None:
    """Reading it into the model of Grafana's SDK and writing it again loses and changes nothing."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    read = Dashboard.from_json(json.loads(json.dumps(BOARD)))
    assert not list(_lost(BOARD, json.loads(JSONEncoder().encode(read)), ""))


def test_panels_have_a_place_of_their_own() -> None:
    """Unique numbers, within the grid of 24 columns, none on top of another."""
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= WIDTH for place in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)


def test_dashboard_imports_with_any_data_source() -> None:
    """Every panel and query asks the data source that is chosen at the top."""
    assert BOARD["templating"]["list"][0]["type"] == "datasource"
    sources = [panel["datasource"] for panel in PANELS]
    sources += [target["datasource"] for panel in PANELS for target in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_panels_explain_themselves() -> None:
    """A description on each, so that a reader who meets it at night knows what it says."""
    assert all(panel["description"] for panel in PANELS)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_dashboard_shows_the_metrics_of_the_alerts() -> None:
    """Targets, scrape latency, certificates, refusals, plaintext, verify: the metrics of all are there."""
    queries = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    for metric in (
        "up{", "scrape_duration_seconds", "istio_agent_cert_expiry_seconds",
        "meshscrape_scrape_refusals_total", "envoy_http_rbac_denied", "15020|15090",
        "meshscrape_check_failed", "meshscrape_plaintext_exposed",
    ):  # fmt: skip
        assert metric in queries


def test_dashboard_selects_the_same_series_as_the_alerts() -> None:
    """The dashboard's queries choose secure and plaintext targets by the same matchers as the rules."""
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    assert any(SECURE in query for query in queries)
    assert any(PLAINTEXT in query for query in queries)


def test_dashboard_shows_moved_jobs_with_their_old_label() -> None:
    """A migrated scrape keeps its old `job` label, so secure ports are selected by port, too."""
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    by_name = [query for query in queries if SECURE in query]
    assert by_name
    assert all(f"or {query.split('{')[0].rpartition('(')[2]}" in query for query in by_name)
    assert all(SECURE_PORTS in query for query in by_name)


def test_the_recorded_dashboard_asks_for_recorded_series() -> None:
    """Every query that has a recorded form is replaced, nothing else changes, and every recording is used."""
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    assert set(QUERIES) <= set(queries)
    recorded = json.loads(recorded_dashboard(json.dumps(BOARD)))
    panels = [panel for panel in recorded["panels"] if panel["type"] != "row"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    assert found == [QUERIES.get(query, query) for query in queries]
    assert all(sum(each.name in query for query in found) > 1 for each in RECORDINGS)
    for panel, old in zip(recorded["panels"], BOARD["panels"], strict=True):
        assert {**panel, "targets": 0} == {**old, "targets": 0}


def test_alerts_have_distinct_names_and_known_severities() -> None:
    """One name, one meaning (one alert per job that must have targets)."""
    rules = [rule for group in rule_groups(RuleOptions()) for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert {rule["labels"]["severity"] for rule in rules} == {"critical", "warning", "info"}


def _lost(ours: Any, read: Any, path: str) -> Any:
    """Paths where `read` lacks or changes what `ours` has."""
    if isinstance(ours, dict) and isinstance(read, dict):
        for key, value in ours.items():
            if key not in read:
                yield f"{path}/{key}"
            else:
                yield from _lost(value, read[key], f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        for number, (one, other) in enumerate(zip(ours, read, strict=True)):
            yield from _lost(one, other, f"{path}[{number}]")
    elif ours != read:
        yield path
