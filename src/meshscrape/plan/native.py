"""Mode `native`: use Istio's own secure listeners, for proxies of 1.31 and newer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.ports import SECURE_STATS
from meshscrape.kube import objects
from meshscrape.kube.objects import as_list, as_mapping, dig, selects
from meshscrape.kube.views.proxy import annotation_metadata
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import Mutable, clone
from meshscrape.plan.model import Intent, Refused
from meshscrape.plan.workloads import Context, PlannedWorkload, merges_envoy


def variables(intent: Intent, workload: ObservedWorkload) -> dict[str, str]:
    """Return the variables that open the ports."""
    port = envoy_port(intent, workload)
    opened = {names.ENVOY_SECURE_MERGED_METRICS_PORT: str(intent.merged_port)}
    return opened | ({names.ENVOY_SECURE_METRICS_PORT: str(port)} if port else {})


def envoy_port(intent: Intent, workload: ObservedWorkload) -> int:
    """Return the port for Envoy's statistics alone; 0 for none.

    A workload needs it if its agent does not merge them, because no other secure port has them then.
    """
    return intent.envoy_port or (0 if merges_envoy(workload) else SECURE_STATS)


def secure_ports(intent: Intent, workload: ObservedWorkload) -> tuple[int, ...]:
    """Return the secure ports to open, each once."""
    return tuple(port for port in (envoy_port(intent, workload), intent.merged_port) if port)


def announcements(intent: Intent, workload: ObservedWorkload) -> dict[str, str]:
    """Return the annotations by which Prometheus finds the ports."""
    port = envoy_port(intent, workload)
    announced = {names.SECURE_PORT: str(intent.merged_port)}
    return announced | ({names.SECURE_ENVOY_PORT: str(port)} if port else {})


def off(context: Context, workload: ObservedWorkload) -> dict[str, str]:
    """Return the variables that turn off the listeners that are now on, no matter where they were set.

    Two listeners on one port prevent Envoy's start. And Istio's own listeners let every workload read.
    """
    said = _once_injected(context, workload) if workload.kind == "uninjected" else workload.env
    return {
        key: "0"
        for key in (names.ENVOY_SECURE_MERGED_METRICS_PORT, names.ENVOY_SECURE_METRICS_PORT)
        if said.get(key, "0") not in ("", "0")
    }


def _once_injected(context: Context, workload: ObservedWorkload) -> dict[str, str]:
    """Return the variables that a workload will get with its proxy, because it is observed without one."""
    mesh = context.observation.mesh
    merged = dict(mesh.default_metadata)
    for namespace in (mesh.root_namespace, workload.namespace):
        for config in context.inventory.in_namespace(namespace, "ProxyConfig", names.ISTIO_NETWORKING):
            if not as_mapping(dig(config.data, "spec", "selector", "matchLabels")):
                configured = as_mapping(dig(config.data, "spec", "environmentVariables"))
                merged |= {str(key): str(value) for key, value in configured.items()}
    return {**merged, **workload.proxy_metadata}


def overridden(context: Context, workload: ObservedWorkload, wanted: Mapping[str, str]) -> Refused | None:
    """Return the reason if `wanted` has no effect: a ProxyConfig object that sets other values.

    In the process environment, such an object has priority over the pod's annotation.
    """
    template = templates.template_of(clone(context.object_of(workload.ref)))
    own = _own_variables(template)
    for config in context.inventory.in_namespace(workload.namespace, "ProxyConfig", names.ISTIO_NETWORKING):
        selector = dig(config.data, "spec", "selector")
        if not as_mapping(dig(selector, "matchLabels")) or not selects(selector, workload.labels):
            continue
        said = as_mapping(dig(config.data, "spec", "environmentVariables"))
        for key, value in wanted.items():
            if key in said and str(said[key]) != value and key not in own:
                return Refused(
                    "proxy-config-wins",
                    f'{config.ref} sets {key} to "{said[key]}", with priority over the pod\'s annotation',
                    f'set it there to "{value}", or remove it, and plan again',
                )
    return None


def missing(workload: ObservedWorkload, intent: Intent) -> dict[str, str]:
    """Return the variables that do not have the wanted value yet, no matter where they are set now."""
    return {
        key: value for key, value in variables(intent, workload).items() if workload.env.get(key) != value
    }


def excluded_ports(
    context: Context, workload: ObservedWorkload, template: Mapping[str, object]
) -> str | None:
    """Return the new value of excludeInboundPorts; None if the ports are not captured.

    The sidecar decrypts captured connections before they reach the secure listener, which expects to decrypt
    them itself. This always happens under STRICT, so a stricter policy later would break scraping.
    """
    intercepted = workload.interception.captured or (
        workload.kind == "uninjected" and templates.annotation(template, names.INTERCEPTION_MODE) != "NONE"
    )
    listed = workload.interception.include
    captured = [
        port
        for port in secure_ports(context.intent, workload)
        if (listed is None or str(port) in listed) and str(port) not in workload.interception.exclude
    ]
    if workload.is_gateway or not intercepted or not captured:
        return None
    present = templates.annotation(template, names.EXCLUDE_INBOUND)
    # The annotation replaces the mesh-wide list, so include that list.
    start = present or ",".join(context.observation.mesh.exclude_inbound_ports)
    return templates.merged_ports(start, captured)


def set_variables(template: Mutable, wanted: Mapping[str, str]) -> None:
    """Set variables in the annotation, and in the user's own container istio-proxy if it has them.

    The container's value has priority over the annotation.
    """
    own = _own_variables(template)
    templates.configure_proxy(template, wanted)
    proxy = templates.container(template)
    if proxy is not None:
        templates.set_env(proxy, {key: value for key, value in wanted.items() if key in own})


def _own_variables(template: Mutable) -> set[Any]:
    return {dig(variable, "name") for variable in as_list(dig(templates.container(template), "env"))}


def _set(context: Context, workload: ObservedWorkload, template: Mutable, wanted: Mapping[str, str]) -> None:
    before = annotation_metadata(objects.annotations(template))
    if workload.kind != "uninjected" and all(before.get(key) == value for key, value in wanted.items()):
        context.draft.note(
            workload.ref,
            "variables-overridden",
            "its annotation has the ports, but another object overrides them",
            "find the ProxyConfig object that selects it, and set the variables there",
        )
    set_variables(template, wanted)


def edit_sidecar(context: Context, target: PlannedWorkload, template: Mutable) -> None:
    """Open the ports of a sidecar (or of an injected gateway) through its template's annotations."""
    workload, intent = target.workload, context.intent
    lacking = missing(workload, intent)
    if lacking:
        _set(context, workload, template, lacking)
    ports = [port for port in secure_ports(intent, workload) if workload.mtls.of(port) == "STRICT"]
    excluded = excluded_ports(context, workload, template)
    if excluded is not None and (lacking or ports):
        templates.annotate(template, {names.EXCLUDE_INBOUND: excluded})
    announced = announcements(intent, workload)
    if not templates.annotation(template, names.SECURE_PORT):
        # The injector writes this annotation, but keeps an existing value.
        del announced[names.SECURE_PORT]
    templates.annotate(template, announced)
