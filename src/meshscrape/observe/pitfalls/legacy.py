"""Pitfalls of the legacy mode, Istio's recipe for proxies before 1.31."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.istio import ports
from meshscrape.istio.names import ISTIO_NETWORKING, MERGED_PATH
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.kube.views.sidecar import Sidecar
from meshscrape.kube.views.sidecar import sidecar as view_of
from meshscrape.observe.authorization import (
    AuthorizationPolicies,
    WorkloadRequest,
    allow_policies,
    is_allowed,
)
from meshscrape.observe.legacy import Legacy, ingress_ports
from meshscrape.observe.model import Pitfall, Scraper
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.workload import ObservedWorkload

_LISTENER_MERGE = "PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE"
# An identity that no policy names.
_STRANGER = "spiffe://cluster.local/ns/meshscrape-stranger/sa/stranger"
_LOOPBACK = ("127.0.0.1", "::1")


def legacy_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of the legacy mode."""
    for sidecar in facts.cluster.inventory.of_kind("Sidecar", ISTIO_NETWORKING):
        yield from _wide(view_of(sidecar))
    for entry in facts.cluster.inventory.of_kind("ServiceEntry", ISTIO_NETWORKING):
        yield from _exported(entry)
    authorization = AuthorizationPolicies(facts.cluster, facts.control.mesh.root_namespace)
    legacy = Legacy(facts.cluster, facts.control.mesh.root_namespace)
    for workload in facts.workloads:
        yield from _several(workload, legacy)
        if workload.legacy:
            yield from _not_strict(workload)
            yield from _hidden(workload, legacy, facts)
            yield from _collides(workload)
            policies = authorization.of(workload.namespace, workload.labels)
            yield from _exposed_agent(workload, policies)
            yield from _scraper_denied(workload, policies, facts)
            yield from _open_to_all(workload, policies)


def _wide(sidecar: Sidecar) -> Iterator[Pitfall]:
    metrics_ports = ingress_ports(sidecar)
    if metrics_ports and not sidecar.selector:
        yield Pitfall(
            "legacy-without-selector",
            "warning",
            sidecar.ref,
            f"The Sidecar with ingress {metrics_ports[0].port} has no workloadSelector: it replaces the "
            "inbound listeners of every workload of the namespace.",
            "Give it a workloadSelector, one Sidecar per workload, with an ingress for each of its ports.",
        )


def _exported(entry: Manifest) -> Iterator[Pitfall]:
    spec = objects.as_mapping(entry.data.get("spec"))
    numbers = [objects.dig(port, "number") for port in objects.as_list(spec.get("ports"))]
    addresses = [objects.dig(endpoint, "address") for endpoint in objects.as_list(spec.get("endpoints"))]
    leads_home = any(address in _LOOPBACK for address in addresses)
    if (
        leads_home
        and any(number in (ports.MERGED, ports.STATS) for number in numbers)
        and spec.get("exportTo") != ["."]
    ):
        yield Pitfall(
            "gateway-admin-exported",
            "warning",
            entry.ref,
            "The ServiceEntry for the gateway's own metrics is visible in the whole mesh: every sidecar gets "
            "an outbound listener that leads to its own metrics port.",
            'Add exportTo: ["."] to it and to its VirtualService.',
        )


def _several(workload: ObservedWorkload, legacy: Legacy) -> Iterator[Pitfall]:
    in_force = legacy.sidecars.of(workload.namespace, workload.labels) if workload.kind == "sidecar" else ()
    if len(in_force) > 1:
        yield Pitfall(
            "sidecars-conflict",
            "warning",
            workload.ref,
            f"Several Sidecar objects select it ({', '.join(sidecar.ref.name for sidecar in in_force)}): "
            "which one is in force is undefined.",
            "Merge them into one.",
        )


def _not_strict(workload: ObservedWorkload) -> Iterator[Pitfall]:
    for port in workload.legacy:
        mode = workload.mtls.of(port.port)
        if workload.kind == "sidecar" and mode != "STRICT":
            yield Pitfall(
                "legacy-not-strict",
                "error",
                workload.ref,
                f"{port.ref} serves metrics on {port.port}, where mTLS is {mode}: Prometheus' TLS is refused "
                "(it lacks Istio's ALPN), and every client can read the metrics in plain text.",
                f"Add a PeerAuthentication with a selector and portLevelMtls {port.port}: STRICT.",
            )


