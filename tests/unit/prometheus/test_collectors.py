"""The jobs for vmagent and the OpenTelemetry Collector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from meshscrape.prometheus.addon import prometheus_config
from meshscrape.prometheus.collectors import Collector, collector_config, collector_text
from meshscrape.prometheus.config import ScrapeOptions, ScrapeProxyAccess, scrape_configs
from meshscrape.prometheus.kubernetes_sd import ApplicationPort
from meshscrape.prometheus.new_prometheus import PrometheusOptions

WEB = ApplicationPort("shop", "web", {"app": "web"}, 9080)
CONFIG = prometheus_config(PrometheusOptions("monitoring", applications=(WEB,)))
LOCAL = {
    "scrape_configs": [
        {"job_name": "a", "file_sd_configs": [{"files": ["/t/a.json"], "refresh_interval": "5s"}]},
        {"job_name": "b", "body_size_limit": "1MB", "static_configs": [{"targets": ["a:1"]}]},
    ]
}


def keys(data: Any) -> Iterator[str]:
    """Every key at every depth."""
    if isinstance(data, dict):
        yield from data
        for value in data.values():
            yield from keys(value)
    elif isinstance(data, list):
        for value in data:
            yield from keys(value)


def strings(data: Any) -> Iterator[str]:
    """Every string at every depth."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from strings(value)


def test_vmagent_gets_nothing_that_it_refuses() -> None:
    """Its parser is strict: no rules, no evaluation interval, no HTTP/2 switch, no refresh of files."""
    unknown = {"rule_files", "evaluation_interval", "enable_http2", "refresh_interval", "body_size_limit"}
    assert unknown & set(keys(CONFIG)) and unknown & set(keys(LOCAL))
    assert not unknown & set(keys(collector_config("vmagent", CONFIG)))
    assert not unknown & set(keys(collector_config("vmagent", LOCAL)))


def test_vmagent_scrapes_the_same() -> None:
    """Jobs, credentials, discovery and relabeling are untouched."""
    ours, its = CONFIG["scrape_configs"], collector_config("vmagent", CONFIG)["scrape_configs"]
    for field in ("job_name", "scheme", "tls_config", "kubernetes_sd_configs", "relabel_configs"):
        assert [job.get(field) for job in its] == [job.get(field) for job in ours]


def test_the_collectors_dollars_are_doubled() -> None:
    """`$1` would be an environment variable; what the Collector reads after expansion is the same job."""
    config = collector_config("otel", CONFIG)["receivers"]["prometheus"]["config"]
    assert "[$$1]:$$2" in set(strings(config))
    assert _expanded(config)["scrape_configs"] == CONFIG["scrape_configs"]


def test_the_collector_gets_no_rules() -> None:
    """The receiver refuses rule_files."""
    config = collector_config("otel", CONFIG)["receivers"]["prometheus"]["config"]
    assert set(config) == {"global", "scrape_configs"}
    assert "evaluation_interval" not in config["global"]


@pytest.mark.parametrize("collector", ["prometheus", "vmagent", "otel"])
def test_the_text_is_the_data(collector: Collector) -> None:
    """YAML without anchors, with a comment that says where it goes."""
    text = collector_text(collector, CONFIG)
    assert yaml.safe_load(text) == collector_config(collector, CONFIG)
    assert text.startswith("# Made by meshscrape. ")
    assert "&id" not in text


def test_direct_jobs_carry_a_comment_about_unverified_targets() -> None:
    """The text warns where the server stays unverified, and only there."""
    assert "insecure_skip_verify.\n" in collector_text("prometheus", CONFIG)
    assert "insecure_skip_verify" not in collector_text("prometheus", LOCAL)


@pytest.mark.parametrize("collector", ["vmagent", "otel"])
def test_jobs_through_the_scrape_proxy_stay_so(collector: Collector) -> None:
    """A proxied job keeps its proxy and its token in every variant."""
    proxy = ScrapeProxyAccess("127.1.0.2:15094", "127.1.0.2:15095", "/run/token")
    config = {"scrape_configs": scrape_configs(ScrapeOptions(proxy))}
    made = collector_config(collector, config)
    found = made if collector == "vmagent" else made["receivers"]["prometheus"]["config"]
    assert [job.get("proxy_url") for job in found["scrape_configs"]] == [
        job.get("proxy_url") for job in config["scrape_configs"]
    ]
    assert all(job["authorization"]["credentials_file"] == "/run/token" for job in found["scrape_configs"])


def test_the_input_is_left_alone() -> None:
    """Converting changes no job of the configuration that was given."""
    before = yaml.safe_dump(CONFIG)
    for collector in ("vmagent", "otel"):
        collector_config(collector, CONFIG)  # type: ignore[arg-type]
    assert yaml.safe_dump(CONFIG) == before


def _expanded(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, dict):
        return {key: _expanded(each) for key, each in value.items()}
    return [_expanded(each) for each in value] if isinstance(value, list) else value
