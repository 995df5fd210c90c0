"""A Prometheus of the Prometheus Operator for the secured mesh: its object, its monitors, its rights.

PodMonitors cannot name certificate files, and an administrator can forbid them in ServiceMonitors. So the
credentials are a scrape class of the Prometheus object. The monitors name the class and have no TLS settings.
This needs Operator 0.74; in older ones, classes do not apply to PodMonitors.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from meshscrape.istio.names import ENVOY_STATS_PORT_NAME, INJECT, MERGED_PATH, MONITORING_V1, OPERATED_BY
from meshscrape.prometheus import scrape_proxy_pod
from meshscrape.prometheus.access import PODS, SERVICES, access
from meshscrape.prometheus.derived import proxied_endpoint
from meshscrape.prometheus.direct import direct_tls
from meshscrape.prometheus.kubernetes_sd import (
    SECURE_JOBS,
    ApplicationPort,
    ProxyInPod,
    anchor,
    announced,
    application_rules,
    camel,
    camel_rule,
    drop_own_series,
    labels,
    ready,
)
from meshscrape.prometheus.options import PrometheusOptions
from meshscrape.prometheus.rules import prometheus_rule
from meshscrape.prometheus.scrape_proxy_pod import IN_POD, ScrapeProxyPod
from meshscrape.prometheus.scraper_pod import (
    CERTIFICATES,
    pod_annotations,
    pod_labels,
    unscraped,
    volume,
    volume_mount,
)
from meshscrape.prometheus.targets import APPLICATION_JOB

SCRAPE_CLASS = "istio-mtls"
PROXY_SCRAPE_CLASS = "istio-scrape-proxy"
# Scrape classes have `authorization` from this version on at the latest. The changelog does not name the
# change: pull request 7154 brought it, just before 0.79.
PROXY_SINCE = (0, 80, 0)


def operator(options: PrometheusOptions) -> tuple[dict[str, Any], ...]:
    """Return ServiceAccount, roles, Prometheus, monitors and, with rules, a PrometheusRule."""
    objects = [
        *access(options, (*PODS, *SERVICES), own=True),
        _prometheus(options),
        *pod_monitors(options),
        *(application_monitor(application, options) for application in options.applications),
        _own_monitor(options),
    ]
    if options.rules:
        metadata = options.metadata()
        objects.append(prometheus_rule(options.rules, options.name, options.namespace, metadata["labels"]))
    return tuple(objects)


def scrape_class(directory: str = CERTIFICATES) -> dict[str, Any]:
    """Return the scrape class with the workload certificate.

    It is not the default class, because that would change every monitor.
    """
    tls = {camel(key): value for key, value in direct_tls(directory).items()}
    return {"name": SCRAPE_CLASS, "tlsConfig": tls}


def proxy_scrape_class(proxy: ProxyInPod = IN_POD) -> dict[str, Any]:
    """Return the scrape class with the scrape proxy's token. Monitors can only refer to Secrets."""
    return {"name": PROXY_SCRAPE_CLASS, "authorization": {"credentialsFile": proxy.token_file}}


def proxied_parts(proxy: ScrapeProxyPod) -> dict[str, Any]:
    """Return the fields of a Prometheus object's `spec` that make it scrape through a scrape proxy."""
    return {
        "initContainers": scrape_proxy_pod.init_containers(proxy),
        "volumes": scrape_proxy_pod.volumes(proxy),
        "volumeMounts": [scrape_proxy_pod.token_mount()],
        "scrapeClasses": [proxy_scrape_class()],
    }


def prometheus_parts(revision: str = "", harden: bool = False) -> dict[str, Any]:
    """Return the fields to merge into the `spec` of an existing Prometheus object."""
    return {
        "podMetadata": {"labels": pod_labels(revision), "annotations": pod_annotations(harden)},
        "volumes": [volume()],
        "volumeMounts": [volume_mount()],
        "scrapeClasses": [scrape_class()],
    }


def pod_monitors(
    options: PrometheusOptions, jobs: Collection[str] = tuple(SECURE_JOBS)
) -> list[dict[str, Any]]:
    """Return one PodMonitor per secure port. They select the declared port 15090 and rewrite the address."""
    return [_pod_monitor(job, annotation, options) for job, annotation in SECURE_JOBS.items() if job in jobs]


