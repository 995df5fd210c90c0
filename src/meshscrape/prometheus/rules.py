"""Alerting and recording rules for secured scraping: a file of Prometheus, or a PrometheusRule.

Metrics come from Prometheus itself, from Istio's agent or meshscrape's (the same names), from Envoy, from the
scrape proxy and from `meshscrape verify --watch`. A rule whose metrics are not exported stays silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from meshscrape.istio.names import MONITORING_V1
from meshscrape.istio.ports import SECURE_MERGED, SECURE_STATS
from meshscrape.kube.yaml_text import dump
from meshscrape.prometheus.limits import SAMPLE_LIMIT
from meshscrape.prometheus.recorded import GROUP, RECORDINGS
from meshscrape.prometheus.selectors import PLAINTEXT, SECURE, SECURE_PORTS
from meshscrape.prometheus.targets import ENVOY_JOB, MERGED_JOB, PROXY_JOB

_PORT_OF = {MERGED_JOB: SECURE_MERGED, ENVOY_JOB: SECURE_STATS}
# Reasons that mean that another workload than the expected one answers.
IDENTITY_REASONS = ("wrong-identity", "untrusted-certificate", "plaintext-server")
# Reasons that need action. The others occur when workloads start, stop or are busy; if they last, the target
# is down.
POLICY_REASONS = (
    "expired-certificate", "not-yet-valid-certificate", "scraper-not-accepted", "no-scraper-certificate",
    "tls-failed", "weak-key", "denied-by-target", "bad-token",
)  # fmt: skip
_POD = "namespace, pod, workload"
# The page in this repository; an absolute address only if the user serves it.
RUNBOOK = "docs/runbook.md"


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Thresholds. `certificate_left`: warn if a workload certificate has less time left (seconds).

    The default fits Istio's certificates of 24 h, which are renewed with about 12 h left. `root_left`: the
    same for a root. `jobs`: the jobs that must have targets. `sample_limit`: the limit of one scrape; the
    alert fires at 80 % of it (0: no alert). `runbook` is the address of the page with a section per alert.
    `cluster_label` (empty: none) is the label by which one rule engine tells several clusters apart.
    """

    certificate_left: int = 6 * 3600
    root_left: int = 30 * 86400
    jobs: tuple[str, ...] = (MERGED_JOB,)
    sample_limit: int = SAMPLE_LIMIT
    runbook: str = RUNBOOK
    cluster_label: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: it fires if `expression` has a result for `lasting`; critical, warning or info."""

    name: str
    expression: str
    lasting: str
    severity: str
    summary: str
    description: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def rule(self, runbook: str = RUNBOOK, cluster_label: str = "") -> dict[str, Any]:
        """Return the rule as Prometheus writes it; `cluster_label` stays in every grouping."""
        return {
            "alert": self.name,
            "expr": _by_cluster(self.expression, cluster_label) if cluster_label else self.expression,
            "for": self.lasting,
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbook}#{self.name.lower()}",
            },
        }


def _by_cluster(expression: str, label: str) -> str:
    """Return an expression whose groupings keep the label of the cluster."""
    return re.sub(rf"\b(by|on) \((?!{label}\b)", rf"\1 ({label}, ", expression)


def rule_groups(options: RuleOptions) -> list[dict[str, Any]]:
    """Return the groups of alerts."""
    groups = {
        "meshscrape-targets": _targets(options),
        "meshscrape-certificates": _certificates(options),
        "meshscrape-refusals": _refusals(),
        "meshscrape-plaintext": _plaintext(),
        "meshscrape-verify": _verify(),
        "meshscrape-ca": _authority(),
    }
    return [
        {"name": name, "rules": [alert.rule(options.runbook, options.cluster_label) for alert in alerts]}
        for name, alerts in groups.items()
    ]


def all_groups(options: RuleOptions) -> list[dict[str, Any]]:
    """Return the list for `groups`, of a rules file and of a PrometheusRule alike: recordings and alerts."""
    label = options.cluster_label
    rules = [
        {
            **recording.rule(),
            "expr": _by_cluster(recording.expression, label) if label else recording.expression,
        }
        for recording in RECORDINGS
    ]
    return [{"name": GROUP, "rules": rules}, *rule_groups(options)]


def rules_file(options: RuleOptions) -> str:
    """Return the rules as a file for Prometheus' `rule_files`."""
    return "# Made by meshscrape.\n" + dump({"groups": all_groups(options)})


