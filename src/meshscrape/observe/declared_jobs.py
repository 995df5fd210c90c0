"""Scrape jobs from whatever declares them: Prometheus' configuration, collectors, the Operator's monitors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.istio.names import MONITORING_GROUP, NAMESPACE_NAME
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.observe.cluster import VICTORIA, Cluster
from meshscrape.observe.model import Scraper
from meshscrape.observe.relabel import Rule, rules_of

FILES = ("caFile", "certFile", "keyFile")
_ENDPOINT_ROLES = ("endpoints", "endpointslice")


@dataclass(frozen=True, slots=True)
class DeclaredJob:
    """A scrape job. `roles` are those of its Kubernetes discoveries, each with its namespaces (empty: all).

    `tls` is in Prometheus' spelling (`cert_file`). A monitor of the Operator also has what it selects.
    """

    name: str
    ref: Ref
    scraper: Scraper | None = None
    scheme: str = "http"
    path: str = "/metrics"
    tls: Mapping[str, Any] = field(default_factory=dict)
    roles: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rules: tuple[Rule, ...] = ()
    static: tuple[str, ...] = ()
    elsewhere: bool = False
    pod_selector: Mapping[str, Any] | None = None
    service_selector: Mapping[str, Any] | None = None
    port_name: str | None = None
    port_number: int | None = None
    running_only: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A configuration that cannot be read."""

    ref: Ref
    reason: str


def read_jobs(cluster: Cluster, scrapers: tuple[Scraper, ...]) -> tuple[list[DeclaredJob], list[Unreadable]]:
    """All jobs that the objects declare, and what could not be read."""
    jobs: list[DeclaredJob] = []
    problems: list[Unreadable] = []
    by_config = {each.config: each for each in scrapers if each.config}
    for manifest in cluster.inventory.of_kind("ConfigMap", ""):
        data = objects.as_mapping(manifest.data.get("data"))
        texts = [text for text in data.values() if isinstance(text, str) and "scrape_configs:" in text]
        scraper = by_config.get(manifest.ref)
        _add(manifest.ref, texts, scraper, jobs, problems)
    _additional(cluster, scrapers, jobs, problems)
    for collector in cluster.inventory.of_kind("OpenTelemetryCollector"):
        config = objects.dig(collector.data, "spec", "config")
        if isinstance(config, str):
            _add(collector.ref, [config], None, jobs, problems)
        elif isinstance(config, Mapping):
            jobs += _config_jobs(config, collector.ref, None)
    jobs += _monitors(cluster, scrapers)
    return jobs, problems


def _add(
    ref: Ref, texts: list[str], scraper: Scraper | None, jobs: list[DeclaredJob], problems: list[Unreadable]
) -> None:
    for text in texts:
        try:
            documents = load_documents(text, "line")
        except InputError as error:
            problems.append(Unreadable(ref, str(error)))
            continue
        for document in documents:
            jobs += _config_jobs(document.data, ref, scraper)


def _additional(
    cluster: Cluster, scrapers: tuple[Scraper, ...], jobs: list[DeclaredJob], problems: list[Unreadable]
) -> None:
    """Jobs that a Prometheus object takes from a Secret."""
    by_ref = {each.ref: each for each in scrapers}
    for manifest in (*cluster.inventory.of_kind("Prometheus"), *cluster.inventory.of_kind("PrometheusAgent")):
        selected = objects.as_mapping(objects.dig(manifest.data, "spec", "additionalScrapeConfigs"))
        secret = cluster.inventory.get(Ref("", "Secret", manifest.ref.namespace, str(selected.get("name"))))
        key = str(selected.get("key"))
        if not selected:
            continue
        if secret is None:
            problems.append(
                Unreadable(
                    manifest.ref, f"additionalScrapeConfigs: Secret {selected.get('name')} is not there"
                )
            )
            continue
        text = objects.dig(secret.data, "stringData", key)
        if text is None:
            text = _decoded(objects.dig(secret.data, "data", key, default=""))
        _add(secret.ref, [f"scrape_configs:\n{text}"], by_ref.get(manifest.ref), jobs, problems)


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "unreadable: ["


