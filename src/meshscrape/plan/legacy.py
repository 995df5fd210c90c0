"""Mode `legacy`: open port 15091 by Istio's own configuration, for proxies older than 1.31.

The objects follow Istio's documentation before 1.31. They add what it omits: STRICT on the port (under
PERMISSIVE, the port also serves plain HTTP), the application's own ports in the Sidecar (a Sidecar's ingress
replaces the ports of the Services), and an allow list.
"""

from __future__ import annotations

from typing import Any

from meshscrape.istio import names
from meshscrape.istio.ports import MERGED, STATS
from meshscrape.kube.objects import Manifest, Object, Ref, as_list, as_mapping, dig, labels, selects
from meshscrape.kube.views.peer_authentication import PeerAuthentications, peer_authentication
from meshscrape.kube.views.sidecar import Sidecars, sidecar
from meshscrape.observe.model import WorkloadPort
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan import native, templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.gateways import ProxyPatch, patch_gateway
from meshscrape.plan.legacy_authorization import plan_authorization
from meshscrape.plan.model import LEGACY_PORT, MANAGER, LegacySource, Refused
from meshscrape.plan.workloads import (
    Context,
    PlannedWorkload,
    istio_object,
    restarts_of,
    selector_of,
)

ADMIN_HOST = "gateway-admin.local"
_ADMIN = "meshscrape-gateway-admin"
_PROTOCOLS = ("HTTP", "HTTP2", "HTTPS", "GRPC", "MONGO", "TCP", "TLS")
_SOURCES: dict[LegacySource, int] = {"merged": MERGED, "envoy": STATS}
_SERVED: dict[LegacySource, str] = {"merged": "the merged metrics", "envoy": "Envoy's statistics alone"}
# The port names in the ServiceEntry. Each of its ports must have its own name.
_PORT_NAMES = {MERGED: "http-metrics", STATS: "http-envoy-metrics"}


def plan_legacy(context: Context, target: PlannedWorkload) -> Refused | None:
    """Plan the objects that open 15091 for a workload, and the annotation that announces it."""
    announced = {names.SECURE_PORT: str(LEGACY_PORT)}
    included = target.workload.interception.include
    uncaptured = target.workload.kind == "sidecar" and not target.workload.interception.captured
    if not target.workload.is_gateway and (uncaptured or included == ()):
        return Refused(
            "legacy-not-intercepted",
            "its inbound traffic is not intercepted, which legacy mode needs",
            "use --mode bootstrap, whose listeners are reached directly",
        )
    if refused := _never_strict(context, target.workload):
        return refused
    plan_authorization(context, target)
    if target.workload.is_gateway:
        _gateway(context, target)
        patch = ProxyPatch(native.off(context, target.workload), announced)
        return patch_gateway(context, target, patch, "announces the port to Prometheus")
    _strict(context, target)
    _sidecar(context, target)
    _note_left_out(context, target.workload)

    def change(data: Mutable) -> None:
        template = templates.template_of(data)
        templates.annotate(template, announced)
        if off := native.off(context, target.workload):
            native.set_variables(template, off)
        if included:
            ports = templates.merged_ports(",".join(included), (LEGACY_PORT,))
            templates.annotate(template, {names.INCLUDE_INBOUND: ports})
        excluded = templates.annotation(template, names.EXCLUDE_INBOUND)
        if str(LEGACY_PORT) in excluded.split(","):
            # Unlike Istio's native port, this port must be captured.
            kept = templates.merged_ports(excluded, (), without=(LEGACY_PORT,))
            templates.annotate(template, {names.EXCLUDE_INBOUND: kept})

    context.draft.edit(
        target.ref, change, "announces the port to Prometheus", restarts_of(context, target.workload)
    )
    return None


def _reason(context: Context) -> str:
    return f"serves {_SERVED[context.intent.legacy_source]} over mutual TLS on {LEGACY_PORT}"


def _note_left_out(context: Context, workload: ObservedWorkload) -> None:
    """Note that Envoy's own port does not have the application's metrics, which would no longer be read."""
    merges = workload.prometheus_annotations.get(names.PROMETHEUS_SCRAPE) == "true"
    if context.intent.legacy_source == "envoy" and merges:
        context.draft.note(
            workload.ref,
            "application-left-out",
            f"port {LEGACY_PORT} lacks its application's own metrics, and its pods leave the plaintext "
            "jobs that read them",
            "use --legacy-source merged, or scrape the application's port over mutual TLS",
        )


def _name(workload: ObservedWorkload) -> str:
    return f"meshscrape-{workload.name}"


def _never_strict(context: Context, workload: ObservedWorkload) -> Refused | None:
    """Return the reason if no object can make the port of a sidecar STRICT."""
    root = context.observation.mesh.root_namespace
    if workload.is_gateway or workload.namespace != root or workload.mtls.of(LEGACY_PORT) == "STRICT":
        return None
    return Refused(
        "legacy-never-strict",
        f"Istio ignores a PeerAuthentication for single workloads in its root namespace {root}, and "
        f"{LEGACY_PORT} would not be STRICT",
        "use --mode bootstrap, make the mesh STRICT, or move it to another namespace",
    )