def prometheus_rule(
    options: RuleOptions, name: str, namespace: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    """Return the rules as a PrometheusRule object; `labels` must match the Operator's `ruleSelector`."""
    return {
        "apiVersion": MONITORING_V1,
        "kind": "PrometheusRule",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {"groups": all_groups(options)},
    }


def _targets(options: RuleOptions) -> Iterator[Alert]:
    yield Alert(
        "MeshTargetDown",
        f"(up{{{SECURE}}} or up{{{SECURE_PORTS}}}) == 0",
        "5m",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.pod }} cannot be scraped over mTLS",
        "Prometheus has not scraped {{ $labels.instance }} ({{ $labels.job }}) for 5 minutes. Its targets "
        "page shows the error: a refused handshake points to the certificate of one of the two sides, a 403 "
        "to the target's allow list.",
    )
    for job in options.jobs:
        yield Alert(
            "MeshTargetsAbsent",
            _absent(job, options.cluster_label),
            "10m",
            "critical",
            f"{job} has no targets at all",
            "No pod announces a secure port, service discovery has no rights to see them, or Prometheus made "
            "no scrape pool because a certificate file was missing when it read its configuration.",
        )
    if options.sample_limit:
        yield Alert(
            "MeshSamplesNearLimit",
            f"(scrape_samples_scraped{{{SECURE}}} or scrape_samples_scraped{{{SECURE_PORTS}}})"
            f" > {options.sample_limit * 8 // 10}",
            "10m",
            "warning",
            "{{ $labels.namespace }}/{{ $labels.pod }} exposes {{ $value }} samples, over 80 % of the limit",
            "A scrape with more samples than the limit fails as a whole. Find out which label of the "
            "workload's metrics grows, or raise sample_limit.",
        )
    yield Alert(
        "MeshScrapePoolFailed",
        "increase(prometheus_target_scrape_pools_failed_total[15m]) > 0",
        "0m",
        "critical",
        "Prometheus cannot make a scrape pool",
        "The targets of that job are absent, not down. Usually a certificate file of its tls_config is "
        "missing (OUTPUT_CERTS of the sidecar, the mount, the path). Prometheus tries again at the next "
        "change in discovery.",
    )


def _absent(job: str, cluster_label: str) -> str:
    """Return the expression for a job without targets; `absent` sees only the last cluster.

    A derived job keeps the plaintext job's name. So targets on the job's secure port count, too.
    """
    named, port = f'up{{job="{job}"}}', _PORT_OF.get(job)
    on_port = f'up{{instance=~".+:{port}"}}' if port else ""
    if not cluster_label:
        return f"absent({named})" + (f" unless on () {on_port}" if port else "")
    targets = f"{named} or {on_port}" if port else named
    mine = f"group by ({cluster_label}) ({targets})"
    return f"group by ({cluster_label}) (up) unless on ({cluster_label}) {mine}"


def _certificates(options: RuleOptions) -> Iterator[Alert]:
    expiry = f'min by ({_POD}) (istio_agent_cert_expiry_seconds{{resource_name="default"}})'
    yield Alert(
        "MeshCertificateNearExpiry",
        f"0 < {expiry} < {options.certificate_left}",
        "5m",
        "warning",
        "The certificate of {{ $labels.pod }} ends in {{ $value | humanizeDuration }}",
        "It should have been renewed by now. See the log of the pod's agent and whether it reaches the CA.",
    )
    yield Alert(
        "MeshCertificateExpired",
        f"{expiry} <= 0",
        "0m",
        "critical",
        "The certificate of {{ $labels.namespace }}/{{ $labels.pod }} has expired",
        "Clients that verify certificates refuse this workload. See its agent's log and the CA.",
    )
    yield from _met_certificates(options)


