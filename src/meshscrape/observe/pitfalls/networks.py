"""Pitfalls of NetworkPolicies between scrapers and workloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.istio import names, ports
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.selectors import LabelIndex
from meshscrape.observe.model import Pitfall, Scraper, Severity
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.workload import ObservedWorkload


@dataclass(frozen=True, slots=True)
class _Peer:
    """A pod as a NetworkPolicy sees it. `labels` are None when the objects do not tell them."""

    namespace: str
    namespace_labels: Mapping[str, str]
    labels: Mapping[str, str] | None


def network_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of NetworkPolicies."""
    policies = {direction: _policies(direction, facts) for direction in ("Ingress", "Egress")}
    peers = {scraper.ref: _scraper_peer(scraper, facts) for scraper in facts.scrapers}
    readers = _readers(facts)
    for workload in facts.workloads:
        if workload.in_mesh and not workload.host_network:
            yield from _blocked(workload, policies, peers, readers.get(workload.ref, ()), facts)


def _policies(direction: str, facts: Facts) -> LabelIndex[Manifest]:
    index: LabelIndex[Manifest] = LabelIndex()
    for policy in facts.cluster.inventory.of_kind("NetworkPolicy"):
        types = objects.as_list(objects.dig(policy.data, "spec", "policyTypes"))
        # A policy without policyTypes applies to ingress, and also to egress when it has egress rules.
        implied = direction == "Ingress" or bool(objects.dig(policy.data, "spec", "egress"))
        if direction in types or (not types and implied):
            selector = objects.as_mapping(objects.dig(policy.data, "spec", "podSelector"))
            index.add(policy.ref.namespace, selector, policy)
    return index


def _readers(facts: Facts) -> Mapping[Ref, tuple[Ref, ...]]:
    """Return the scrapers of each workload that have a job over mutual TLS for it."""
    readers: dict[Ref, dict[Ref, None]] = {}
    for job in facts.scrape_jobs:
        if job.over == "mtls" and job.scraper is not None:
            for ref in (*job.ports_of, *job.ports_after):
                readers.setdefault(ref, {})[job.scraper] = None
    return {ref: tuple(scrapers) for ref, scrapers in readers.items()}


def _scraper_peer(scraper: Scraper, facts: Facts) -> _Peer:
    workload = facts.workload_of(scraper.ref)
    labels: Mapping[str, str] | None = workload.labels if workload else None
    if scraper.ref.kind in ("Prometheus", "PrometheusAgent"):
        manifest = facts.cluster.inventory.get(scraper.ref)
        own = (
            objects.labels({"metadata": objects.dig(manifest.data, "spec", "podMetadata")})
            if manifest
            else {}
        )
        # The Operator writes these on the pods that it makes.
        labels = {
            names.APPLICATION_NAME: "prometheus",
            names.APPLICATION_INSTANCE: scraper.name,
            names.MANAGED_BY: "prometheus-operator",
            names.OPERATED_BY: scraper.name,
            "prometheus": scraper.name,
            **own,
        }
    return _Peer(scraper.namespace, facts.cluster.namespace_labels(scraper.namespace), labels)


def _blocked(
    workload: ObservedWorkload,
    policies: Mapping[str, LabelIndex[Manifest]],
    peers: Mapping[Ref, _Peer],
    readers: tuple[Ref, ...],
    facts: Facts,
) -> Iterator[Pitfall]:
    # No policy stops a pod from reaching itself.
    others = [ref for ref in readers or peers if ref != workload.ref]
    if peers and not others:
        return
    into = policies["Ingress"].matching(workload.namespace, workload.labels)
    target = _Peer(workload.namespace, facts.cluster.namespace_labels(workload.namespace), workload.labels)
    wanted = workload.metrics.listening or (ports.SECURE_STATS, ports.SECURE_MERGED)
    blocked: dict[tuple[tuple[Ref, ...], str], list[int]] = {}
    got_through = set()
    # When the dump has no scraper, report only a policy that admits no client at all.
    scrapers: list[Ref | None] = [*others] or [None]
    for number in wanted:
        for ref in scrapers:
            barrier = _barrier(
                number, into, target, peers[ref] if ref else None, policies["Egress"], bool(readers)
            )
            if barrier:
                source = f"from {ref or 'the scraper'}"
                blocked.setdefault((tuple(policy.ref for policy in barrier), source), []).append(number)
            else:
                got_through.add((ref, number))
    if not readers and all(any(number == through for _, through in got_through) for number in wanted):
        # No scraper reads the workload yet, and at least one could reach it.
        return
    for (refs, source), numbers in blocked.items():
        listing = ", ".join(sorted(map(str, refs)))
        shut_out = all((ref, number) not in got_through for ref in others for number in numbers)
        severity: Severity = "info" if not workload.metrics.listening else "error" if shut_out else "warning"
        yield Pitfall(
            "network-policy-blocks",
            severity,
            workload.ref,
            f"{listing} does not admit connections to port {', '.join(map(str, numbers))} {source}: they "
            "time out.",
            "Add a NetworkPolicy that admits this port between the two. Policies add up.",
        )


def _barrier(
    number: int,
    into: list[Manifest],
    target: _Peer,
    peer: _Peer | None,
    egress: LabelIndex[Manifest],
    reads: bool,
) -> list[Manifest]:
    """Return the policies that keep a scraper from a port; none when it reaches the port."""
    if into and not _admits(into, "from", number, peer):
        return into
    if not reads or peer is None or peer.labels is None:
        return []
    out = egress.matching(peer.namespace, peer.labels)
    return out if out and not _admits(out, "to", number, target) else []


def _admits(policies: list[Manifest], side: str, port: int, peer: _Peer | None) -> bool:
    """Return whether one of the policies admits `port` with `peer` on the `side` `from` or `to`."""
    field = "ingress" if side == "from" else "egress"
    return any(
        _has_port(rule, port)
        and _has_peer(objects.as_list(objects.dig(rule, side)), policy.ref.namespace, peer)
        for policy in policies
        for rule in objects.as_list(objects.dig(policy.data, "spec", field))
    )


def _has_port(rule: Any, port: int) -> bool:
    listed = objects.as_list(objects.dig(rule, "ports"))
    for entry in listed:
        number = objects.dig(entry, "port")
        if objects.dig(entry, "protocol", default="TCP") != "TCP":
            continue
        if number is None or (
            isinstance(number, int) and number <= port <= objects.dig(entry, "endPort", default=number)
        ):
            return True
    return not listed


def _has_peer(listed: list[Any], namespace: str, peer: _Peer | None) -> bool:
    return not listed or peer is None or any(_is_peer(entry, namespace, peer) for entry in listed)


def _is_peer(listed: Any, namespace: str, peer: _Peer) -> bool:
    if objects.dig(listed, "ipBlock") is not None:
        # It is unknown whether the pod's address is in the block.
        return True
    space, pods = objects.dig(listed, "namespaceSelector"), objects.dig(listed, "podSelector")
    if space is None and peer.namespace != namespace:
        return False
    if space is not None and not objects.selects(
        space, {names.NAMESPACE_NAME: peer.namespace, **peer.namespace_labels}
    ):
        return False
    return pods is None or peer.labels is None or objects.selects(pods, peer.labels)
