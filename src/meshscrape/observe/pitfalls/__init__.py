"""The traps that a mesh may already be in; each is a pitfall with its text and remedy (docs/pitfalls.md)."""

from __future__ import annotations

from meshscrape.kube.objects import Ref
from meshscrape.observe.model import Pitfall
from meshscrape.observe.pitfalls.cluster import cluster_traps
from meshscrape.observe.pitfalls.gateways import gateway_traps
from meshscrape.observe.pitfalls.legacy import legacy_traps
from meshscrape.observe.pitfalls.operator import operator_traps
from meshscrape.observe.pitfalls.prometheus import prometheus_traps
from meshscrape.observe.pitfalls.proxy import proxy_traps
from meshscrape.observe.pitfalls.scraping import scraping_traps
from meshscrape.observe.pitfalls.view import Trap, View

_TRAPS: tuple[Trap, ...] = (
    cluster_traps, proxy_traps, gateway_traps, legacy_traps, scraping_traps, prometheus_traps, operator_traps,
)  # fmt: skip
_NONE = Ref("", "", "", "")
_SEVERITIES = ("error", "warning", "info")


def find_pitfalls(view: View) -> tuple[Pitfall, ...]:
    """All pitfalls, each once; errors first, then by code and object."""
    found = {pitfall: None for trap in _TRAPS for pitfall in trap(view)}
    return tuple(
        sorted(
            found,
            key=lambda each: (_SEVERITIES.index(each.severity), each.code, each.ref or _NONE, each.text),
        )
    )