def _config_jobs(config: Mapping[str, Any], ref: Ref, scraper: Scraper | None) -> Iterator[DeclaredJob]:
    for name, receiver in objects.as_mapping(config.get("receivers")).items():
        if str(name).partition("/")[0] == "prometheus":
            # The collector expands $NAME, so a dollar is written twice there.
            inner = _undollar(objects.as_mapping(objects.dig(receiver, "config")))
            yield from _config_jobs(inner, ref, scraper)
    for each in objects.as_list(config.get("scrape_configs")):
        if isinstance(each, Mapping):
            yield _config_job(each, ref, scraper)


def _undollar(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, Mapping):
        return {key: _undollar(each) for key, each in value.items()}
    return [_undollar(each) for each in value] if isinstance(value, list) else value


def _config_job(config: Mapping[str, Any], ref: Ref, scraper: Scraper | None) -> DeclaredJob:
    roles = tuple(
        (
            str(objects.dig(each, "role", default="")).lower(),
            _strings(objects.dig(each, "namespaces", "names")),
        )
        for each in objects.as_list(config.get("kubernetes_sd_configs"))
    )
    static = tuple(
        str(target)
        for each in objects.as_list(config.get("static_configs"))
        for target in objects.as_list(objects.dig(each, "targets"))
    )
    elsewhere = any(
        key.endswith("_sd_configs") and key != "kubernetes_sd_configs" and value
        for key, value in config.items()
    )
    return DeclaredJob(
        name=str(config.get("job_name", "")),
        ref=ref,
        scraper=scraper,
        scheme=str(config.get("scheme", "http")).lower(),
        path=str(config.get("metrics_path", "/metrics")),
        tls=objects.as_mapping(config.get("tls_config")),
        roles=roles,
        rules=rules_of(config.get("relabel_configs")),
        static=static,
        elsewhere=elsewhere,
        raw=config,
    )


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(str(each) for each in objects.as_list(value))


# The Operator


def selected_by(prometheus: Manifest, monitor: Manifest, word: str, cluster: Cluster) -> bool:
    """Whether a Prometheus object takes a monitor; `word` is `podMonitor`, `serviceMonitor`, `scrapeConfig`.

    A null selector takes nothing, an empty one everything; a null namespace selector its own namespace.
    """
    spec = objects.as_mapping(prometheus.data.get("spec"))
    if not objects.selects(spec.get(f"{word}Selector"), objects.labels(monitor.data)):
        return False
    namespaces = spec.get(f"{word}NamespaceSelector")
    if namespaces is None:
        return monitor.ref.namespace == prometheus.ref.namespace
    labels = {NAMESPACE_NAME: monitor.ref.namespace}
    return objects.selects(namespaces, {**labels, **cluster.namespace_labels(monitor.ref.namespace)})


MONITORS = {
    "PodMonitor": ("podMonitor", "podMetricsEndpoints"),
    "ServiceMonitor": ("serviceMonitor", "endpoints"),
    "ScrapeConfig": ("scrapeConfig", ""),
}


def _monitors(cluster: Cluster, scrapers: tuple[Scraper, ...]) -> Iterator[DeclaredJob]:
    by_ref = {each.ref: each for each in scrapers}
    servers = [
        each
        for kind in ("Prometheus", "PrometheusAgent")
        for each in cluster.inventory.of_kind(kind, MONITORING_GROUP)
    ]
    for kind, (word, _) in MONITORS.items():
        for monitor in cluster.inventory.of_kind(kind, MONITORING_GROUP):
            takers = [each for each in servers if selected_by(each, monitor, word, cluster)]
            for taker in takers:
                yield from _monitor_jobs(monitor, taker, by_ref.get(taker.ref))
            if not servers:
                yield from _monitor_jobs(monitor, None, None)
    for kind, like in (("VMPodScrape", "PodMonitor"), ("VMServiceScrape", "ServiceMonitor")):
        for monitor in cluster.inventory.of_kind(kind, VICTORIA):
            yield from _monitor_jobs(monitor, None, None, like)


