"""Scrape jobs of the Prometheus Operator's objects, and of Azure's objects of the same form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio.names import MONITORING_GROUP, NAMESPACE_NAME
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.observe.cluster import AZURE_MONITORING, VICTORIA, Cluster
from meshscrape.observe.declared_jobs import (
    DeclaredDiscovery,
    DeclaredJob,
    discoveries,
    static_targets,
    strings,
)
from meshscrape.observe.discovery import META, sanitised
from meshscrape.observe.model import Scraper
from meshscrape.observe.relabel import Rule, rules_of

FILES = ("caFile", "certFile", "keyFile")
SERVERS = ("Prometheus", "PrometheusAgent")
# The kinds of monitors: their name in a Prometheus object's selectors, and the field with their endpoints.
MONITORS = {
    "PodMonitor": ("podMonitor", "podMetricsEndpoints"),
    "ServiceMonitor": ("serviceMonitor", "endpoints"),
    "ScrapeConfig": ("scrapeConfig", ""),
}
_PROMETHEUS_TLS = {
    "caFile": "ca_file",
    "certFile": "cert_file",
    "keyFile": "key_file",
    "insecureSkipVerify": "insecure_skip_verify",
    "serverName": "server_name",
    "cert": "cert",
    "keySecret": "key",
    "ca": "ca",
}


def monitor_jobs(cluster: Cluster, scrapers: tuple[Scraper, ...]) -> Iterator[DeclaredJob]:
    """Return the jobs of all monitors, once for each Prometheus object that selects the monitor.

    When the dump has no Prometheus object, a monitor counts for an unknown scraper.
    """
    scraper_of = {scraper.ref: scraper for scraper in scrapers}
    servers = [server for kind in SERVERS for server in cluster.inventory.of_kind(kind, MONITORING_GROUP)]
    allocators = [scraper for scraper in scrapers if scraper.takes_monitors]
    for kind, (word, _) in MONITORS.items():
        for monitor in cluster.inventory.of_kind(kind, MONITORING_GROUP):
            for server in (server for server in servers if selected_by(server, monitor, word, cluster)):
                yield from jobs_of_monitor(monitor, server, scraper_of.get(server.ref))
            for allocator in allocators:
                yield from jobs_of_monitor(monitor, None, allocator)
            if not servers and not allocators:
                yield from jobs_of_monitor(monitor, None, None)
    azure = next((scraper for scraper in scrapers if scraper.kind == "azure"), None)
    for kind in ("PodMonitor", "ServiceMonitor"):
        for monitor in cluster.inventory.of_kind(kind, AZURE_MONITORING):
            yield from jobs_of_monitor(monitor, None, azure)


def selected_by(prometheus: Manifest, monitor: Manifest, word: str, cluster: Cluster) -> bool:
    """Return whether a Prometheus object selects a monitor.

    `word` is `podMonitor`, `serviceMonitor` or `scrapeConfig`. A null selector selects nothing, and an empty
    one everything. A null namespace selector means the namespace of the Prometheus object.
    """
    spec = objects.as_mapping(prometheus.data.get("spec"))
    if not objects.selects(spec.get(f"{word}Selector"), objects.labels(monitor.data)):
        return False
    namespaces = spec.get(f"{word}NamespaceSelector")
    if namespaces is None:
        return monitor.ref.namespace == prometheus.ref.namespace
    labels = {NAMESPACE_NAME: monitor.ref.namespace}
    return objects.selects(namespaces, {**labels, **cluster.namespace_labels(monitor.ref.namespace)})


def jobs_of_monitor(
    monitor: Manifest, server: Manifest | None, scraper: Scraper | None, like: str = "", named: str = ""
) -> Iterator[DeclaredJob]:
    """Return the jobs of one monitor, one for each endpoint.

    `like` is the Operator's kind that it is read as, `named` the word that begins its jobs' names.
    """
    kind = like or monitor.ref.kind
    spec = objects.as_mapping(monitor.data.get("spec"))
    if kind == "ScrapeConfig":
        yield _scrape_config_job(monitor, spec, server, scraper)
        return
    word, field = MONITORS[kind]
    role = "pod" if kind == "PodMonitor" else "endpoints"
    selector = objects.as_mapping(spec.get("selector"))
    for index, endpoint in enumerate(objects.as_list(spec.get(field))):
        target = objects.dig(endpoint, "portNumber") or objects.dig(endpoint, "targetPort")
        own = objects.dig(endpoint, "relabelings") or objects.dig(endpoint, "relabelConfigs")
        yield DeclaredJob(
            name=f"{named or word}/{monitor.ref.namespace}/{monitor.ref.name}/{index}",
            ref=monitor.ref,
            scraper=scraper,
            scheme=str(objects.dig(endpoint, "scheme", default="http")).lower(),
            path=str(objects.dig(endpoint, "path", default="/metrics")),
            tls=effective_tls(endpoint, spec, server, files=bool(named)),
            discoveries=(DeclaredDiscovery(role, _namespaces(monitor, spec)),),
            rules=(*_generated(kind, monitor, spec, endpoint), *rules_of(own)),
            pod_selector=selector if kind == "PodMonitor" else None,
            service_selector=selector if kind == "ServiceMonitor" else None,
            port_name=objects.dig(endpoint, "port"),
            port_number=target if isinstance(target, int) else None,
            running_only=objects.dig(endpoint, "filterRunning", default=True) is not False,
            raw=objects.as_mapping(endpoint),
        )


def _generated(kind: str, monitor: Manifest, spec: Mapping[str, Any], endpoint: Any) -> tuple[Rule, ...]:
    """Return the rules for labels that the Operator writes before the monitor's own (`promcfg.go`)."""
    about_pod = kind == "PodMonitor"
    rules = [
        _copied("job", "__tmp_prometheus_job_name"),
        _copied(f"{META}namespace", "namespace"),
        _copied(f"{META}pod_container_name", "container"),
        _copied(f"{META}pod_name", "pod"),
    ]
    if not about_pod:
        rules.append(_copied(f"{META}service_name", "service"))
        rules += [
            _copied(f"{META}service_label_{sanitised(name)}", sanitised(name), "(.+)")
            for name in strings(spec.get("targetLabels"))
        ]
    rules += [
        _copied(f"{META}pod_label_{sanitised(name)}", sanitised(name), "(.+)")
        for name in strings(spec.get("podTargetLabels"))
    ]
    if about_pod:
        rules.append({"target_label": "job", "replacement": f"{monitor.ref.namespace}/{monitor.ref.name}"})
    else:
        rules.append(_copied(f"{META}service_name", "job"))
    if label := spec.get("jobLabel"):
        source = "pod" if about_pod else "service"
        rules.append(_copied(f"{META}{source}_label_{sanitised(str(label))}", "job", "(.+)"))
    port = objects.dig(endpoint, "port") or objects.dig(endpoint, "portNumber")
    port = port or objects.dig(endpoint, "targetPort")
    if port is not None:
        rules.append({"target_label": "endpoint", "replacement": str(port)})
    return rules_of(rules)


