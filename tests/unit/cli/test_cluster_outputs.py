"""The commands that print what a cluster's scrapers need."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from meshscrape.cli import dashboard, prometheus_config, rules
from meshscrape.errors import InputError
from meshscrape.prometheus.kubernetes_sd import ClusterJobs, drop_secured, secure_jobs
from meshscrape.prometheus.rules import RuleOptions, all_groups
from support.schemas import assert_valid
from support.upstream import needs_upstream


def printed(command: click.Command, *arguments: str) -> str:
    """What a command prints; its errors are raised."""
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.mark.parametrize(
    "source", [("--kubernetes",), ("--direct", "--certs", "/c", "--targets", "/t")], ids=["cluster", "direct"]
)
def test_own_series_are_dropped_unless_kept(source: tuple[str, ...]) -> None:
    """An application's `up` would forge the scrape's; federation needs it, and says so."""
    for kept, words in ((False, ()), (True, ("--keep-own-series",))):
        config = yaml.safe_load(printed(prometheus_config.command, *source, *words))
        dropping = ["metric_relabel_configs" in job for job in config["scrape_configs"]]
        assert dropping == [not kept] * len(dropping)


@pytest.mark.parametrize("collector", ["prometheus", "vmagent", "otel"])
def test_jobs_of_a_cluster(collector: str) -> None:
    """The secure jobs, for whoever reads them, with a timeout that fits into the interval."""
    text = printed(
        prometheus_config.command, "--kubernetes", "--for", collector, "--namespace", "shop", "--certs", "/c"
    )
    config = yaml.safe_load(text)
    if collector == "otel":
        config = config["receivers"]["prometheus"]["config"]
    assert config["global"] == {"scrape_interval": "15s", "scrape_timeout": "10s"}
    wanted = secure_jobs(ClusterJobs("/c", ("shop",)))
    assert [job["tls_config"] for job in config["scrape_configs"]] == [job["tls_config"] for job in wanted]
    assert (config["scrape_configs"] == wanted) is (collector != "otel")


def test_the_default_directory_is_where_the_sidecar_writes() -> None:
    """Without --certs, the place that the planned pods use."""
    config = yaml.safe_load(printed(prometheus_config.command, "--kubernetes"))
    assert config["scrape_configs"] == secure_jobs(ClusterJobs("/etc/istio-output-certs"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--kubernetes", "--proxy", "127.0.0.1:15094"),
        ("--kubernetes", "--direct"),
        ("--kubernetes", "--targets", "/t"),
        ("--namespace", "shop"),
        ("--kubernetes", "--existing", __file__),
        ("--kubernetes", "--for", "otel", "--existing", __file__),
        ("--kubernetes", "--scrape-interval", "0s"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...]) -> None:
    """Rather than leaving one out without a word."""
    with pytest.raises(InputError):
        printed(prometheus_config.command, *arguments)


def test_an_existing_configuration_keeps_its_text(tmp_path: Path) -> None:
    """The jobs are added and the plaintext job lets secured pods go; comments stay; again changes nothing."""
    path = tmp_path / "prometheus.yml"
    path.write_text(
        "# ours\nglobal: {scrape_interval: 1m}\nscrape_configs:\n"
        "- job_name: kubernetes-pods  # all pods\n  kubernetes_sd_configs:\n  - role: pod\n"
    )
    text = printed(prometheus_config.command, "--kubernetes", "--existing", str(path))
    assert "# ours" in text and "# all pods" in text
    config = yaml.safe_load(text)
    assert config["scrape_configs"][0]["relabel_configs"] == [drop_secured()]
    own = config["scrape_configs"][1:]
    expected = secure_jobs(ClusterJobs("/etc/istio-output-certs"))
    assert [job["job_name"] for job in own] == [job["job_name"] for job in expected]
    assert [job["tls_config"] for job in own] == [job["tls_config"] for job in expected]
    keeps_name = {"source_labels": ["job"], "target_label": "job", "replacement": "kubernetes-pods"}
    assert any(keeps_name.items() <= rule.items() for rule in own[0]["relabel_configs"])
    path.write_text(text)
    assert printed(prometheus_config.command, "--kubernetes", "--existing", str(path)) == text


def test_rules_as_a_file_with_thresholds() -> None:
    """Durations as Go writes them."""
    text = printed(rules.command, "--certificate-left", "90m", "--root-left", "48h")
    assert yaml.safe_load(text) == {"groups": all_groups(RuleOptions(5400, 172800))}


@needs_upstream
def test_rules_as_an_object() -> None:
    """With the labels that a ruleSelector asks for."""
    rule = yaml.safe_load(
        printed(rules.command, "--for", "operator", "--namespace", "watch", "--label", "release=kube")
    )
    assert_valid(rule)
    assert rule["metadata"]["namespace"] == "watch"
    assert rule["metadata"]["labels"] == {"release": "kube", "app.kubernetes.io/managed-by": "meshscrape"}


@pytest.mark.parametrize(
    "arguments", [("--label", "release"), ("--certificate-left", "0s"), ("--root-left", "x")]
)
def test_bad_values_are_named(arguments: tuple[str, ...]) -> None:
    """The option is in the message."""
    with pytest.raises(InputError) as caught:
        printed(rules.command, *arguments)
    assert arguments[0] in str(caught.value)


def test_the_dashboard_is_json() -> None:
    """One document, ready to import."""
    assert json.loads(printed(dashboard.command))["title"] == "Mesh scraping over mTLS"
