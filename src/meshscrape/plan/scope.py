"""Put settings at Istio's own places for defaults, instead of into the pod templates of other teams.

A ProxyConfig object without a selector gives its variables to every proxy of its namespace, or of the mesh in
the root namespace (`pilot/pkg/model/proxy_config.go`). The injector and the Gateway controller put them into
the environment and into the bootstrap. `global.proxy.excludeInboundPorts` of the chart is Istio's only place
for excluded ports beside a pod annotation, and it is for the whole mesh. Nothing of this restarts a pod.

What stays per workload: Gateway API gateways (their Deployment follows the Gateway), classic and ASM gateways
(their containers are complete), manually injected templates, bootstrap overrides, and excluded ports under
STRICT where the chart's value is not used. Bootstrap mode has an injection template (`injected_overrides`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import replace
from functools import partial

from meshscrape.errors import InputError
from meshscrape.istio import names
from meshscrape.kube.objects import Manifest, Ref, as_mapping, dig, oldest
from meshscrape.kube.views.proxy import annotation_metadata
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe import resolve_workloads
from meshscrape.observe.control import injector_of
from meshscrape.observe.references import first
from meshscrape.observe.workload import ObservedWorkload, ResolvedWorkload, fields_of
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.model import MANAGER, Missing, Plan, Refused
from meshscrape.plan.workloads import NATIVE_SINCE, Context, PlannedWorkload, default_control_plane

# Kinds of proxies that the injector or the Gateway controller makes from Istio's defaults.
_REACHED = ("sidecar", "uninjected", "gateway-injected", "gateway-api", "waypoint")
_MANAGED = ("gateway-api", "waypoint")
_PROXY_CONFIG = "ProxyConfig"
_PORT = names.ENVOY_SECURE_MERGED_METRICS_PORT
# The ProxyConfig object that a plan makes where a place has none.
DEFAULTS_NAME = "meshscrape-defaults"


def place_of(context: Context, workload: ObservedWorkload) -> str:
    """Return the namespace of the ProxyConfig that gives a workload its settings; empty for none.

    A Gateway's pods get settings through its overlay. istiod makes its Deployment anew when the Gateway, its
    overlay or the Deployment changes, but not when a ProxyConfig does.
    """
    return "" if workload.kind in _MANAGED else reach_of(context, workload)


def reach_of(context: Context, workload: ObservedWorkload) -> str:
    """Return the namespace of the ProxyConfig that reaches a workload in the wanted scope; empty for none.

    A ProxyConfig without a selector in the root namespace reaches the whole mesh, so a namespace's scope
    cannot be the root namespace.
    """
    root = context.observation.mesh.root_namespace
    whole = workload.proxy is not None and workload.proxy.complete
    if workload.kind not in _REACHED or (whole and workload.kind in ("sidecar", "gateway-injected")):
        return ""
    match context.intent.scope:
        # An injection template opens ports in the namespaces that it lists, so defaults close them there.
        case "mesh" if context.intent.mode != "bootstrap":
            return root
        case "mesh" | "namespace" if workload.namespace != root:
            return workload.namespace
    return ""


def blocked_by_scope(context: Context, chosen: Collection[PlannedWorkload]) -> dict[Ref, tuple[Missing, ...]]:
    """Return the chosen workloads whose shared place cannot be used, with what is in the way.

    A default reaches every proxy of its scope. So one workload that it would harm holds back all of them.
    """
    blocked: dict[Ref, tuple[Missing, ...]] = {}
    refs, inside = {target.ref for target in chosen}, reached(context)
    for place, targets in _by_place(context, chosen).items():
        if missing := tuple(_in_the_way(context, inside.get(place, []), targets, refs)):
            blocked |= {target.ref: missing for target in targets if target.ref not in context.held.workloads}
    return blocked


def _by_place(
    context: Context, targets: Iterable[PlannedWorkload], modes: Container[str] = ("native",)
) -> dict[str, list[PlannedWorkload]]:
    places: dict[str, list[PlannedWorkload]] = {}
    for target in targets:
        if target.mode in modes and (place := place_of(context, target.workload)):
            places.setdefault(place, []).append(target)
    return places


def reached(context: Context) -> dict[str, list[ObservedWorkload]]:
    """Return the workloads with a proxy that a default at each place reaches, chosen or not."""
    places: dict[str, list[ObservedWorkload]] = {}
    for workload in context.observation.workloads:
        if workload.in_mesh and (place := reach_of(context, workload)):
            places.setdefault(place, []).append(workload)
    return places


def _in_the_way(
    context: Context,
    inside: list[ObservedWorkload],
    targets: list[PlannedWorkload],
    chosen: Container[Ref],
) -> Iterable[Missing]:
    harms: dict[str, tuple[list[Ref], str, str]] = {}
    joining = [target.workload for target in targets if not target.workload.in_mesh]
    for workload in [*inside, *joining]:
        if opted_out(workload):
            continue
        code, text, remedy = _harmed(context, workload, chosen)
        if code:
            harms.setdefault(code, ([], text, remedy))[0].append(workload.ref)
    for code, (refs, text, remedy) in harms.items():
        yield Missing(code, f"the default would also reach {first(refs, 3)}: {text}", remedy)


def _harmed(context: Context, workload: ObservedWorkload, chosen: Container[Ref]) -> tuple[str, str, str]:
    """Return code, text and remedy of the harm that the default does to a workload; empty without harm."""
    wanted = context.intent.secure_ports
    opt_out = f'set {_PORT}: "0" in its {names.PROXY_CONFIG_ANNOTATION}, or plan with --scope workload'
    if workload.ref in context.held.workloads:
        return "scope-held", "it is held back", "do what its own gate says, or plan with --scope workload"
    if workload.envoy_missing:
        return "no-envoy", "it has no Envoy, and would announce a port that nothing opens", opt_out
    if any(port.number in wanted for port in workload.container_ports):
        return "port-taken", "its application uses the port itself", f"use another port, or {opt_out}"
    if workload.in_mesh and workload.versions.after.at_least(NATIVE_SINCE) is False:
        older = "upgrade it, or plan with --scope namespace or workload"
        return "native-too-old", f"its proxy is {workload.versions.after}, and ignores it", older
    listeners = workload.override.listeners if workload.override else ()
    # The plan turns Istio's listener off for the chosen workloads that keep an override.
    if workload.ref not in chosen and any(listener.port in wanted for listener in listeners):
        return "override-opens-ports", "its bootstrap override opens the same port", opt_out
    return "", "", ""


def opted_out(workload: ObservedWorkload) -> bool:
    """Return whether a workload's own annotation turns Istio's listener off, against any default."""
    return annotation_metadata(workload.annotations).get(_PORT) == "0"


def open_wide(context: Context) -> None:
    """Set the variables at the places of all native targets, and observe the targets anew."""
    places = _by_place(context, context.targets)
    if not places:
        return
    intent = context.intent
    wanted = {_PORT: str(intent.merged_port)}
    if intent.envoy_port:
        wanted[names.ENVOY_SECURE_METRICS_PORT] = str(intent.envoy_port)
    for place, targets in places.items():
        lacking = (wanted.items() - target.workload.env.items() for target in targets)
        if any(lacking):
            _set(context, place, wanted, "opens Istio's secure metrics ports by default")
    if intent.scope == "mesh":
        _exclude(context, [target for targets in places.values() for target in targets])
    refresh(context)


def close_wide(context: Context, place: str) -> bool:
    """Close the plaintext ports by default at `place`; return whether that changes anything."""
    before = context.draft.edits
    value = {names.METRICS_LOCALHOST_ACCESS_ONLY: "true"}
    _set(context, place, value, "closes the plaintext ports 15090 and 15020 by default")
    return context.draft.edits > before


def refresh(context: Context) -> None:
    """Observe the targets with the drafted changes, so that later steps only add what is still missing."""
    drafted = Plan(context.draft.changes()).apply(context.inventory)
    resolved = resolve_workloads(drafted, istio_version=context.intent.istio_version)
    before = {workload.ref: workload.metrics for workload in context.observed.workloads}
    workloads = {workload.ref: workload for workload in resolved}
    context.targets = [_refreshed(target, workloads.get(target.ref)) for target in context.targets]
    context.delivered |= {
        target.ref
        for target in context.targets
        if place_of(context, target.workload) and target.workload.metrics != before.get(target.ref)
    }


def _refreshed(target: PlannedWorkload, resolved: ResolvedWorkload | None) -> PlannedWorkload:
    if resolved is None:
        return target
    workload = ObservedWorkload(**fields_of(resolved), scraped_by=target.workload.scraped_by)
    return replace(target, workload=workload)


def _set(context: Context, place: str, wanted: Mapping[str, str], reason: str) -> None:
    group = names.ISTIO_NETWORKING
    there = oldest(
        config
        for config in context.inventory.in_namespace(place, _PROXY_CONFIG, group)
        if not as_mapping(dig(config.data, "spec", "selector", "matchLabels"))
    )
    ref = there.ref if there else Ref(group, _PROXY_CONFIG, place, DEFAULTS_NAME)
    if context.draft.get(ref) is None:
        empty = {
            # ProxyConfig has no v1.
            "apiVersion": f"{group}/v1beta1",
            "kind": _PROXY_CONFIG,
            "metadata": {"name": ref.name, "namespace": place, "labels": {names.MANAGED_BY: MANAGER}},
            "spec": {"environmentVariables": {}},
        }
        context.draft.ensure(empty, reason)

    def change(data: Mutable) -> None:
        templates.child(data, "spec", "environmentVariables").update(wanted)

    context.draft.edit(ref, change, reason)


def _exclude(context: Context, targets: Iterable[PlannedWorkload]) -> None:
    """Add the secure ports to the injector's `global.proxy.excludeInboundPorts`."""
    ports = context.intent.secure_ports
    revisions = {
        target.workload.revision
        for target in targets
        if not target.workload.in_mesh or any(map(target.workload.interception.captures, ports))
    }
    for revision in sorted(revisions):
        manifest = injector_of(context.inventory, _revision(context, revision))
        if manifest is None:
            context.draft.note(
                None,
                "injector-values-unknown",
                f"the values of the injector of revision {revision or 'default'} are not among the given "
                "objects, so ports are excluded per workload where mutual TLS is STRICT",
                _value(ports) + ", or give the ConfigMap istio-sidecar-injector too",
            )
        elif refused := context.draft.whole(partial(_exclude_in, context, manifest, ports)):
            context.draft.refuse(manifest.ref, refused)


