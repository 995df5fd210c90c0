"""The alerting rules as data and as objects; what they do is tested in Prometheus itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from meshscrape.envoy.refusals import CATALOGUE
from meshscrape.prometheus.rules import (
    IDENTITY_REASONS,
    POLICY_REASONS,
    RuleOptions,
    all_groups,
    prometheus_rule,
    rule_groups,
    rules_file,
)
from support.schemas import assert_valid
from support.upstream import needs_upstream

DOCUMENT = Path(__file__).parents[3] / "docs/prometheus.md"


def test_the_file_is_the_groups() -> None:
    """YAML that Prometheus takes as a rules file."""
    assert yaml.safe_load(rules_file(RuleOptions())) == {"groups": all_groups(RuleOptions())}


@needs_upstream
def test_the_object_is_valid() -> None:
    """A PrometheusRule with the labels that the ruleSelector wants."""
    rule = prometheus_rule(RuleOptions(), "mesh", "monitoring", {"release": "kube"})
    assert_valid(rule)
    assert rule["metadata"]["labels"] == {"release": "kube"}
    assert rule["spec"]["groups"] == all_groups(RuleOptions())


def test_thresholds_reach_the_expressions() -> None:
    """Seconds of a leaf's and of a root's life, and one absence alert per job."""
    rules = {
        (rule["alert"], rule["expr"])
        for group in rule_groups(RuleOptions(900, 86400, ("a", "b")))
        for rule in group["rules"]
    }
    text = "\n".join(expression for _, expression in rules)
    assert "< 900" in text and "< 86400" in text
    assert {expression for name, expression in rules if name == "MeshTargetsAbsent"} == {
        'absent(up{job="a"})', 'absent(up{job="b"})',
    }  # fmt: skip


def test_reasons_are_those_of_the_scrape_proxy() -> None:
    """An alert on a reason that the proxy never gives would never fire; none is in both alerts."""
    known = {refusal.reason for refusal in CATALOGUE}
    assert set(IDENTITY_REASONS) | set(POLICY_REASONS) <= known
    assert not set(IDENTITY_REASONS) & set(POLICY_REASONS)


@pytest.mark.parametrize(
    "alert", [rule["alert"] for group in rule_groups(RuleOptions()) for rule in group["rules"]]
)
def test_every_alert_is_documented(alert: str) -> None:
    """docs/prometheus.md says what each means and what to do."""
    assert f"| `{alert}` |" in DOCUMENT.read_text()