def _copied(source: str, target: str, regex: str = "(.*)") -> dict[str, Any]:
    return {"source_labels": [source], "target_label": target, "regex": regex, "replacement": "${1}"}


def _namespaces(monitor: Manifest, spec: Mapping[str, Any]) -> tuple[str, ...]:
    selector = objects.as_mapping(spec.get("namespaceSelector"))
    if selector.get("any") is True:
        return ()
    return strings(selector.get("matchNames")) or (monitor.ref.namespace,)


def _scrape_config_job(
    monitor: Manifest, spec: Mapping[str, Any], server: Manifest | None, scraper: Scraper | None
) -> DeclaredJob:
    job_name = spec.get("jobName")
    generated: list[dict[str, Any]] = [_copied("job", "__tmp_prometheus_job_name")]
    if job_name:
        generated.append({"target_label": "job", "replacement": str(job_name)})
    return DeclaredJob(
        name=f"scrapeConfig/{monitor.ref.namespace}/{monitor.ref.name}",
        ref=monitor.ref,
        scraper=scraper,
        scheme=str(spec.get("scheme", "http")).lower(),
        path=str(spec.get("metricsPath", "/metrics")),
        tls=effective_tls(spec, spec, server, files=monitor.ref.group == VICTORIA),
        discoveries=discoveries(spec.get("kubernetesSDConfigs"), scraper),
        rules=(*rules_of(generated), *rules_of(spec.get("relabelings") or spec.get("relabelConfigs"))),
        static=static_targets(spec.get("staticConfigs")),
        elsewhere=any(
            key.endswith("SDConfigs") and key != "kubernetesSDConfigs" and value
            for key, value in spec.items()
        ),
        raw=spec,
    )


def effective_tls(
    endpoint: Any, spec: Mapping[str, Any], server: Manifest | None, *, files: bool = False
) -> dict[str, Any]:
    """Return the TLS settings of an endpoint with those of its scrape class, in Prometheus's spelling.

    As in `mergeTLSConfigWithScrapeClass`, an endpoint without a tlsConfig, or with an empty one, gets the
    whole tlsConfig of its class. Otherwise the class only adds missing files. PodMonitor and ScrapeConfig
    have no file fields: the API server removes them, so they do not count, unless `files` says otherwise.
    """
    own = dict(objects.as_mapping(objects.dig(endpoint, "tlsConfig")))
    # The objects of the VictoriaMetrics operator have no scrape class, and file fields in every kind.
    kind_has_files = ("selector" in spec and "endpoints" in spec) or files
    if not kind_has_files:
        own = {key: value for key, value in own.items() if key not in FILES}
    of_class = objects.as_mapping(objects.dig(scrape_class(spec, server), "tlsConfig"))
    if not own:
        merged = dict(of_class)
    else:
        merged = {key: value for key, value in of_class.items() if key in FILES} | own
    return {_PROMETHEUS_TLS.get(key, key): value for key, value in merged.items()}


def scrape_class(spec: Mapping[str, Any], server: Manifest | None) -> Mapping[str, Any] | None:
    """Return the scrape class that a monitor names, else the default one of the Prometheus object."""
    classes = objects.as_list(objects.dig(server.data, "spec", "scrapeClasses")) if server else []
    wanted = spec.get("scrapeClass")
    for scrape_class in classes:
        default = not wanted and objects.dig(scrape_class, "default") is True
        if default or (wanted and objects.dig(scrape_class, "name") == wanted):
            return objects.as_mapping(scrape_class)
    return None
