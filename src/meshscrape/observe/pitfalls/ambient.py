"""Pitfalls of the ambient mode."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.kube.objects import Ref
from meshscrape.observe.model import Pitfall, Scraper
from meshscrape.observe.pitfalls.facts import Facts


def ambient_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of the ambient mode."""
    yield from _members(facts)
    for scraper in facts.scrapers:
        if scraper.ambient:
            yield _scraper(scraper)


def _members(facts: Facts) -> Iterator[Pitfall]:
    members = [workload for workload in facts.workloads if workload.kind == "ambient"]
    for namespace in sorted({workload.namespace for workload in members}):
        count = sum(1 for workload in members if workload.namespace == namespace)
        yield Pitfall(
            "ambient",
            "info",
            Ref("", "Namespace", "", namespace),
            f"{count} workload{'s are' if count != 1 else ' is'} in ambient mode, without a sidecar: ztunnel "
            "encrypts the traffic between ambient pods, and `prometheus.io` annotations are the "
            "application's own.",
            "Enrol the scraper's namespace too (istio.io/dataplane-mode: ambient), and admit only its "
            "identity to the metrics port with an AuthorizationPolicy.",
        )


def _scraper(scraper: Scraper) -> Pitfall:
    return Pitfall(
        "scraper-ambient",
        "info",
        scraper.ref,
        "It is in ambient mode: ztunnel carries its scrapes of ambient pods over mutual TLS. The plaintext "
        "ports of sidecars stay plaintext for it, and it has no certificate of its own for their secure "
        "ports. A "
        "sidecar would take it out of ambient mode.",
        "Scrape sidecars with a Prometheus that has a sidecar for its certificate, or move the workloads to "
        "ambient mode.",
    )