def _monitor_jobs(
    monitor: Manifest, server: Manifest | None, scraper: Scraper | None, like: str = ""
) -> Iterator[DeclaredJob]:
    kind = like or monitor.ref.kind
    spec = objects.as_mapping(monitor.data.get("spec"))
    if kind == "ScrapeConfig":
        yield _scrape_config_job(monitor, spec, server, scraper)
        return
    namespaces = _monitor_namespaces(monitor, spec)
    prefix = f"{kind[0].lower()}{kind[1:]}/{monitor.ref.namespace}/{monitor.ref.name}"
    for index, endpoint in enumerate(objects.as_list(spec.get(MONITORS[kind][1]))):
        target = objects.dig(endpoint, "portNumber") or objects.dig(endpoint, "targetPort")
        selector = objects.as_mapping(spec.get("selector"))
        yield DeclaredJob(
            name=f"{prefix}/{index}",
            ref=monitor.ref,
            scraper=scraper,
            scheme=str(objects.dig(endpoint, "scheme", default="http")).lower(),
            path=str(objects.dig(endpoint, "path", default="/metrics")),
            tls=effective_tls(endpoint, spec, server),
            roles=(("pod" if kind == "PodMonitor" else "endpoints", namespaces),),
            rules=rules_of(objects.dig(endpoint, "relabelings") or objects.dig(endpoint, "relabelConfigs")),
            pod_selector=selector if kind == "PodMonitor" else None,
            service_selector=selector if kind == "ServiceMonitor" else None,
            port_name=objects.dig(endpoint, "port"),
            port_number=target if isinstance(target, int) else None,
            running_only=objects.dig(endpoint, "filterRunning", default=True) is not False,
            raw=objects.as_mapping(endpoint),
        )


def _monitor_namespaces(monitor: Manifest, spec: Mapping[str, Any]) -> tuple[str, ...]:
    selector = objects.as_mapping(spec.get("namespaceSelector"))
    if selector.get("any") is True:
        return ()
    return _strings(selector.get("matchNames")) or (monitor.ref.namespace,)


def _scrape_config_job(
    monitor: Manifest, spec: Mapping[str, Any], server: Manifest | None, scraper: Scraper | None
) -> DeclaredJob:
    roles = tuple(
        (
            str(objects.dig(each, "role", default="")).lower(),
            _strings(objects.dig(each, "namespaces", "names")),
        )
        for each in objects.as_list(spec.get("kubernetesSDConfigs"))
    )
    static = tuple(
        str(target)
        for each in objects.as_list(spec.get("staticConfigs"))
        for target in objects.as_list(objects.dig(each, "targets"))
    )
    return DeclaredJob(
        name=f"scrapeConfig/{monitor.ref.namespace}/{monitor.ref.name}",
        ref=monitor.ref,
        scraper=scraper,
        scheme=str(spec.get("scheme", "http")).lower(),
        path=str(spec.get("metricsPath", "/metrics")),
        tls=effective_tls(spec, spec, server),
        roles=roles,
        rules=rules_of(spec.get("relabelings")),
        static=static,
        raw=spec,
    )


def effective_tls(endpoint: Any, spec: Mapping[str, Any], server: Manifest | None) -> dict[str, Any]:
    """The TLS settings of an endpoint with those of its scrape class, in Prometheus' spelling.

    After `mergeTLSConfigWithScrapeClass`: no or an empty tlsConfig takes the class's whole; any field of its
    own, and only the files are filled in. PodMonitor and ScrapeConfig have no files of their own: they are
    pruned, so they do not count here.
    """
    own = dict(objects.as_mapping(objects.dig(endpoint, "tlsConfig")))
    kind_has_files = "selector" in spec and "endpoints" in spec
    if not kind_has_files:
        own = {key: value for key, value in own.items() if key not in FILES}
    of_class = objects.as_mapping(objects.dig(scrape_class(spec, server), "tlsConfig"))
    if not own:
        merged = dict(of_class)
    else:
        merged = {key: value for key, value in of_class.items() if key in FILES} | own
    names = {
        "caFile": "ca_file", "certFile": "cert_file", "keyFile": "key_file",
        "insecureSkipVerify": "insecure_skip_verify", "serverName": "server_name",
        "cert": "cert", "keySecret": "key", "ca": "ca",
    }  # fmt: skip
    return {names.get(key, key): value for key, value in merged.items()}


def scrape_class(spec: Mapping[str, Any], server: Manifest | None) -> Mapping[str, Any] | None:
    """The scrape class that a monitor names, else the Prometheus object's default one."""
    classes = objects.as_list(objects.dig(server.data, "spec", "scrapeClasses")) if server else []
    wanted = spec.get("scrapeClass")
    for each in classes:
        if (wanted and objects.dig(each, "name") == wanted) or (
            not wanted and objects.dig(each, "default") is True
        ):
            return objects.as_mapping(each)
    return None


def is_endpoints(role: str) -> bool:
    """Whether a discovery role finds pods through Services."""
    return role in _ENDPOINT_ROLES