def application_monitor(application: ApplicationPort, options: PrometheusOptions) -> dict[str, Any]:
    """Return the monitor of an application's own port: of its Service if selectable, else of its pods."""
    job = f"{APPLICATION_JOB}/{application.namespace}/{application.name}"
    of_service = bool(application.service_labels and application.service_port)
    rules = (
        [*anchor()[:1], *labels()] if of_service else [*anchor(), *application_rules(application), *labels()]
    )
    endpoint = {
        "port": application.service_port if of_service else ENVOY_STATS_PORT_NAME,
        "path": application.path,
        **_transport(options),
        "followRedirects": False,
        # See `kubernetes_sd`: Envoy may offer HTTP/2 for an application that only supports HTTP/1.1.
        "enableHttp2": False,
        "relabelings": [*_ready(options), *map(camel_rule, rules), _job_label(job)],
        **_sample_rules(options),
    }
    chosen = application.service_labels if of_service else application.labels
    return {
        "apiVersion": MONITORING_V1,
        "kind": "ServiceMonitor" if of_service else "PodMonitor",
        "metadata": options.metadata(f"{options.name}-{application.namespace}-{application.name}"),
        "spec": {
            "scrapeClass": class_of(options.proxy is not None),
            "selector": {"matchLabels": dict(chosen or {})},
            "namespaceSelector": {"matchNames": [application.namespace]},
            "endpoints" if of_service else "podMetricsEndpoints": [endpoint],
        },
    }


def _prometheus(options: PrometheusOptions) -> dict[str, Any]:
    chosen = {"matchLabels": options.selector}
    if options.proxy:
        parts = proxied_parts(options.proxy)
        parts["podMetadata"] = {"labels": {INJECT: "false"}, "annotations": unscraped()}
    else:
        parts = prometheus_parts(options.revision, options.harden)
        parts["podMetadata"]["annotations"] |= unscraped()
    return {
        "apiVersion": MONITORING_V1,
        "kind": "Prometheus",
        "metadata": options.metadata(),
        "spec": {
            "replicas": 1,
            "serviceAccountName": options.service_account,
            "serviceDiscoveryRole": "EndpointSlice",
            "scrapeInterval": options.interval,
            "scrapeTimeout": options.timeout,
            "evaluationInterval": options.interval,
            "retention": options.retention,
            **_limits(options),
            # Select monitors of its own namespace only, because others could misuse its credentials.
            "podMonitorSelector": chosen,
            "serviceMonitorSelector": chosen,
            "ruleSelector": chosen,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 2000},
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
            **parts,
        },
    }


def _pod_monitor(job: str, annotation: str, options: PrometheusOptions) -> dict[str, Any]:
    rules = [*anchor(), *announced(annotation), *labels()]
    endpoint = {
        "port": ENVOY_STATS_PORT_NAME,
        "path": MERGED_PATH,
        **_transport(options),
        "followRedirects": False,
        "relabelings": [*_ready(options), *map(camel_rule, rules), _job_label(job)],
        **_sample_rules(options),
    }
    return {
        "apiVersion": MONITORING_V1,
        "kind": "PodMonitor",
        "metadata": options.metadata(f"{options.name}-{job.removeprefix('istio-')}"),
        "spec": {
            "scrapeClass": class_of(options.proxy is not None),
            "selector": {},
            "namespaceSelector": _namespaces(options),
            "podMetricsEndpoints": [endpoint],
        },
    }


def _own_monitor(options: PrometheusOptions) -> dict[str, Any]:
    """Return a monitor of Prometheus's own metrics, for the alert on failed scrape pools."""
    return {
        "apiVersion": MONITORING_V1,
        "kind": "PodMonitor",
        "metadata": options.metadata(f"{options.name}-self"),
        "spec": {
            "selector": {"matchLabels": {OPERATED_BY: options.name}},
            "namespaceSelector": {"matchNames": [options.namespace]},
            "podMetricsEndpoints": [{"port": "web"}],
        },
    }


def class_of(proxied: bool) -> str:
    """Return the scrape class of the monitors, with or without a scrape proxy."""
    return PROXY_SCRAPE_CLASS if proxied else SCRAPE_CLASS


def _transport(options: PrometheusOptions) -> dict[str, Any]:
    return proxied_endpoint(IN_POD) if options.proxy else {"scheme": "https"}


def _ready(options: PrometheusOptions) -> list[dict[str, Any]]:
    return [camel_rule(ready())] if options.proxy else []


def _limits(options: PrometheusOptions) -> dict[str, Any]:
    """Return the enforced limits of one scrape for all monitors."""
    limits: dict[str, Any] = {}
    if options.sample_limit:
        limits["enforcedSampleLimit"] = options.sample_limit
    if options.body_size_limit:
        limits["enforcedBodySizeLimit"] = options.body_size_limit
    return limits


def _sample_rules(options: PrometheusOptions) -> dict[str, Any]:
    """Return the rules that drop series which only Prometheus itself may write."""
    return {} if options.keep_own_series else {"metricRelabelings": [camel_rule(drop_own_series())]}


def _namespaces(options: PrometheusOptions) -> dict[str, Any]:
    return {"matchNames": sorted(options.namespaces)} if options.namespaces else {"any": True}


def _job_label(job: str) -> dict[str, Any]:
    """Return the field for the job's name, equal in all ways of scraping: dashboards and rules use it."""
    return {"action": "replace", "targetLabel": "job", "replacement": job}
