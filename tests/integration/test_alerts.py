"""The alerting rules in Prometheus' own rule engine: what fires, and what stays silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from meshscrape.prometheus.recorded import QUERIES
from meshscrape.prometheus.rules import RuleOptions, rule_groups, rules_file, verifier_rules
from support.dashboard import dashboard
from support.promtool import check_rules, run

POD = {"namespace": "shop", "pod": "web-1", "workload": "web"}
SECURE = (
    'job="istio-secure-merged-metrics",namespace="shop",pod="web-1",workload="web",instance="10.0.0.1:15092"'
)
PLAIN = 'job="kubernetes-pods",namespace="shop",pod="web-1",instance="10.0.0.1:15020"'
HOUR = 3600
TWICE = {"job": "kubernetes-pods", "namespace": "shop", "pod": "web-1"}
WEB = {"namespace": "shop", "workload": "web"}
EXPIRY = f'istio_agent_cert_expiry_seconds{{resource_name="default",{SECURE}}}'
PROXY_EXPIRY = "meshscrape_scrape_target_certificate_expiration_timestamp_seconds"
OWN_EXPIRY = 'meshscrape_scrape_proxy_certificate_expiration_timestamp_seconds{trust_domain="cluster.local"}'


def met(role: str) -> str:
    """A certificate that verify met."""
    return f'meshscrape_verify_certificate_not_after_seconds{{namespace="shop",workload="web",role="{role}"}}'


def refusals(reason: str) -> str:
    """A counter of the scrape proxy."""
    return f'meshscrape_scrape_refusals_total{{reason="{reason}",namespace="shop",workload="web",target="a"}}'


def denied(manager: str) -> str:
    """Envoy's counter of refusals by RBAC."""
    return f'envoy_http_rbac_denied{{envoy_http_conn_manager_prefix="{manager}",{SECURE}}}'


def stock(port: str) -> str:
    """The same as a stock Istio proxy names it, for a port of the override."""
    return f'envoy_http_meshscrape_{port}_rbac{{authz_enforce_result="denied",{SECURE}}}'


def exposed(kind: str, announced: str) -> str:
    """Ports in plaintext that verify found."""
    labels = f'namespace="shop",workload="web",kind="{kind}",announced="{announced}"'
    return f"meshscrape_plaintext_exposed{{{labels}}}"


def check(name: str, severity: str) -> str:
    """A check of verify."""
    return f'meshscrape_check_failed{{check="{name}",namespace="shop",workload="web",severity="{severity}"}}'


def ended(cause: str) -> str:
    """Connections that the CA has ended."""
    return f'meshscrape_ca_connections_ended_total{{instance="ca",stage="silent",cause="{cause}"}}'


@dataclass(frozen=True)
class Case:
    """Series (one sample a minute) and the alerts that they mean at a time: label sets that must fire."""

    name: str
    alert: str
    series: Mapping[str, str]
    at: str
    firing: tuple[Mapping[str, str], ...] = ()


