"""Define declared scrape jobs; read them from configurations of Prometheus and OpenTelemetry Collectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.errors import InputError
from meshscrape.kube import objects
from meshscrape.kube.objects import Ref
from meshscrape.kube.selectors import parse_selector
from meshscrape.observe.model import Scraper
from meshscrape.observe.relabel import Rule, rules_of

_ENDPOINT_ROLES = ("endpoints", "endpointslice")


@dataclass(frozen=True, slots=True)
class DeclaredDiscovery:
    """A Kubernetes discovery: its role, its namespaces (none: all), and the labels that pods must have."""

    role: str
    namespaces: tuple[str, ...] = ()
    selector: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class DeclaredJob:
    """A scrape job as its configuration or monitor declares it.

    `tls` is in Prometheus's spelling (`cert_file`). `elsewhere`: a discovery other than Kubernetes finds
    targets of it. A monitor also has its selectors. `raw` is the declaration as it is written.
    """

    name: str
    ref: Ref
    scraper: Scraper | None = None
    scheme: str = "http"
    path: str = "/metrics"
    tls: Mapping[str, Any] = field(default_factory=dict)
    discoveries: tuple[DeclaredDiscovery, ...] = ()
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


def config_jobs(config: Mapping[str, Any], ref: Ref, scraper: Scraper | None) -> Iterator[DeclaredJob]:
    """Return the jobs of a Prometheus or OpenTelemetry Collector configuration."""
    for name, receiver in objects.as_mapping(config.get("receivers")).items():
        if str(name).partition("/")[0] == "prometheus":
            # The collector expands $NAME, so a dollar is written twice there.
            inner = _undollar(objects.as_mapping(objects.dig(receiver, "config")))
            yield from config_jobs(inner, ref, scraper)
    for job in objects.as_list(config.get("scrape_configs")):
        if isinstance(job, Mapping):
            yield _config_job(job, ref, scraper)


def _undollar(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, Mapping):
        return {key: _undollar(item) for key, item in value.items()}
    return [_undollar(item) for item in value] if isinstance(value, list) else value


def _config_job(config: Mapping[str, Any], ref: Ref, scraper: Scraper | None) -> DeclaredJob:
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
        discoveries=discoveries(config.get("kubernetes_sd_configs"), scraper),
        rules=rules_of(config.get("relabel_configs")),
        static=static_targets(config.get("static_configs")),
        elsewhere=elsewhere,
        raw=config,
    )


def discoveries(configs: Any, scraper: Scraper | None) -> tuple[DeclaredDiscovery, ...]:
    """Return the discoveries of `kubernetes_sd_configs` (or of the Operator's `kubernetesSDConfigs`)."""
    return tuple(_discovery(config, scraper) for config in objects.as_list(configs))


def _discovery(config: Any, scraper: Scraper | None) -> DeclaredDiscovery:
    role = str(objects.dig(config, "role", default="")).lower()
    namespaces = strings(objects.dig(config, "namespaces", "names"))
    own = objects.dig(config, "namespaces", "own_namespace") or objects.dig(
        config, "namespaces", "ownNamespace"
    )
    if own is True and scraper is not None:
        namespaces = tuple(dict.fromkeys((*namespaces, scraper.namespace)))
    expressions: list[Any] = []
    for selector in objects.as_list(objects.dig(config, "selectors")):
        label = objects.dig(selector, "label")
        if str(objects.dig(selector, "role", default="")).lower() == "pod" and label:
            expressions += _expressions(str(label))
    return DeclaredDiscovery(role, namespaces, {"matchExpressions": expressions} if expressions else None)


def _expressions(selector: str) -> list[Any]:
    try:
        return objects.as_list(parse_selector(selector)["matchExpressions"])
    except InputError:
        # Prometheus refuses such a job. Here it counts for all pods, so that no scraper is overlooked.
        return []


def static_targets(configs: Any) -> tuple[str, ...]:
    """Return the targets of `static_configs`."""
    return tuple(
        str(target)
        for config in objects.as_list(configs)
        for target in objects.as_list(objects.dig(config, "targets"))
    )


def strings(value: Any) -> tuple[str, ...]:
    """Return the entries of a list as strings; nothing for another value."""
    return tuple(str(item) for item in objects.as_list(value))


def is_endpoints(role: str) -> bool:
    """Return whether a discovery role finds pods through Services."""
    return role in _ENDPOINT_ROLES
