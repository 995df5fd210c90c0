"""Migrate from `legacy` to another mode: remove the old objects after the new listeners are in use."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import ISTIO_NETWORKING, ISTIO_SECURITY, MANAGED_BY
from meshscrape.kube.objects import Object, Ref, as_list, as_mapping, dig, labels, selects
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan import legacy
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.model import LEGACY_PORT, MANAGER
from meshscrape.plan.workloads import Context

_REASON = f"{LEGACY_PORT} by Istio's configuration has been replaced"


def plan_removal(context: Context) -> None:
    """Plan to remove the objects of legacy mode that no workload needs any more."""
    moved = [target.workload for target in context.targets if target.mode != "legacy"]
    refs = {workload.ref for workload in moved}
    others = [
        other
        for other in context.observation.workloads
        if other.ref not in refs and other.metrics.mode in ("legacy", "mixed")
    ]
    remaining = [*others, *(target.workload for target in context.targets if target.mode == "legacy")]
    for workload in moved:
        if workload.is_gateway:
            _gateway(context, workload, remaining)
        else:
            _sidecar(context, workload, remaining)
        _policies(context, workload, remaining)


def _sidecar(context: Context, workload: ObservedWorkload, remaining: list[ObservedWorkload]) -> None:
    effective = legacy.effective_sidecar(context, workload)
    if effective is None:
        return
    ref = effective[0]
    data = context.object_of(ref)
    ingress = legacy.ingress_of(data)
    kept = [listener for listener in ingress if not legacy.is_metrics_ingress(listener)]
    if len(kept) == len(ingress) or _still_needed(context, ref, workload, remaining):
        return
    if _ours(data) or (not kept and not _has_more(data)):
        context.draft.delete(ref, _REASON)
        return

    def strip(data: Mutable) -> None:
        if kept:
            data["spec"]["ingress"] = kept
        else:
            del data["spec"]["ingress"]

    context.draft.edit(ref, strip, _REASON)


def _still_needed(
    context: Context, ref: Ref, workload: ObservedWorkload, remaining: list[ObservedWorkload]
) -> bool:
    for other in remaining:
        if other.is_gateway or (effective := legacy.effective_sidecar(context, other)) is None:
            continue
        if effective[0] == ref:
            context.draft.note(
                ref,
                "still-serving",
                f"it still serves {other.ref}, so it stays although {workload.ref} no longer needs it",
                "plan for both together",
            )
            return True
    return False


def _has_more(data: Object) -> bool:
    """Return whether a Sidecar has settings other than its ingress."""
    return bool(set(as_mapping(data.get("spec"))) - {"ingress", "workloadSelector"})


def _ours(data: Object | None) -> bool:
    return data is not None and labels(data).get(MANAGED_BY) == MANAGER


def _policies(context: Context, workload: ObservedWorkload, remaining: list[ObservedWorkload]) -> None:
    neighbours = [
        other for other in remaining if other.namespace == workload.namespace and not other.is_gateway
    ]
    for policy in context.inventory.in_namespace(workload.namespace, "PeerAuthentication", ISTIO_SECURITY):
        _peer_authentication(context, policy.ref, workload, neighbours)
    for name in (f"meshscrape-{workload.name}", f"meshscrape-{workload.name}-allow"):
        ref = Ref(ISTIO_SECURITY, "AuthorizationPolicy", workload.namespace, name)
        if _ours(context.draft.get(ref)):
            context.draft.delete(ref, _REASON)


def _peer_authentication(
    context: Context, ref: Ref, workload: ObservedWorkload, others: list[ObservedWorkload]
) -> None:
    data = context.draft.get(ref)
    selector = dig(data, "spec", "selector")
    ports = as_mapping(dig(data, "spec", "portLevelMtls"))
    if data is None or not as_mapping(selector) or not selects(selector, workload.labels):
        return
    # If meshscrape did not set the mode, the user did, for example for native listeners on this port.
    if dig(ports, str(LEGACY_PORT), "mode") != "STRICT":
        return
    # Without it, those listeners would serve their metrics in plain HTTP.
    if any(selects(selector, other.labels) for other in others):
        return
    other_ports = {key: value for key, value in ports.items() if key != str(LEGACY_PORT)}
    if not other_ports and not dig(data, "spec", "mtls"):
        context.draft.delete(ref, _REASON)
        return

    def strip(data: Mutable) -> None:
        if other_ports:
            data["spec"]["portLevelMtls"] = other_ports
        else:
            del data["spec"]["portLevelMtls"]

    context.draft.edit(ref, strip, _REASON)


def _gateway(context: Context, workload: ObservedWorkload, remaining: list[ObservedWorkload]) -> None:
    for ref in legacy.metrics_gateways(context, workload):
        selector = {"matchLabels": as_mapping(dig(context.object_of(ref), "spec", "selector"))}
        if any(other.is_gateway and selects(selector, other.labels) for other in remaining):
            continue
        servers = as_list(dig(context.object_of(ref), "spec", "servers"))
        kept = [server for server in servers if not legacy.is_metrics_server(server)]
        if kept:
            _keep_servers(context, ref, kept)
        else:
            context.draft.delete(ref, _REASON)
        _routes(context, ref, gone=not kept)
    gateways = context.inventory.of_kind("Gateway", ISTIO_NETWORKING)
    remaining_gateways = [context.draft.get(gateway.ref) for gateway in gateways]
    if any(
        legacy.is_metrics_server(server)
        for data in remaining_gateways
        for server in as_list(dig(data, "spec", "servers"))
    ):
        return
    for entry in context.inventory.of_kind("ServiceEntry", ISTIO_NETWORKING):
        if legacy.ADMIN_HOST in as_list(dig(entry.data, "spec", "hosts")):
            context.draft.delete(entry.ref, _REASON)


def _keep_servers(context: Context, ref: Ref, kept: list[Any]) -> None:
    def strip(data: Mutable) -> None:
        data["spec"]["servers"] = kept

    context.draft.edit(ref, strip, _REASON)


def _routes(context: Context, gateway: Ref, *, gone: bool) -> None:
    """Plan to remove the gateway's routes to its own metrics."""
    names = {f"{gateway.namespace}/{gateway.name}", gateway.name}
    for manifest in context.inventory.of_kind("VirtualService", ISTIO_NETWORKING):
        data = context.draft.get(manifest.ref)
        bound = {str(name) for name in as_list(dig(data, "spec", "gateways"))}
        if data is None or not bound & names:
            continue
        if gateway.name in bound and manifest.ref.namespace != gateway.namespace and not gone:
            continue
        routes = as_list(dig(data, "spec", "http"))
        kept = [route for route in routes if not _leads_to_admin(route)]
        if len(kept) == len(routes):
            continue
        if not kept:
            context.draft.delete(manifest.ref, _REASON)
        else:
            _keep_routes(context, manifest.ref, kept)


def _keep_routes(context: Context, ref: Ref, kept: list[Any]) -> None:
    def strip(data: Mutable) -> None:
        data["spec"]["http"] = kept

    context.draft.edit(ref, strip, _REASON)


def _leads_to_admin(route: Any) -> bool:
    return any(
        dig(destination, "destination", "host") == legacy.ADMIN_HOST
        for destination in as_list(dig(route, "route"))
    )