def _hidden(workload: ObservedWorkload, legacy: Legacy, facts: Facts) -> Iterator[Pitfall]:
    plane = facts.control.plane(workload.revision)
    if workload.kind != "sidecar" or (plane is not None and plane.env.get(_LISTENER_MERGE) == "true"):
        return
    sidecar = legacy.sidecars.of(workload.namespace, workload.labels)[0]
    served = [objects.dig(listener, "port", "number") for listener in sidecar.ingress]
    hidden = [str(port.number) for port in workload.container_ports if port.number not in served]
    if hidden:
        yield Pitfall(
            "legacy-hides-ports",
            "warning",
            workload.ref,
            f"{sidecar.ref} has an ingress, which replaces all inbound listeners: port {', '.join(hidden)} "
            "is passed through as plain TCP, without HTTP telemetry and HTTP authorization.",
            "Add an ingress for each of these ports.",
        )


def _collides(workload: ObservedWorkload) -> Iterator[Pitfall]:
    others = {workload.metrics.merged, workload.metrics.envoy}
    if workload.override is not None:
        others |= {listener.port for listener in workload.override.listeners}
    for port in workload.legacy:
        if port.port in others:
            yield Pitfall(
                "legacy-same-port",
                "error",
                workload.ref,
                f"{port.ref} and the proxy's own secure listener are both on {port.port}: only one of the "
                "two answers.",
                "Use the other port for the new listener (15092), or remove the old objects.",
            )


def _exposed_agent(workload: ObservedWorkload, policies: tuple[Manifest, ...]) -> Iterator[Pitfall]:
    """Report ports through which clients reach the agent's other paths.

    The agent treats requests from its own pod as local, and the Sidecar's requests come from there.
    """
    for port in workload.legacy:
        encrypted = workload.kind != "sidecar" or workload.mtls.of(port.port) == "STRICT"
        quit_agent = WorkloadRequest(port.port, "/quitquitquit", "POST", _STRANGER if encrypted else "")
        if port.every_path and port.target == ports.MERGED and is_allowed(policies, quit_agent):
            who = (
                "every workload of the mesh"
                if encrypted
                else "every client that reaches the pod, in plain text,"
            )
            yield Pitfall(
                "legacy-agent-exposed",
                "error",
                workload.ref,
                f"{port.ref} leads port {port.port} to the agent: {who} ends the agent with POST "
                "/quitquitquit and reads /debug/pprof/.",
                f"Set STRICT for port {port.port} (PeerAuthentication, portLevelMtls), and deny everything "
                "there but the scraper's GET of /stats/prometheus (AuthorizationPolicy).",
            )


def _scraper_denied(
    workload: ObservedWorkload, policies: tuple[Manifest, ...], facts: Facts
) -> Iterator[Pitfall]:
    for port in workload.legacy:
        readers = [scraper for scraper in facts.scrapers if _reads(scraper, workload, port.port, facts)]
        denied = [
            scraper
            for scraper in readers
            if not is_allowed(policies, WorkloadRequest(port.port, MERGED_PATH, "GET", scraper.spiffe_id))
        ]
        for scraper in denied:
            listing = ", ".join(policy.ref.name for policy in allow_policies(policies))
            yield Pitfall(
                "legacy-scraper-denied",
                # If the policies admit another scraper, they may refuse this one on purpose.
                "error" if denied == readers else "warning",
                workload.ref,
                f"{scraper.ref} scrapes port {port.port} as {scraper.spiffe_id}, but no AuthorizationPolicy "
                f"lets it in{f' (ALLOW: {listing})' if listing else ''}: it gets 403.",
                f"Add an ALLOW for this identity, port {port.port} and path {MERGED_PATH}, or remove the "
                "DENY.",
            )


def _reads(scraper: Scraper, workload: ObservedWorkload, port: int, facts: Facts) -> bool:
    return any(
        job.scraper == scraper.ref
        and job.over == "mtls"
        and port in (*job.ports_of.get(workload.ref, ()), *job.ports_after.get(workload.ref, ()))
        for job in facts.scrape_jobs
    )


def _open_to_all(workload: ObservedWorkload, policies: tuple[Manifest, ...]) -> Iterator[Pitfall]:
    for port in workload.legacy:
        if is_allowed(policies, WorkloadRequest(port.port, MERGED_PATH, "GET", _STRANGER)):
            yield Pitfall(
                "legacy-any-identity",
                "info",
                workload.ref,
                f"No AuthorizationPolicy keeps strangers from port {port.port}: every identity of the mesh "
                "may read these metrics.",
                "Add an AuthorizationPolicy that denies all principals but the scraper's on that port.",
            )
