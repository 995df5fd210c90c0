"""Known configuration problems of a mesh, each with a text and a remedy (docs/pitfalls.md)."""

from __future__ import annotations

from meshscrape.kube.objects import Ref
from meshscrape.observe.model import Pitfall
from meshscrape.observe.pitfalls.advisories import advisory_pitfalls
from meshscrape.observe.pitfalls.ambient import ambient_pitfalls
from meshscrape.observe.pitfalls.bootstrap import bootstrap_pitfalls
from meshscrape.observe.pitfalls.facts import Check, Facts
from meshscrape.observe.pitfalls.gateways import gateway_pitfalls
from meshscrape.observe.pitfalls.injection import injection_pitfalls
from meshscrape.observe.pitfalls.legacy import legacy_pitfalls
from meshscrape.observe.pitfalls.networks import network_pitfalls
from meshscrape.observe.pitfalls.operator import operator_pitfalls
from meshscrape.observe.pitfalls.platform import platform_pitfalls
from meshscrape.observe.pitfalls.prometheus import prometheus_pitfalls
from meshscrape.observe.pitfalls.proxy import proxy_pitfalls
from meshscrape.observe.pitfalls.scraping import scraping_pitfalls

_CHECKS: tuple[Check, ...] = (
    injection_pitfalls,
    network_pitfalls,
    platform_pitfalls,
    ambient_pitfalls,
    advisory_pitfalls,
    proxy_pitfalls,
    bootstrap_pitfalls,
    gateway_pitfalls,
    legacy_pitfalls,
    scraping_pitfalls,
    prometheus_pitfalls,
    operator_pitfalls,
)
_NONE = Ref("", "", "", "")
_SEVERITIES = ("critical", "error", "warning", "info")


def find_pitfalls(facts: Facts) -> tuple[Pitfall, ...]:
    """Return all pitfalls, each once; errors first, then by code and object."""
    unique = {pitfall: None for check in _CHECKS for pitfall in check(facts)}
    return tuple(
        sorted(
            unique,
            key=lambda pitfall: (
                _SEVERITIES.index(pitfall.severity),
                pitfall.code,
                pitfall.ref or _NONE,
                pitfall.text,
            ),
        )
    )
