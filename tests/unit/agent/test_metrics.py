"""The agent's own families."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from prometheus_client.parser import text_string_to_metric_families

from meshscrape.agent.metrics import AgentFigures, agent_families
from meshscrape.exposition.health import render_families

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIGURES = AgentFigures(
    version="1.2.3",
    started_at=NOW - timedelta(seconds=100),
    startup=0.5,
    not_after=NOW + timedelta(hours=1),
    requests=4,
    failures=1,
    request_seconds=0.25,
    renewals=2,
    envoy_restarts=3,
    envoy_current=True,
)


def render(figures: AgentFigures, now: datetime) -> bytes:
    """Return the families as text."""
    return render_families(agent_families(figures, now))


def values(figures: AgentFigures) -> dict[str, float]:
    """Value by series name."""
    lines = render(figures, NOW).decode().splitlines()
    series = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, _, value in series}


def test_an_independent_parser_reads_it() -> None:
    """Every series is in a family that prometheus_client's parser understands."""
    families = list(text_string_to_metric_families(render(FIGURES, NOW).decode()))
    assert sum(len(family.samples) for family in families) == len(values(FIGURES))


def test_figures_have_their_units() -> None:
    """Seconds left and Unix time of the end, milliseconds for Istio's latency, counts as counted."""
    seen = values(FIGURES)
    assert seen["istio_agent_cert_expiry_seconds"] == 3600
    assert seen["meshscrape_agent_certificate_not_after_seconds"] == NOW.timestamp() + 3600
    assert seen["istio_agent_outgoing_latency"] == 250
    assert seen["meshscrape_agent_envoy_restarts_total"] == 3
    assert seen["meshscrape_agent_envoy_certificate_current"] == 1


def test_every_family_belongs_to_the_agent() -> None:
    """No name could be an application's: all of them are Istio's agent's or meshscrape's agent's."""
    assert all(name.startswith(("istio_agent_", "meshscrape_agent_")) for name in values(FIGURES))


def test_unknown_values_are_absent() -> None:
    """Before the certificate, and without Envoy, there is no made-up value."""
    seen = values(replace(FIGURES, not_after=None, startup=None, envoy_restarts=None, envoy_current=None))
    assert seen.keys().isdisjoint(
        {
            "istio_agent_cert_expiry_seconds",
            "istio_agent_startup_duration_seconds",
            "meshscrape_agent_envoy_restarts_total",
            "meshscrape_agent_envoy_certificate_current",
        }
    )