def _revision(context: Context, name: str) -> str:
    """Return the revision that a revision or tag stands for."""
    for plane in context.observation.control_planes:
        if name in (plane.revision, *plane.tags):
            return plane.revision
    default = default_control_plane(context.observation)
    return default.revision if default else name


def _value(ports: Iterable[int]) -> str:
    text = ",".join(map(str, ports))
    return (
        f'set global.proxy.excludeInboundPorts: "{text}" in the values of Istio\'s chart '
        "(IstioOperator: spec.values)"
    )


def _exclude_in(context: Context, manifest: Manifest, ports: Iterable[int]) -> Refused | None:
    def change(data: Mutable) -> None:
        content = templates.child(data, "data")
        text = str(content.get("values") or "{}")
        values = load_text(text, "values")
        if not isinstance(values, dict):
            raise InputError("not a mapping", where="values", remedy="correct it")
        proxy = templates.child(values, "global", "proxy")
        proxy["excludeInboundPorts"] = templates.merged_ports(
            str(proxy.get("excludeInboundPorts") or ""), ports
        )
        content["values"] = rewrite(text, values)

    if context.draft.edit(manifest.ref, change, "new sidecars do not intercept the secure ports"):
        context.draft.note(
            manifest.ref,
            "chart-takes-back",
            "Helm or istioctl made this ConfigMap, and its next upgrade reverts the change",
            _value(ports),
        )
        context.draft.note(
            manifest.ref,
            "injector-follows",
            "istiod injects by this ConfigMap only after the kubelet has written it into istiod's pod, up to "
            "90 seconds later. Under STRICT, a pod made before then is not scraped",
            "before pods restart, see that `kubectl -n NAMESPACE run probe --image=probe --dry-run=server "
            f"-o yaml` prints {','.join(map(str, ports))} as excluded from interception",
        )
    return None


