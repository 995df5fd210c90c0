"""The agent's own metric families. Pure: observations are arguments.

Metrics that Istio's agent also has keep Istio's name, type and unit (`istio_agent_*`); the others are
`meshscrape_agent_*`. There is no `process_*` or `python_*`, because those belong to the application.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from meshscrape.exposition.health import Family

NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class AgentFigures:
    """The values of an agent's metrics. Times are in UTC, durations in seconds. None means not known yet."""

    version: str
    started_at: datetime
    startup: float | None
    not_after: datetime | None
    requests: int
    failures: int
    request_seconds: float
    renewals: int
    envoy_restarts: int | None
    envoy_current: bool | None
    scrapers_current: bool | None = None


def agent_families(figures: AgentFigures, now: datetime) -> list[Family]:
    """Return the agent's own families."""
    return [*_certificate(figures, now), *_requests(figures), *_life(figures)]


def _certificate(figures: AgentFigures, now: datetime) -> Iterator[Family]:
    if figures.not_after is not None:
        yield _gauge(
            "istio_agent_cert_expiry_seconds",
            "Seconds before the certificate chain expires; negative once it has.",
            (figures.not_after - now).total_seconds(),
            {"resource_name": "default"},
        )
        yield _gauge(
            "meshscrape_agent_certificate_not_after_seconds",
            "When the certificate chain expires, in Unix time.",
            figures.not_after.timestamp(),
        )
    yield _counter(
        "meshscrape_agent_certificate_renewals_total",
        "Certificates that have replaced an earlier one.",
        figures.renewals,
    )


def _requests(figures: AgentFigures) -> Iterator[Family]:
    csr = {"request_type": "csr"}
    yield _counter("istio_agent_num_outgoing_requests", "Requests to the CA.", figures.requests, csr)
    yield _counter(
        "istio_agent_num_failed_outgoing_requests",
        "Requests to the CA that gave no usable certificate.",
        figures.failures,
        csr,
    )
    yield _counter(
        "istio_agent_outgoing_latency",
        "Milliseconds spent on requests to the CA.",
        figures.request_seconds * 1000,
        csr,
    )


def _life(figures: AgentFigures) -> Iterator[Family]:
    yield _gauge(
        "meshscrape_agent_start_time_seconds",
        "When the agent started, in Unix time.",
        figures.started_at.timestamp(),
    )
    if figures.startup is not None:
        yield _gauge(
            "istio_agent_startup_duration_seconds",
            "Seconds from the agent's start until it was ready.",
            figures.startup,
        )
    if figures.envoy_restarts is not None:
        yield _counter(
            "meshscrape_agent_envoy_restarts_total",
            "Restarts of Envoy.",
            figures.envoy_restarts,
        )
    if figures.envoy_current is not None:
        yield _gauge(
            "meshscrape_agent_envoy_certificate_current",
            "Whether Envoy serves the latest published certificate.",
            figures.envoy_current,
        )
    if figures.scrapers_current is not None:
        yield _gauge(
            "meshscrape_agent_scrapers_file_current",
            "Whether the allow list in use is the one in its file.",
            figures.scrapers_current,
        )
    version = {"version": figures.version}
    yield _gauge("meshscrape_agent_build_info", "Always 1; the label has the version.", 1, version)


def _gauge(name: str, text: str, value: float, labels: Mapping[str, str] = NO_LABELS) -> Family:
    return Family(name, "gauge", text, [(labels, value)])


def _counter(name: str, text: str, value: float, labels: Mapping[str, str] = NO_LABELS) -> Family:
    return Family(name, "counter", text, [(labels, value)])
