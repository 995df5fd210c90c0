"""What the scenarios read from the OpenTelemetry Collector, and what they give to it."""

from __future__ import annotations

import yaml

from conformance import scraper

EXPOSITION = """\
# HELP up The scraping was successful
# TYPE up gauge
up{instance="10.0.0.9:15092",job="shop",otel_scope_name="receiver"} 1
up{instance="[fd00::9]:15092",job="shop",otel_scope_name="receiver"} 0
upstream_total{instance="10.0.0.9:15092",job="shop"} 1
"""


def test_up_is_read_by_instance() -> None:
    """Only `up` itself counts, one value for each instance."""
    assert scraper.up(EXPOSITION) == {"10.0.0.9:15092": True, "[fd00::9]:15092": False}


def test_receivers_become_whole_configuration() -> None:
    """The exporter serves what the receivers read."""
    text = scraper.collecting("receivers:\n  prometheus: {config: {scrape_configs: []}}", "127.0.0.1:9090")
    value = yaml.safe_load(text)
    assert value["exporters"]["prometheus"]["endpoint"] == "127.0.0.1:9090"
    assert value["service"]["pipelines"]["metrics"] == {
        "receivers": ["prometheus"],
        "exporters": ["prometheus"],
    }
