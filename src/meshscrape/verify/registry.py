"""Every check of `verify`: what it proves, on which ports, how it is judged and how it is drawn (pure).

A new check is one entry here and a section in docs/verify.md. It needs a new question (`questions`) or judge
(`judges`) only if no existing one fits.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshscrape.verify import exposure, judges, prometheus_checks, questions
from meshscrape.verify.check import Check, PortCheck, each_alone
from meshscrape.verify.prometheus_checks import PrometheusCheck

_LISTENER = "use the listener that meshscrape renders"

PORT_CHECKS: tuple[PortCheck, ...] = (
    PortCheck(
        name="scraper-admitted",
        proves="the scraper's certificate is let in and gets HTTP 200",
        remedy="compare MESHSCRAPE_SCRAPERS with the scraper's SPIFFE ID; see the workload's agent log and "
        "`meshscrape listeners`",
        severity="broken", side="scraper", gate=True,
        ask=questions.scrape, judge=each_alone(judges.admitted),
    ),
    PortCheck(
        name="content-type",
        proves="the Content-Type of the text format (Prometheus 3 refuses a scrape without a valid one)",
        remedy="check which program answers on this port: the agent and Envoy send a proper type",
        severity="broken", side="scraper",
        ask=questions.scrape, judge=each_alone(judges.content_type),
    ),
    PortCheck(
        name="exposition",
        proves="a valid exposition: no malformed line, no family twice, nothing cut off",
        remedy="check the lines that are named; for the merged port, check the agent's meshscrape_* counters",
        severity="broken", side="scraper",
        ask=questions.scrape, judge=each_alone(judges.exposition),
    ),
    PortCheck(
        name="families",
        proves="the families that belong on this port",
        remedy="check that Envoy and the agent run and answer",
        severity="broken", side="scraper",
        ask=questions.scrape, judge=each_alone(judges.families),
    ),
    PortCheck(
        name="sources",
        proves="meshscrape_source_up is 1 for every source",
        remedy="start the application that is down, or correct the port and path of its scrape annotation",
        severity="broken", side="scraper",
        ask=questions.merged_scrape, judge=each_alone(judges.sources),
    ),
    PortCheck(
        name="application-metrics",
        proves="the scraper gets the application's metrics over mutual TLS",
        remedy="check that the application runs and that its declared metrics path is right",
        severity="broken", side="scraper", gate=True,
        ask=questions.application_scrape, judge=each_alone(judges.admitted),
    ),
    PortCheck(
        name="server-certificate",
        proves="a valid certificate with the workload's own SPIFFE ID and a chain to the trust bundle",
        remedy="see the workload's credential directory and its agent's log; something else may own the port",
        severity="hole", side="either",
        ask=questions.server_certificate, judge=each_alone(judges.server_certificate),
    ),
    PortCheck(
        name="plain-http",
        proves="plain HTTP is refused before any answer",
        remedy=f"the port must speak mutual TLS only: {_LISTENER}",
        severity="hole",
        ask=questions.plain_http, judge=each_alone(judges.refused_below_http),
    ),
    PortCheck(
        name="no-certificate",
        proves="TLS refuses a client without a certificate",
        remedy="set require_client_certificate on the listener's TLS context",
        severity="hole", refusal="refused",
        ask=questions.no_certificate, judge=each_alone(judges.refused_below_http),
    ),
    PortCheck(
        name="other-ca",
        proves="TLS refuses the scraper's SPIFFE ID when another CA signed it",
        remedy="the listener's validation context must trust only the mesh's bundle",
        severity="hole",
        ask=questions.other_ca, judge=each_alone(judges.refused_below_http),
    ),
    PortCheck(
        name="expired-certificate",
        proves="TLS refuses the scraper's certificate after it has expired",
        remedy="remove allow_expired_certificate from the listener's validation context; compare clocks",
        severity="hole",
        ask=questions.expired, judge=judges.expired_refused,
    ),
    PortCheck(
        name="session-resumption",
        proves="every connection needs a full handshake (a resumed one would outlive the certificate)",
        remedy="set disable_stateless_session_resumption and disable_stateful_session_resumption",
        severity="hole",
        ask=questions.resumption, judge=each_alone(judges.not_resumed),
    ),
    PortCheck(
        name="unlisted-workload",
        proves="a workload of the mesh that is not on the allow list gets HTTP 403",
        remedy="put the RBAC filter with the allow list (MESHSCRAPE_SCRAPERS) in front of the route",
        severity="hole",
        ask=questions.unlisted, judge=each_alone(judges.forbidden),
    ),
    PortCheck(
        name="legacy-tls",
        proves="TLS 1.0 and 1.1 are refused",
        remedy="set tls_minimum_protocol_version to TLSv1_2",
        severity="hole",
        ask=questions.legacy_tls, judge=each_alone(judges.legacy_refused),
    ),
    PortCheck(
        name="silent-connection",
        proves="a connection without a handshake is closed within 20 s",
        remedy="set transport_socket_connect_timeout on the filter chain, and listener_filters_timeout where "
        "the listener inspects first bytes",
        severity="hole",
        ask=questions.silence, judge=each_alone(judges.deadline_kept),
    ),
    PortCheck(
        name="paths",
        proves="paths beyond the metrics are refused, however they are spelled (HTTP 400, 403, 404 or 405)",
        remedy="route exact paths only, with normalize_path, merge_slashes and REJECT_REQUEST for escaped "
        "slashes",
        severity="hole",
        ask=questions.paths, judge=each_alone(judges.path_refused),
    ),
    PortCheck(
        name="methods",
        proves="methods other than GET and HEAD are refused (HTTP 400, 403, 404 or 405)",
        remedy="match GET and HEAD in the route",
        severity="hole",
        ask=questions.methods, judge=each_alone(judges.method_refused),
    ),
    PortCheck(
        name="plaintext-closed",
        proves="under METRICS_LOCALHOST_ACCESS_ONLY the pod address refuses connections to this port",
        remedy="bind the plaintext metrics ports to the inside address only",
        severity="hole", refusal="closed",
        ask=questions.plaintext(hardened=True), judge=each_alone(judges.closed),
    ),
    PortCheck(
        name="plaintext-open",
        proves="plaintext metrics can be read by everyone (not hardened)",
        remedy="set METRICS_LOCALHOST_ACCESS_ONLY=true once nothing scrapes this port any more",
        severity="hole", exposes="metrics",
        ask=questions.plaintext(hardened=False), judge=each_alone(judges.open_to_everyone),
    ),
    PortCheck(
        name="admin-closed",
        proves="Envoy's admin API is on no TCP port",
        remedy="put the admin API on a Unix socket of mode 0600",
        severity="hole",
        ask=questions.admin, judge=each_alone(judges.closed),
    ),
    PortCheck(
        name="proxy-token",
        proves="the scrape proxy answers a request without its bearer token with HTTP 401",
        remedy="run the proxy with its token file (--token-file); check that its Envoy is its own",
        severity="hole", refusal="refused",
        ask=questions.proxy_token, judge=each_alone(judges.unauthorized),
    ),
    PortCheck(
        name="exposed-metrics",
        proves="no port of the pod address serves Prometheus metrics without TLS, announced or not",
        remedy="bind the exporter to the workload's inside address (its localhost) and let the agent merge "
        "it: declare port and path in the scrape annotation; a gateway should not route that path",
        severity="hole", exposes="metrics", needs_scan=True,
        ask=questions.open_port, judge=exposure.metrics_exposed,
    ),
    PortCheck(
        name="exposed-admin",
        proves="no port of the pod address serves Envoy's admin API without TLS",
        remedy="put the admin API on a Unix socket of mode 0600: clients that reach it can read the name "
        "of every secret and can stop Envoy",
        severity="hole", exposes="admin", needs_scan=True,
        ask=questions.open_port, judge=exposure.admin_exposed,
    ),
)  # fmt: skip

PROMETHEUS_CHECKS: tuple[PrometheusCheck, ...] = (
    PrometheusCheck(
        name="prometheus-target",
        proves="Prometheus has this target, over https or through the scrape proxy, and reports it up",
        remedy="see its error on Prometheus's target page; `meshscrape prometheus-config` writes the jobs",
        severity="broken", side="scraper",
        judge=prometheus_checks.targets,
    ),
    PrometheusCheck(
        name="prometheus-scheme",
        proves="Prometheus scrapes no address of the mesh over plain http",
        remedy="remove the job that does; use the jobs of `meshscrape prometheus-config`",
        severity="hole",
        judge=prometheus_checks.schemes,
    ),
    PrometheusCheck(
        name="prometheus-identity",
        proves="every target's SPIFFE ID is checked: no job reads the mesh with insecure_skip_verify",
        remedy="scrape through the scrape proxy: use the jobs of `meshscrape prometheus-config`",
        severity="hole",
        judge=prometheus_checks.identities,
    ),
    PrometheusCheck(
        name="application-series",
        proves="a query returns the application's series with the workload's labels",
        remedy="check that the merged target is up and that no relabelling drops the series",
        severity="broken", side="scraper", reads_scrapes=True,
        judge=prometheus_checks.series,
    ),
)  # fmt: skip

CHECKS: Mapping[str, Check] = {check.name: check for check in (*PORT_CHECKS, *PROMETHEUS_CHECKS)}
GATES = frozenset(check.name for check in CHECKS.values() if check.gate)


def port_check(name: str) -> PortCheck | None:
    """Return the check of ports called `name`, or None for another kind of check."""
    check = CHECKS.get(name)
    return check if isinstance(check, PortCheck) else None