def _met_certificates(options: RuleOptions) -> Iterator[Alert]:
    """Yield alerts on certificates that `verify` or the scrape proxy saw in handshakes."""
    verify = "meshscrape_verify_certificate_not_after_seconds"
    proxy = "meshscrape_scrape_target_certificate_expiration_timestamp_seconds"
    by = "min by (namespace, workload)"
    yield Alert(
        "MeshServedCertificateNearExpiry",
        f'({by} ({verify}{{role!="root"}}) or {by} ({proxy})) - time() < {options.certificate_left}',
        "5m",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.workload }} uses a certificate that ends in "
        "{{ $value | humanizeDuration }}",
        "`meshscrape verify` or the scrape proxy saw it in a handshake. It should have been renewed by now.",
    )
    yield Alert(
        "MeshScraperCertificateNearExpiry",
        "meshscrape_scrape_proxy_certificate_expiration_timestamp_seconds - time()"
        f" < {options.certificate_left}",
        "5m",
        "critical",
        "The scraper's certificate for {{ $labels.trust_domain }} ends in {{ $value | humanizeDuration }}",
        "When it ends, every scrape of that mesh fails. See the log of the agent next to Prometheus.",
    )
    yield Alert(
        "MeshRootNearExpiry",
        f'min by (namespace, workload) ({verify}{{role="root"}}) - time() < {options.root_left}',
        "5m",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.workload }} trusts a root that ends in "
        "{{ $value | humanizeDuration }}",
        "Replace it before then, in stages: distribute the new root, issue from it, withdraw the old one.",
    )


def _refusals() -> Iterator[Alert]:
    yield Alert(
        "MeshScrapeRefused",
        # Envoy of a local mesh; a stock Istio proxy with the bootstrap override (its tags cut the name so).
        _seen_lately('envoy_http_rbac_denied{envoy_http_conn_manager_prefix=~"secure_.+"}', _POD)
        + "\nor\n"
        + "\nor\n".join(
            _seen_lately(
                f'{{__name__=~"envoy_http_meshscrape_{port}_[0-9]+_rbac",authz_enforce_result="denied"}}',
                _POD,
            )
            for port in ("secure_metrics", "secure_merged_metrics")
        ),
        "0m",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.pod }} refused a client that requested its metrics",
        "A client with a certificate of the mesh used a secure metrics port, but is not on the allow list. "
        "Envoy's log names it.",
    )
    yield _proxy_alert(
        "MeshTargetIdentityRefused",
        IDENTITY_REASONS,
        "critical",
        "The scrape proxy refuses {{ $labels.namespace }}/{{ $labels.workload }}: {{ $labels.reason }}",
        "Another workload than the expected one answers at the address of a target. Its metrics were not "
        "ingested. `meshscrape explain` shows its identity.",
    )
    yield _proxy_alert(
        "MeshScrapeProxyRefused",
        POLICY_REASONS,
        "warning",
        "The scrape proxy refuses scrapes: {{ $labels.reason }}",
        "`meshscrape explain` shows the cause and the remedy.",
    )

    yield Alert(
        "MeshScrapeProxyDown",
        f'up{{job="{PROXY_JOB}"}} == 0 or meshscrape_scrape_proxy_envoy_up == 0',
        "1m",
        "critical",
        "The scrape proxy next to Prometheus is down ({{ $labels.instance }})",
        "Without its Envoy every target is down. Without the other process targets are scraped, but changes "
        "of pods are not followed. Let this alert inhibit those of the targets (docs/prometheus.md).",
    )
    yield Alert(
        "MeshScrapeProxyDiscoveryDown",
        "meshscrape_scrape_proxy_source_up == 0",
        "5m",
        "warning",
        "The scrape proxy cannot read its targets from {{ $labels.source }}",
        "It continues with the last known targets: new workloads are not scraped, removed ones are down.",
    )


def _proxy_alert(name: str, reasons: tuple[str, ...], severity: str, summary: str, description: str) -> Alert:
    counter = f'meshscrape_scrape_refusals_total{{reason=~"{"|".join(reasons)}"}}'
    expression = _seen_lately(counter, "reason, namespace, workload")
    return Alert(name, expression, "0m", severity, summary, description)


