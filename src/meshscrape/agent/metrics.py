"""The agent's own metric families, in Prometheus's text format. Pure: what is seen comes in as values.

Names that Istio's agent has keep Istio's name, type and unit (`istio_agent_*`); the others are
`meshscrape_agent_*`. There is no `process_*` or `python_*`: those belong to the application.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

_CSR = '{request_type="csr"}'


@dataclass(frozen=True, slots=True)
class AgentFigures:
    """What an agent has to tell. Times are UTC, durations seconds; None: not known yet."""

    version: str
    started_at: datetime
    startup: float | None
    not_after: datetime | None
    requests: int
    failures: int
    request_seconds: float
    renewals: int
    envoy_restarts: int | None


def render(figures: AgentFigures, now: datetime) -> bytes:
    """The families as text exposition 0.0.4."""
    return "".join(_families(figures, now)).encode()


def _families(figures: AgentFigures, now: datetime) -> Iterator[str]:
    if figures.not_after is not None:
        yield _family(
            "istio_agent_cert_expiry_seconds",
            "gauge",
            "Seconds before the certificate chain expires; negative once it has.",
            (figures.not_after - now).total_seconds(),
            '{resource_name="default"}',
        )
        yield _family(
            "meshscrape_agent_certificate_not_after_seconds",
            "gauge",
            "When the certificate chain expires, in Unix time.",
            figures.not_after.timestamp(),
        )
    yield _family(
        "istio_agent_num_outgoing_requests", "counter", "Requests to the CA.", figures.requests, _CSR
    )
    yield _family(
        "istio_agent_num_failed_outgoing_requests",
        "counter",
        "Requests to the CA that brought no usable certificate.",
        figures.failures,
        _CSR,
    )
    yield _family(
        "istio_agent_outgoing_latency",
        "counter",
        "Milliseconds spent on requests to the CA.",
        figures.request_seconds * 1000,
        _CSR,
    )
    yield _family(
        "meshscrape_agent_certificate_renewals_total",
        "counter",
        "Certificates that have replaced an earlier one.",
        figures.renewals,
    )
    if figures.startup is not None:
        yield _family(
            "istio_agent_startup_duration_seconds",
            "gauge",
            "Seconds from the agent's start until it was ready.",
            figures.startup,
        )
    yield _family(
        "meshscrape_agent_start_time_seconds",
        "gauge",
        "When the agent started, in Unix time.",
        figures.started_at.timestamp(),
    )
    if figures.envoy_restarts is not None:
        yield _family(
            "meshscrape_agent_envoy_restarts_total",
            "counter",
            "How often Envoy has been started again.",
            figures.envoy_restarts,
        )
    yield _family(
        "meshscrape_agent_build_info",
        "gauge",
        "Always 1; the label has the version.",
        1,
        f'{{version="{figures.version}"}}',
    )


def _family(name: str, kind: str, text: str, value: float, labels: str = "") -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name}{labels} {value:.17g}\n"