CASES = [
    Case("a workload near the limit", "MeshSamplesNearLimit",
         {f"scrape_samples_scraped{{{SECURE}}}": "450000x20"}, "15m",
         ({**POD, "job": "istio-secure-merged-metrics", "instance": "10.0.0.1:15092"},)),
    Case("an ordinary workload", "MeshSamplesNearLimit",
         {f"scrape_samples_scraped{{{SECURE}}}": "5000x20"}, "15m"),
    Case("down for long", "MeshTargetDown", {f"up{{{SECURE}}}": "0x20"}, "6m",
         ({**POD, "job": "istio-secure-merged-metrics", "instance": "10.0.0.1:15092"},)),
    Case("down for a moment", "MeshTargetDown", {f"up{{{SECURE}}}": "1 0 0 1x10"}, "6m"),
    Case("another job is down", "MeshTargetDown", {'up{job="kubernetes-nodes"}': "0x20"}, "10m"),
    Case("no targets", "MeshTargetsAbsent", {'up{job="prometheus"}': "1x20"}, "11m",
         ({"job": "istio-secure-merged-metrics"},)),
    Case("targets that are down are not absent", "MeshTargetsAbsent", {f"up{{{SECURE}}}": "0x20"}, "11m"),
    Case("targets of a derived job are not absent", "MeshTargetsAbsent",
         {'up{job="kubernetes-pods",instance="10.0.0.1:15092"}': "1x20"}, "11m"),
    Case("a pool failed again and again", "MeshScrapePoolFailed",
         {'prometheus_target_scrape_pools_failed_total{instance="p"}': "1+1x20"}, "10m",
         ({"instance": "p"},)),
    Case("a pool failed long ago", "MeshScrapePoolFailed",
         {'prometheus_target_scrape_pools_failed_total{instance="p"}': "1x30"}, "25m"),
    Case("hours left", "MeshCertificateNearExpiry", {EXPIRY: f"{5 * HOUR}-60x20"}, "6m", (POD,)),
    Case("renewed in time", "MeshCertificateNearExpiry",
         {EXPIRY: f"{12 * HOUR}-60x5 {24 * HOUR}-60x9"}, "6m"),
    Case("expired is an alert of its own", "MeshCertificateNearExpiry", {EXPIRY: "-60-60x20"}, "6m"),
    Case("expired", "MeshCertificateExpired", {EXPIRY: "60-60x20"}, "5m", (POD,)),
    Case("not expired yet", "MeshCertificateExpired", {EXPIRY: "600-60x20"}, "5m"),
    Case("met by verify", "MeshServedCertificateNearExpiry", {met("server"): f"{4 * HOUR}x20"}, "6m", (WEB,)),
    Case("met by the proxy", "MeshServedCertificateNearExpiry",
         {f'{PROXY_EXPIRY}{{namespace="shop",workload="web",target="a"}}': f"{4 * HOUR}x20"}, "6m", (WEB,)),
    Case("a long-lived leaf", "MeshServedCertificateNearExpiry", {met("server"): f"{9 * HOUR}x20"}, "6m"),
    Case("the scraper's own", "MeshScraperCertificateNearExpiry", {OWN_EXPIRY: f"{HOUR}x20"}, "6m",
         ({"trust_domain": "cluster.local"},)),
    Case("the scraper's own, renewed", "MeshScraperCertificateNearExpiry",
         {OWN_EXPIRY: f"{20 * HOUR}x20"}, "6m"),
    Case("a root with three weeks left", "MeshRootNearExpiry",
         {met("root"): f"{21 * 24 * HOUR}x20"}, "6m", (WEB,)),
    Case("a root with a year left", "MeshRootNearExpiry", {met("root"): f"{365 * 24 * HOUR}x20"}, "6m"),
    Case("refused by meshscrape's Envoy", "MeshScrapeRefused",
         {denied("secure_merged_metrics_15092"): "0x10 1x9"}, "12m", (POD,)),
    Case("refused at the first sample", "MeshScrapeRefused",
         {denied("secure_metrics_15091"): "_x15 1x9"}, "17m", (POD,)),
    Case("refused by a stock proxy with the override, on both ports", "MeshScrapeRefused",
         {stock("secure_metrics_15091"): "0x10 1x9", stock("secure_merged_metrics_15092"): "0x10 1x9"},
         "12m", (POD,)),
    Case("refused long ago", "MeshScrapeRefused",
         {denied("secure_merged_metrics_15092"): "0 3x30"}, "25m"),
    Case("a policy of the application's own traffic", "MeshScrapeRefused",
         {denied("inbound_8000"): "0+1x20"}, "12m"),
    Case("another identity answers", "MeshTargetIdentityRefused", {refusals("wrong-identity"): "0x5 1x20"},
         "7m", ({**WEB, "reason": "wrong-identity"},)),
    Case("a busy target is no attack", "MeshTargetIdentityRefused", {refusals("timeout"): "0+1x20"}, "7m"),
    Case("an expired server", "MeshScrapeProxyRefused", {refusals("expired-certificate"): "0x5 1x20"}, "7m",
         ({**WEB, "reason": "expired-certificate"},)),
    Case("a pod that ended", "MeshScrapeProxyRefused", {refusals("unreachable"): "0+1x20"}, "7m"),
    Case("the proxy's process does not answer", "MeshScrapeProxyDown",
         {'up{job="meshscrape-scrape-proxy",instance="p"}': "0x20"}, "2m",
         ({"job": "meshscrape-scrape-proxy", "instance": "p"},)),
    Case("the proxy's Envoy is gone", "MeshScrapeProxyDown",
         {'meshscrape_scrape_proxy_envoy_up{instance="p"}': "0x20"}, "2m", ({"instance": "p"},)),
    Case("the proxy works", "MeshScrapeProxyDown",
         {'up{job="meshscrape-scrape-proxy",instance="p"}': "1x20",
          'meshscrape_scrape_proxy_envoy_up{instance="p"}': "1x20"}, "5m"),
    Case("discovery is stuck", "MeshScrapeProxyDiscoveryDown",
         {'meshscrape_scrape_proxy_source_up{source="file"}': "0x20"}, "6m", ({"source": "file"},)),
    Case("discovery works", "MeshScrapeProxyDiscoveryDown",
         {'meshscrape_scrape_proxy_source_up{source="file"}': "1x20"}, "6m"),
    Case("scraped twice", "MeshPlaintextJobLeft",
         {f"up{{{SECURE}}}": "1x30", f"up{{{PLAIN}}}": "1x30"}, "16m", (TWICE,)),
    Case("a plaintext job that went dark is still there", "MeshPlaintextJobLeft",
         {f"up{{{SECURE}}}": "1x30", f"up{{{PLAIN}}}": "0x30"}, "16m", (TWICE,)),
    Case("moved", "MeshPlaintextJobLeft",
         {f"up{{{SECURE}}}": "1x30", f"up{{{PLAIN}}}": "1 1 stale"}, "16m"),
    Case("not secured yet", "MeshPlaintextScrape", {f"up{{{PLAIN}}}": "1x30"}, "16m", (TWICE,)),
    Case("ztunnel has nothing else", "MeshPlaintextScrape",
         {'up{job="kubernetes-pods",app="ztunnel",instance="10.0.0.9:15020"}': "1x30"}, "16m"),
    Case("an application's own port", "MeshPlaintextScrape",
         {'up{job="kubernetes-pods",instance="10.0.0.9:9150"}': "1x30"}, "16m"),
    Case("a forgotten port", "MeshPlaintextExposed", {exposed("admin", "false"): "0 1x9"}, "2m",
         ({**WEB, "kind": "admin", "announced": "false"},)),
    Case("a known port", "MeshPlaintextExposed", {exposed("metrics", "true"): "1x9"}, "2m"),
    Case("a hole", "MeshCheckFoundHole", {check("strangers", "hole"): "0 1x9"}, "2m",
         ({**WEB, "check": "strangers"},)),
    Case("what is broken is no hole", "MeshCheckFoundHole", {check("up", "broken"): "1x9"}, "2m"),
    Case("broken for long", "MeshCheckFailed", {check("up", "broken"): "1x9"}, "6m",
         ({**WEB, "check": "up"},)),
    Case("broken for a moment", "MeshCheckFailed", {check("up", "broken"): "1 0x9"}, "6m"),
    Case("verify hangs", "MeshVerifyNotRunning",
         {"meshscrape_verify_last_run_timestamp_seconds": "0x30",
          "meshscrape_verify_interval_seconds": "60x30"}, "9m", ({},)),
    Case("verify runs", "MeshVerifyNotRunning",
         {"meshscrape_verify_last_run_timestamp_seconds": "0+60x30",
          "meshscrape_verify_interval_seconds": "60x30"}, "9m"),
    Case("places of the CA are full", "MeshCaCrowded", {ended("evicted"): "0+9x30"}, "12m",
         ({"instance": "ca", "stage": "silent"},)),
    Case("places of the CA were full", "MeshCaCrowded", {ended("evicted"): "0 9x30"}, "12m"),
    Case("peers come and go", "MeshCaCrowded", {ended("peer"): "0+9x30"}, "12m"),
]  # fmt: skip


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    """`promtool check rules` passes, templates of the annotations included."""
    check_rules(rules_file(RuleOptions()), tmp_path)