def settled_places(
    context: Context, waits: Callable[[ObservedWorkload], tuple[Missing, ...]]
) -> dict[str, tuple[Missing, ...]]:
    """Return the places with open plaintext ports, each with what keeps them open (empty: they may close).

    `waits` returns what one workload waits for. The default reaches workloads that are not chosen, too.
    """
    places: dict[str, tuple[Missing, ...]] = {}
    # Legacy mode has no default for its ports, so its workloads close their plaintext ports themselves.
    own = {target.ref: target.workload for target in context.targets}
    inside = reached(context)
    for place, targets in _by_place(context, context.targets, ("native", "bootstrap")).items():
        refs = {workload.ref: own.get(workload.ref, workload) for workload in inside.get(place, ())}
        refs |= {target.ref: target.workload for target in targets}
        still_open = [ref for ref, workload in refs.items() if not workload.metrics.hardened]
        waiting = [ref for ref in still_open if waits(refs[ref])]
        if any(ref in own for ref in still_open):
            places[place] = (_waits_for(waiting),) if waiting else ()
    return places


def _waits_for(refs: list[Ref]) -> Missing:
    return Missing(
        "scope-waits",
        f"{first(refs, 3)}: the default would close plaintext ports that must stay open",
        "see the other gates; or close the ports of single workloads with --scope workload",
    )
