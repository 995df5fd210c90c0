"""The queries of alerts and dashboard in the Prometheus of a running mesh: real names, no false alarm."""

from __future__ import annotations

import re

import pytest

from meshscrape.prometheus.rules import RuleOptions, rule_groups
from support.dashboard import dashboard
from support.mesh import Up
from support.polling import eventually

ALERTS = {rule["alert"]: rule["expr"] for group in rule_groups(RuleOptions()) for rule in group["rules"]}
# Each needs something that a healthy local mesh has, with the labels that the alert's text uses.
PRESENT = {
    "targets": ('up{job=~"istio-secure-.+"}', {"namespace", "pod", "workload"}),
    "certificates": (
        'istio_agent_cert_expiry_seconds{resource_name="default"}',
        {"namespace", "pod", "workload"},
    ),
    "refusals": (
        'envoy_http_rbac_denied{envoy_http_conn_manager_prefix=~"secure_.+"}',
        {"namespace", "pod", "workload"},
    ),
    "met certificates": (
        "meshscrape_scrape_target_certificate_expiration_timestamp_seconds",
        {"namespace", "workload"},
    ),
    "the scraper's certificate": (
        "meshscrape_scrape_proxy_certificate_expiration_timestamp_seconds",
        {"trust_domain"},
    ),
    "connections that the CA ended": ("meshscrape_ca_connections_ended_total", {"instance", "stage"}),
    "discovery": ("meshscrape_scrape_proxy_source_up", {"source"}),
}


@pytest.mark.parametrize("what", PRESENT)
def test_metrics_of_every_alert_exist(what: str, example_mesh: Up) -> None:
    """The series exist in a mesh that is up, under these names and labels."""
    query, labels = PRESENT[what]
    found = eventually(lambda: example_mesh.query(query), what=query)
    assert labels <= set(found[0]["metric"])


# Other tests ask this mesh as strangers, which is what these are about.
REFUSALS = {"MeshScrapeRefused", "MeshTargetIdentityRefused", "MeshScrapeProxyRefused"}


@pytest.mark.parametrize("alert", sorted(ALERTS.keys() - REFUSALS))
def test_no_alert_fires_in_a_healthy_mesh(alert: str, example_mesh: Up) -> None:
    """Every expression can be evaluated, and finds nothing."""
    example_mesh.wait_until_up()
    eventually(lambda: example_mesh.query("istio_agent_cert_expiry_seconds"))
    assert example_mesh.query(ALERTS[alert]) == []


def test_scrape_by_a_stranger_fires_an_alert(example_mesh: Up) -> None:
    """verify asks as an identity that is not on the allow lists: the workloads say so, and it fires."""
    example_mesh.wait_until_up()
    done = example_mesh.run("verify")
    assert done.returncode in (0, 1), done.stderr
    found = eventually(lambda: example_mesh.query(ALERTS["MeshScrapeRefused"]), what="the alert")
    assert {"namespace", "pod", "workload"} <= set(found[0]["metric"])


def test_main_panels_of_the_dashboard_have_data(example_mesh: Up) -> None:
    """The queries of the panels on targets, durations and certificates find series."""
    panels = {panel["title"]: panel for panel in dashboard()["panels"]}
    for title in ("Targets up", "Scrape duration", "Certificate life left", "Handshakes of the scrape proxy"):
        for target in panels[title]["targets"]:
            query = re.sub(r"\$(job|namespace)", ".*", target["expr"]).replace("$__rate_interval", "1m")
            assert eventually(lambda query=query: example_mesh.query(query), what=query)