def test_every_alert_fires_and_stays_silent_as_it_should(tmp_path: Path) -> None:
    """`promtool test rules` on all cases: exactly the wanted alerts, with these labels."""
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": _without_annotations()}))
    document = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [_test(case) for case in CASES],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(document))
    done = run("test", "rules", str(tmp_path / "tests.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_keep_the_label_of_the_cluster(tmp_path: Path) -> None:
    """With a cluster label, every alert says which cluster it is about."""
    groups = _without_annotations(RuleOptions(cluster_label="cluster"))
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    absent = Case(
        "one of two clusters lost its targets",
        "MeshTargetsAbsent",
        {f'up{{{SECURE},cluster="b"}}': "1x30", 'up{job="other",cluster="a"}': "1x30"},
        "12m",
        ({"cluster": "a"},),
    )
    cases = [_in_cluster(case) for case in CASES if case.firing and case.alert != absent.alert]
    tests = [_test(case) for case in (*cases, absent)]
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(document))
    done = run("test", "rules", str(tmp_path / "tests.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


LAST = "meshscrape_verify_last_run_success"
KEPT = "meshscrape_verify_interval_seconds"
VERIFIED = [
    Case("no verifier at all", "MeshVerifyNotRunning", {'up{job="prometheus"}': "1x30"}, "20m", ({},)),
    Case("a verifier that went", "MeshVerifyNotRunning", {KEPT: "60x5 _x30", LAST: "1x5 _x30"}, "30m", ({},)),
    Case("no run of it could be made", "MeshVerifyNotRunning", {KEPT: "60x30", LAST: "0x30"}, "20m", ({},)),
    Case("a verifier that restarts", "MeshVerifyNotRunning", {KEPT: "60x5 _x8 60x30", LAST: "1x40"}, "22m"),
    Case("a verifier that runs", "MeshVerifyNotRunning", {KEPT: "60x30", LAST: "1x30"}, "20m"),
]


def test_a_verifier_that_must_run_is_missed(tmp_path: Path) -> None:
    """The chart has this rule beside its verifier: without series, the other rules would stay silent."""
    rules = [{**rule, "annotations": {}} for rule in verifier_rules()]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "verifier", "rules": rules}]}))
    tests = [_test(case) for case in VERIFIED]
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(document))
    done = run("test", "rules", str(tmp_path / "tests.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def _in_cluster(case: Case) -> Case:
    """Return a case whose series, and so whose alerts, are of the cluster a."""
    series = {
        f'{name.partition("{")[0]}{{cluster="a",{name.partition("{")[2] or "}"}': values
        for name, values in case.series.items()
    }
    firing = tuple({**labels, "cluster": "a"} for labels in case.firing)
    return Case(f"{case.name}, of several clusters", case.alert, series, case.at, firing)


def test_every_alert_has_a_case_of_both_kinds() -> None:
    """No alert is only ever seen firing, or only ever silent."""
    names = {rule["alert"] for group in rule_groups(RuleOptions()) for rule in group["rules"]}
    assert {case.alert for case in CASES if case.firing} == names
    assert {case.alert for case in CASES if not case.firing} == names


def test_annotations_name_the_workload_and_the_time(tmp_path: Path) -> None:
    """The text of an alert, as its receiver sees it."""
    (tmp_path / "rules.yml").write_text(rules_file(RuleOptions(certificate_left=2 * HOUR)))
    annotations = {
        "summary": "The certificate of web-1 ends in 1h 30m 0s",
        "description": "It should have been renewed by now. See the log of the pod's agent and whether it "
        "reaches the CA.",
        "runbook_url": "docs/runbook.md#meshcertificatenearexpiry",
    }
    expected = {"exp_labels": {**POD, "severity": "warning"}, "exp_annotations": annotations}
    wanted = {"eval_time": "6m", "alertname": "MeshCertificateNearExpiry", "exp_alerts": [expected]}
    test = {
        "interval": "1m",
        "input_series": [{"series": EXPIRY, "values": f"{90 * 60}x20"}],
        "alert_rule_test": [wanted],
    }
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(document))
    done = run("test", "rules", str(tmp_path / "tests.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    """Each expression of a panel, with Grafana's variables filled in, passes promtool."""
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 10
    rules = [
        {"record": f"panel:query{number}", "expr": _filled(query)} for number, query in enumerate(queries)
    ]
    check_rules(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), tmp_path)


def test_recorded_series_equal_the_dashboards_queries(tmp_path: Path) -> None:
    """For every query with a recorded form, both find the same numbers; also with a label of the cluster."""
    series = {
        f"up{{{SECURE}}}": "1x20",
        'up{job="kubernetes-pods",namespace="shop",instance="10.0.0.2:15091"}': "0x20",
        'up{job="istio-secure-envoy-metrics",namespace="bank",instance="10.0.0.3:15091"}': "0x20",
        f"up{{{PLAIN}}}": "1x20",
        EXPIRY: f"{5 * HOUR}-60x20",
        'istio_agent_cert_expiry_seconds{resource_name="default",namespace="bank",workload="till"}': "60x20",
    }
    for label in ("", "cluster"):
        (tmp_path / "rules.yml").write_text(rules_file(RuleOptions(cluster_label=label)))
        asked = []
        for plain, recorded in QUERIES.items():
            asked.append({"expr": f"({_filled(plain)}) != ({_filled(recorded)})", "eval_time": "5m"})
            asked.append({"expr": f"({_filled(plain)}) unless ({_filled(recorded)})", "eval_time": "5m"})
            some = {"labels": "{}", "value": 1}
            asked.append(
                {"expr": f"count({_filled(plain)}) > bool 0", "eval_time": "5m", "exp_samples": [some]}
            )
        test = {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": asked,
        }
        document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
        (tmp_path / "tests.yml").write_text(yaml.safe_dump(document))
        done = run("test", "rules", str(tmp_path / "tests.yml"))
        assert done.returncode == 0, done.stdout + done.stderr


def _filled(query: str) -> str:
    for variable, value in (("$__rate_interval", "5m"), ("$job", ".*"), ("$namespace", ".*")):
        query = query.replace(variable, value)
    assert "$" not in query
    return query


def _test(case: Case) -> dict[str, Any]:
    severity = {
        rule["alert"]: rule["labels"]["severity"]
        for group in rule_groups(RuleOptions())
        for rule in group["rules"]
    }[case.alert]
    return {
        "name": case.name,
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [
            {
                "eval_time": case.at,
                "alertname": case.alert,
                "exp_alerts": [{"exp_labels": {"severity": severity, **labels}} for labels in case.firing],
            }
        ],
    }


def _without_annotations(options: RuleOptions | None = None) -> list[dict[str, Any]]:
    return [
        {**group, "rules": [{k: v for k, v in rule.items() if k != "annotations"} for rule in group["rules"]]}
        for group in rule_groups(options or RuleOptions())
    ]