def _plaintext() -> Iterator[Alert]:
    secured = f"group by (namespace, pod) (up{{{SECURE}}} or up{{{SECURE_PORTS}}})"
    yield Alert(
        "MeshPlaintextJobLeft",
        f"max by (job, namespace, pod) (up{{{PLAINTEXT}}}) >= 0 and on (namespace, pod) {secured}",
        "15m",
        "warning",
        "{{ $labels.job }} still scrapes {{ $labels.namespace }}/{{ $labels.pod }} in plaintext",
        "The pod is also scraped over mTLS, so it is scraped twice, and its plaintext ports cannot be closed "
        "because of this job. Let the job drop pods that announce a secure port.",
    )
    yield Alert(
        "MeshPlaintextScrape",
        f"max by (job, namespace, pod) (up{{{PLAINTEXT}}}) >= 0 unless on (namespace, pod) {secured}",
        "15m",
        "info",
        "{{ $labels.namespace }}/{{ $labels.pod }} is scraped in plaintext only",
        "The pod has no secure metrics port yet, or Prometheus does not discover it.",
    )
    yield Alert(
        "MeshPlaintextExposed",
        'meshscrape_plaintext_exposed{announced="false"} > 0',
        "0m",
        "critical",
        "{{ $labels.namespace }}/{{ $labels.workload }} serves {{ $labels.kind }} in plaintext, unannounced",
        "Every client in the network can read it. `meshscrape verify` names the port.",
    )


def _verify() -> Iterator[Alert]:
    text = "`meshscrape verify` shows the details and the remedy; docs/verify.md explains each check."
    yield Alert(
        "MeshCheckFoundHole",
        'meshscrape_check_failed{severity="hole"} == 1',
        "0m",
        "critical",
        "{{ $labels.check }}: {{ $labels.namespace }}/{{ $labels.workload }} gives access to a stranger",
        text,
    )
    yield Alert(
        "MeshCheckFailed",
        'meshscrape_check_failed{severity!="hole"} == 1',
        "5m",
        "warning",
        "{{ $labels.check }} fails for {{ $labels.namespace }}/{{ $labels.workload }}",
        text,
    )
    yield Alert(
        "MeshVerifyNotRunning",
        "time() - meshscrape_verify_last_run_timestamp_seconds"
        " > 3 * meshscrape_verify_interval_seconds + 300",
        "0m",
        "warning",
        "The mesh has not been verified for {{ $value | humanizeDuration }}",
        "The results of `meshscrape verify --watch` are old: its runs fail, or take too long. See its log.",
    )


def verifier_rules(runbook: str = RUNBOOK) -> list[dict[str, Any]]:
    """Return the rules for a mesh in which `meshscrape verify --watch` must always run.

    If it is gone, its results are gone, too, and the alerts about them are resolved.
    """
    alert = Alert(
        "MeshVerifyNotRunning",
        "absent(meshscrape_verify_interval_seconds)\nor meshscrape_verify_last_run_success == 0",
        "15m",
        "warning",
        "The mesh is not verified",
        "Prometheus gets no results of `meshscrape verify --watch`, or none of its runs could be made for 15 "
        "minutes. See its pod and its log.",
    )
    return [alert.rule(runbook)]


def _authority() -> Iterator[Alert]:
    crowded = 'meshscrape_ca_connections_ended_total{cause="evicted"}'
    yield Alert(
        "MeshCaCrowded",
        f"sum by (instance, stage) (rate({crowded}[5m])) > 0",
        "5m",
        "warning",
        "Too many {{ $labels.stage }} connections reach the CA",
        "The CA ends the oldest ones and still issues certificates. Its log names the most frequent address. "
        "Let only workloads reach the CA's port.",
    )


def _seen_lately(counter: str, by: str) -> str:
    """Return the expression "the counter grew in 10 minutes", which, unlike `increase`, sees a new series."""
    return (
        f"sum by ({by}) (increase({counter}[10m])) > 0\n"
        f"or sum by ({by}) ({counter} unless {counter} offset 10m) > 0"
    )
