"""Recognise programs that scrape by the whole path of their image, their arguments or their labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.istio.names import APPLICATION_NAME, PROXY_CONTAINER
from meshscrape.istio.versions import split_image
from meshscrape.kube import objects
from meshscrape.observe.model import ScraperKind


@dataclass(frozen=True, slots=True)
class Program:
    """A program that scrapes: its kind, its display name, and the paths of its images."""

    kind: ScraperKind
    product: str
    image: re.Pattern[str]


def _program(kind: ScraperKind, product: str, *images: str) -> Program:
    """Return a program; each of `images` is a regular expression for the end of the path, after a slash."""
    return Program(kind, product, re.compile(rf"(?:^|/)(?:{'|'.join(images)})$"))


# The first match counts, so managed collectors come before the programs that they are built from.
PROGRAMS: tuple[Program, ...] = (
    _program("gmp", "Google Managed Service for Prometheus", r"prometheus-engine/prometheus"),
    _program(
        "azure", "Azure Monitor managed Prometheus", r"prometheus-collector/images", r"prometheus-collector"
    ),
    _program("arms", "Alibaba Cloud ARMS", r"[^/]*arms-prom[^/]*"),
    _program(
        "prometheus",
        "Prometheus",
        r"prometheus(?:-linux)?(?:-(?:amd64|arm64|armv7|ppc64le|s390x))?",
        r"(?:ose|origin|golang-github-prometheus)-prometheus(?:-rhel\d+)?",
        r"golang-github-prometheus-prometheus(?:-rhel\d+)?",
        r"mirrored-prometheus-prometheus",
        r"prom-prometheus",
    ),
    _program("vmagent", "vmagent", r"[^/]*vmagent[^/]*"),
    _program("vmagent", "VictoriaMetrics single", r"vmsingle", r"victoria-metrics"),
    _program("otel", "AWS Distro for OpenTelemetry", r"aws-otel-collector", r"adot-collector"),
    _program("otel", "Splunk OpenTelemetry Collector", r"splunk-otel-collector"),
    _program("otel", "SigNoz OpenTelemetry Collector", r"signoz-otel-collector"),
    _program(
        "otel",
        "OpenTelemetry Collector",
        r"opentelemetry-collector[^/]*",
        r"otelcol[^/]*",
        r"[^/]*-otel-collector",
    ),
    _program(
        "other",
        "Datadog Agent",
        r"(?:datadog|datadoghq)/agent",
        r"datadog-agent",
        r"datadoghq\.azurecr\.io/agent",
    ),
    _program("other", "Grafana Agent", r"grafana/agent", r"grafana-agent"),
    _program("other", "Grafana Alloy", r"grafana/alloy", r"alloy"),
    _program(
        "other",
        "New Relic",
        r"nri-prometheus",
        r"newrelic-prometheus-configurator",
        r"newrelic-prometheus-agent",
    ),
    _program("other", "Elastic Metricbeat", r"metricbeat[^/]*"),
    _program("other", "Elastic Agent", r"elastic-agent[^/]*"),
    _program("other", "Telegraf", r"telegraf[^/]*"),
    _program("other", "Amazon CloudWatch Agent", r"cloudwatch-agent"),
    _program("other", "Dynatrace ActiveGate", r"dynatrace-activegate", r"(?:linux|dynatrace)/activegate"),
    _program("other", "Sysdig Agent", r"sysdig/agent[^/]*"),
    _program("other", "Instana Agent", r"instana/agent[^/]*"),
    _program("other", "Netdata", r"netdata/netdata"),
)

# By the label app.kubernetes.io/name, for images of a private registry.
_BY_NAME: Mapping[str, tuple[ScraperKind, str]] = {
    "prometheus": ("prometheus", "Prometheus"),
    "vmagent": ("vmagent", "vmagent"),
    "opentelemetry-collector": ("otel", "OpenTelemetry Collector"),
    "grafana-agent": ("other", "Grafana Agent"),
    "alloy": ("other", "Grafana Alloy"),
    "metricbeat": ("other", "Elastic Metricbeat"),
    "telegraf": ("other", "Telegraf"),
}
# Arguments that only one program accepts.
_BY_ARGUMENT: tuple[tuple[re.Pattern[str], ScraperKind, str], ...] = (
    (re.compile(r"--?storage\.(tsdb|agent)\.path\b"), "prometheus", "Prometheus"),
    (re.compile(r"--?promscrape\.config\b"), "vmagent", "vmagent"),
    (re.compile(r"--?promscrape\.kubernetes"), "vmagent", "vmagent"),
)
_SINGLE = "VictoriaMetrics single"


@dataclass(frozen=True, slots=True)
class ScrapingContainer:
    """The container of a pod template that scrapes, and what runs in it."""

    container: Mapping[str, Any]
    kind: ScraperKind
    product: str


def scraping_container(template: Any) -> ScrapingContainer | None:
    """Return the container that scrapes: by image, else by its arguments, else by the pod's label."""
    containers = [
        container
        for container in objects.as_list(objects.dig(template, "spec", "containers"))
        if isinstance(container, Mapping) and container.get("name") != PROXY_CONTAINER
    ]
    for container in containers:
        repository, _ = split_image(str(container.get("image", "")))
        for program in PROGRAMS:
            if program.image.search(repository) and not _only_stores(program, container):
                return ScrapingContainer(container, program.kind, program.product)
    for container in containers:
        for pattern, kind, product in _BY_ARGUMENT:
            if any(pattern.search(argument) for argument in _arguments(container)):
                return ScrapingContainer(container, kind, product)
    by_name = _BY_NAME.get(objects.labels(template).get(APPLICATION_NAME, ""))
    if by_name is not None and containers:
        return ScrapingContainer(containers[0], *by_name)
    return None


def _only_stores(program: Program, container: Mapping[str, Any]) -> bool:
    """Return whether a VictoriaMetrics single node has arguments, and none of them makes it scrape."""
    arguments = _arguments(container)
    return (
        program.product == _SINGLE
        and bool(arguments)
        and not any("promscrape.config" in argument for argument in arguments)
    )


def _arguments(container: Mapping[str, Any]) -> list[str]:
    parts = (*objects.as_list(container.get("command")), *objects.as_list(container.get("args")))
    return [str(part) for part in parts]