def _strict(context: Context, target: PlannedWorkload) -> None:
    workload = target.workload
    own = Ref(names.ISTIO_SECURITY, "PeerAuthentication", workload.namespace, _name(workload))
    if workload.mtls.of(LEGACY_PORT) == "STRICT" and context.draft.get(own) is None:
        return
    reason = f"requires mutual TLS on {LEGACY_PORT}, which also serves plain HTTP under PERMISSIVE"
    present = _selecting_policy(context, workload)
    if present is not None:

        def change(data: Mutable) -> None:
            ports = templates.child(data, "spec", "portLevelMtls")
            ports[str(LEGACY_PORT)] = {"mode": "STRICT"}

        context.draft.edit(present, change, reason)
        return
    spec = {
        "selector": {"matchLabels": selector_of(context, workload)},
        "portLevelMtls": {str(LEGACY_PORT): {"mode": "STRICT"}},
    }
    policy = istio_object(
        context, names.ISTIO_SECURITY, "PeerAuthentication", workload.namespace, _name(workload), spec
    )
    context.draft.ensure(policy, reason)


def _selecting_policy(context: Context, workload: ObservedWorkload) -> Ref | None:
    """Return the PeerAuthentication that selects the workload by labels (the oldest, as Istio does)."""
    known = context.inventory.in_namespace(workload.namespace, "PeerAuthentication", names.ISTIO_SECURITY)
    policies = PeerAuthentications(map(peer_authentication, known), context.observation.mesh.root_namespace)
    policy = policies.selecting(workload.namespace, workload.labels)
    return policy.ref if policy else None


def ingress_of(data: Object) -> list[Any]:
    """Return the ingress listeners of a Sidecar."""
    return as_list(dig(data, "spec", "ingress"))


def is_metrics_ingress(ingress: Any) -> bool:
    """Return whether a Sidecar's ingress listener is the metrics listener: ours or Istio's documented one."""
    endpoint = str(dig(ingress, "defaultEndpoint", default=""))
    return dig(ingress, "port", "number") == LEGACY_PORT and endpoint.endswith((":15020", ":15090"))


def effective_sidecar(
    context: Context, workload: ObservedWorkload, *, ours: bool = True
) -> tuple[Ref, bool] | None:
    """Return the Sidecar in force for a workload, and whether it selects the workload by labels.

    Without `ours`, Sidecars that meshscrape made are left out.
    """
    root = context.observation.mesh.root_namespace
    known = (
        manifest
        for namespace in dict.fromkeys((workload.namespace, root))
        for manifest in _sidecars(context, namespace)
        if ours or labels(manifest.data).get(names.MANAGED_BY) != MANAGER
    )
    in_force = Sidecars(map(sidecar, known), root).of(workload.namespace, workload.labels)
    return (in_force[0].ref, bool(in_force[0].selector)) if in_force else None


def _sidecars(context: Context, namespace: str) -> list[Manifest]:
    """Return the Sidecars of a namespace with the plan's changes so far."""
    known = context.inventory.in_namespace(namespace, "Sidecar", names.ISTIO_NETWORKING)
    latest = ((manifest.ref, context.draft.get(manifest.ref)) for manifest in known)
    return [Manifest(ref, data) for ref, data in latest if data is not None]


def _sidecar(context: Context, target: PlannedWorkload) -> None:
    workload = target.workload
    listener = {
        "port": {"number": LEGACY_PORT, "name": "https-metrics", "protocol": "HTTP"},
        "defaultEndpoint": f"127.0.0.1:{_SOURCES[context.intent.legacy_source]}",
    }
    effective = effective_sidecar(context, workload, ours=False)
    if effective is not None:
        data = context.object_of(effective[0])
        if present := [listening for listening in ingress_of(data) if is_metrics_ingress(listening)]:
            _note_other_source(context, effective[0], present[0], listener["defaultEndpoint"])
            return
        if effective[1]:

            def change(data: Mutable) -> None:
                ingress = ingress_of(data) or _application_ingress(workload)
                templates.child(data, "spec")["ingress"] = [*ingress, listener]

            context.draft.edit(effective[0], change, _reason(context))
            return
    spec: Mutable = {"workloadSelector": {"labels": selector_of(context, workload)}}
    inherited = as_mapping(dig(context.object_of(effective[0]), "spec")) if effective else {}
    own = as_list(inherited.get("ingress")) or _application_ingress(workload)
    spec["ingress"] = [*own, listener]
    # A Sidecar that selects the workload replaces the namespace's Sidecar as a whole.
    spec |= {key: inherited[key] for key in ("egress", "outboundTrafficPolicy") if key in inherited}
    new_sidecar = istio_object(
        context, names.ISTIO_NETWORKING, "Sidecar", workload.namespace, _name(workload), spec
    )
    context.draft.ensure(new_sidecar, _reason(context))


def _note_other_source(context: Context, ref: Ref, ingress: Any, wanted: Any) -> None:
    present = str(dig(ingress, "defaultEndpoint", default=""))
    if present.rpartition(":")[2] != str(wanted).rpartition(":")[2]:
        context.draft.note(
            ref,
            "other-legacy-source",
            f"it already routes {LEGACY_PORT} to {present}, not to {wanted}: left alone",
            "change its defaultEndpoint, or choose the other --legacy-source",
        )


def _application_ingress(workload: ObservedWorkload) -> list[Mutable]:
    """Return ingress listeners for the application's ports: with an ingress, Istio ignores the Services."""
    return [
        {
            "port": {
                "number": port.number,
                "name": f"{_protocol(port).lower()}-{port.number}",
                "protocol": _protocol(port),
            },
            # Use the pod's own address, because some applications do not listen on localhost.
            "defaultEndpoint": f"0.0.0.0:{port.number}",
        }
        for port in sorted(workload.container_ports, key=lambda port: port.number)
        if port.service_port_name or port.protocol != "auto"
    ]


def _protocol(port: WorkloadPort) -> str:
    """Return the protocol as a Sidecar spells it, from the name of the Service's port."""
    prefix = port.service_port_name.partition("-")[0].upper()
    if prefix in _PROTOCOLS:
        return prefix
    return "HTTP" if port.protocol == "http" else "TCP"


def _gateway(context: Context, target: PlannedWorkload) -> None:
    workload = target.workload
    if _has_metrics_server(context, workload):
        return
    name, namespace = _name(workload), workload.namespace
    source = _SOURCES[context.intent.legacy_source]
    server = {
        "port": {"number": LEGACY_PORT, "name": "https-metrics", "protocol": "HTTPS"},
        "tls": {"mode": "ISTIO_MUTUAL"},
        "hosts": ["*"],
    }
    gateway = {"selector": selector_of(context, workload), "servers": [server]}
    admin = {
        # Limit the host to the gateway's namespace: elsewhere it would lead to each sidecar's own metrics.
        "exportTo": ["."],
        "hosts": [ADMIN_HOST],
        "location": "MESH_INTERNAL",
        "ports": _admin_ports(context, namespace, source),
        "resolution": "STATIC",
        "endpoints": [{"address": "127.0.0.1"}],
    }
    route = {
        "match": [{"uri": {"prefix": names.MERGED_PATH}, "port": LEGACY_PORT}],
        "route": [{"destination": {"host": ADMIN_HOST, "port": {"number": source}}}],
    }
    service = {"exportTo": ["."], "hosts": ["*"], "gateways": [name], "http": [route]}
    for kind, own_name, spec in (
        ("ServiceEntry", _ADMIN, admin),
        ("Gateway", name, gateway),
        ("VirtualService", name, service),
    ):
        context.draft.ensure(
            istio_object(context, names.ISTIO_NETWORKING, kind, namespace, own_name, spec), _reason(context)
        )


def _admin_ports(context: Context, namespace: str, source: int) -> list[Mutable]:
    """Return the entry's ports, with `source` added: all gateways of the namespace share the entry."""
    present = context.draft.get(Ref(names.ISTIO_NETWORKING, "ServiceEntry", namespace, _ADMIN))
    numbers = {dig(port, "number") for port in as_list(dig(present, "spec", "ports"))}
    return [
        {"number": number, "name": name, "protocol": "HTTP"}
        for number, name in _PORT_NAMES.items()
        if number == source or number in numbers
    ]


def is_metrics_server(server: Any) -> bool:
    """Return whether a Gateway's server is the metrics server: ours or Istio's documented one."""
    return bool(dig(server, "port", "number") == LEGACY_PORT and dig(server, "tls", "mode") == "ISTIO_MUTUAL")


def metrics_gateways(context: Context, workload: ObservedWorkload) -> list[Ref]:
    """Return the Gateways of any namespace that open 15091 on a gateway workload."""
    refs = []
    for manifest in context.inventory.of_kind("Gateway", names.ISTIO_NETWORKING):
        data = context.draft.get(manifest.ref)
        selector = {"matchLabels": as_mapping(dig(data, "spec", "selector"))}
        servers = as_list(dig(data, "spec", "servers"))
        if any(map(is_metrics_server, servers)) and selects(selector, workload.labels):
            refs.append(manifest.ref)
    return refs


def _has_metrics_server(context: Context, workload: ObservedWorkload) -> bool:
    own = Ref(names.ISTIO_NETWORKING, "Gateway", workload.namespace, _name(workload))
    return any(ref != own for ref in metrics_gateways(context, workload))
