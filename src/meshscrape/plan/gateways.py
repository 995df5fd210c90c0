"""Change gateways through the object that owns their pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MANAGED_BY, PROXY_CONFIG_ANNOTATION, PROXY_CONTAINER
from meshscrape.kube.objects import LAST_APPLIED, Ref, as_mapping, dig
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import Mutable, clone
from meshscrape.plan.model import MANAGER, Refused
from meshscrape.plan.workloads import PARAMETERS_SINCE, Context, PlannedWorkload, restarts_of

_OVERLAY = "deployment"
# Do not copy these: Istio reads some from the Gateway itself, and one is kubectl's own record.
_NOT_COPIED = (LAST_APPLIED,)
# The first version with support for `infrastructure`.
_INFRASTRUCTURE_SINCE = "1.22"


@dataclass(frozen=True, slots=True)
class ProxyPatch:
    """Settings for a proxy: variables, pod annotations, variables of `proxy.istio.io/config`, one volume.

    `config_map` is mounted as a whole at `mount_path`, from a volume called `volume`.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config_map: str = ""
    volume: str = ""
    mount_path: str = ""


def patch_gateway(
    context: Context, target: PlannedWorkload, patch: ProxyPatch, reason: str
) -> Refused | None:
    """Apply `patch` to a gateway's proxy; return the reason if no object can carry it."""
    match target.workload.kind:
        case "gateway-api" | "waypoint":
            return _patch_managed(context, target, patch, reason)
        case "asm-gateway":
            return _patch_asm(context, target, patch, reason)
    return _patch_template(context, target, patch, reason)


def _patch_template(
    context: Context, target: PlannedWorkload, patch: ProxyPatch, reason: str
) -> Refused | None:
    template = templates.template_of(clone(context.object_of(target.ref)))
    if templates.container(template) is None and (patch.env or patch.config_map):
        return Refused(
            "no-proxy-container",
            "its template has no container istio-proxy",
            "give the gateway's complete manifest",
        )

    def change(data: Mutable) -> None:
        _fill(templates.template_of(data), patch)

    changed = context.draft.edit(target.ref, change, reason, restarts_of(context, target.workload))
    if changed and target.workload.kind == "gateway-classic":
        context.draft.note(
            target.ref,
            "chart-takes-back",
            "Helm or istioctl made this gateway, and its next upgrade reverts the change",
            "put the same env and podAnnotations into its values",
        )
    return None


def _fill(template: Mutable, patch: ProxyPatch) -> None:
    proxy = templates.container(template)
    templates.annotate(template, patch.annotations)
    if patch.metadata:
        templates.configure_proxy(template, patch.metadata)
    if proxy is not None:
        templates.set_env(proxy, patch.env)
    if patch.config_map and proxy is not None:
        spec = templates.child(template, "spec")
        templates.set_named(spec, "volumes", _volume(patch))
        templates.set_named(proxy, "volumeMounts", _mount(patch), by="mountPath")


def _volume(patch: ProxyPatch) -> Mutable:
    return {"name": patch.volume, "configMap": {"name": patch.config_map}}


def _mount(patch: ProxyPatch) -> Mutable:
    return {"name": patch.volume, "mountPath": patch.mount_path, "readOnly": True}


def _patch_managed(
    context: Context, target: PlannedWorkload, patch: ProxyPatch, reason: str
) -> Refused | None:
    gateway = target.workload.gateway_ref
    assert gateway is not None  # noqa: S101 - targets of this kind have one
    if target.version.at_least(PARAMETERS_SINCE):
        return _patch_overlay(context, target, gateway, patch, reason)
    if patch.env or patch.config_map or patch.metadata:
        return Refused(
            "gateway-parameters-too-old",
            f"its settings need parametersRef, which needs {PARAMETERS_SINCE} or newer; this is "
            f"{target.version}",
            "use --mode legacy, or a ProxyConfig object",
        )
    if not target.version.at_least(_INFRASTRUCTURE_SINCE):
        return Refused(
            "gateway-infrastructure-too-old",
            f"annotations of a Gateway's pods need {_INFRASTRUCTURE_SINCE} or newer; this is "
            f"{target.version}",
            "upgrade Istio, or write a separate scrape job for this gateway",
        )
    return _annotate_infrastructure(context, target, gateway, patch, reason)


def _annotate_infrastructure(
    context: Context, target: PlannedWorkload, gateway: Ref, patch: ProxyPatch, reason: str
) -> Refused | None:
    def change(data: Mutable) -> None:
        infrastructure = templates.child(data, "spec", "infrastructure")
        if "annotations" not in infrastructure:
            # With `infrastructure`, Istio no longer copies the Gateway's annotations, which cloud load
            # balancers need. So copy them here.
            own = as_mapping(dig(data, "metadata", "annotations"))
            infrastructure["annotations"] = {k: v for k, v in own.items() if k not in _NOT_COPIED}
        infrastructure["annotations"] |= patch.annotations

    context.draft.edit(gateway, change, reason, restarts_of(context, target.workload))
    return None


def _patch_overlay(
    context: Context, target: PlannedWorkload, gateway: Ref, patch: ProxyPatch, reason: str
) -> Refused | None:
    parameters = as_mapping(dig(context.object_of(gateway), "spec", "infrastructure", "parametersRef"))
    name = str(parameters.get("name") or f"meshscrape-{gateway.name}")
    if parameters and (parameters.get("kind") != "ConfigMap" or parameters.get("group")):
        return Refused(
            "gateway-parameters-kind",
            f"the parametersRef of {gateway} is not a ConfigMap",
            "use a ConfigMap: Istio accepts nothing else",
        )
    config = Ref("", "ConfigMap", gateway.namespace, name)
    if not parameters:
        empty = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": gateway.namespace,
                "labels": {MANAGED_BY: MANAGER},
            },
        }
        if not context.draft.ensure(empty, reason):
            return _taken(config)
    elif context.draft.get(config) is None:
        return Refused(
            "gateway-parameters-unknown",
            f"its parametersRef names {config}, which is not among the given objects",
            "give that ConfigMap too",
        )

    def overlay(data: Mutable) -> None:
        content = templates.child(data, "data")
        text = str(content.get(_OVERLAY) or "")
        content[_OVERLAY] = rewrite(text, _overlaid(text, target, patch))

    def refer(data: Mutable) -> None:
        infrastructure = templates.child(data, "spec", "infrastructure")
        infrastructure["parametersRef"] = {"group": "", "kind": "ConfigMap", "name": name}

    # Istio renders the Deployment again when the Gateway or its ConfigMap changes.
    restarts = restarts_of(context, target.workload)
    context.draft.edit(config, overlay, reason, restarts if parameters else ())
    if not parameters:
        referring = f"{reason}: its Deployment is made from {config}"
        context.draft.edit(gateway, refer, referring, restarts)
    return None


def _taken(ref: Ref) -> Refused:
    return Refused("name-taken", f"{ref} exists, and meshscrape did not create it", "rename that object")


def _overlaid(text: str, target: PlannedWorkload, patch: ProxyPatch) -> Mutable:
    """Return the strategic-merge overlay of a Gateway's Deployment with the patch in it."""
    parsed = load_text(text, "deployment")
    if parsed is not None and not isinstance(parsed, dict):
        raise InputError("the overlay is not a mapping", where="data.deployment", remedy="correct it first")
    overlay: Mutable = parsed or {}
    template = templates.child(overlay, "spec", "template")
    if patch.metadata and not templates.annotation(template, PROXY_CONFIG_ANNOTATION):
        # The overlay's annotation replaces the one from the Gateway, so include the Gateway's value.
        inherited = target.workload.annotations.get(PROXY_CONFIG_ANNOTATION, "")
        if inherited:
            templates.annotate(template, {PROXY_CONFIG_ANNOTATION: inherited})
    spec = templates.child(template, "spec")
    if templates.container(template) is None and (patch.env or patch.config_map):
        spec.setdefault("containers", []).append({"name": PROXY_CONTAINER})
    _fill(template, patch)
    if not spec:
        del template["spec"]
    return overlay


def _patch_asm(context: Context, target: PlannedWorkload, patch: ProxyPatch, reason: str) -> Refused | None:
    gateway = target.workload.gateway_ref
    assert gateway is not None  # noqa: S101 - targets of this kind have one

    def change(data: Mutable) -> None:
        spec = templates.child(data, "spec")
        templates.set_env(spec, patch.env)
        pod_annotations = dict(patch.annotations)
        if patch.metadata:
            text = str(as_mapping(spec.get("podAnnotations")).get(PROXY_CONFIG_ANNOTATION) or "")
            pod_annotations[PROXY_CONFIG_ANNOTATION] = templates.with_proxy_config(text, patch.metadata)
        if pod_annotations:
            templates.child(spec, "podAnnotations").update(pod_annotations)
        if patch.config_map:
            item: dict[str, Any] = {
                "name": patch.volume,
                "configMapName": patch.config_map,
                "mountPath": patch.mount_path,
            }
            templates.set_named(spec, "configVolumes", item)

    context.draft.edit(gateway, change, reason, restarts_of(context, target.workload))
    context.draft.note(
        gateway,
        "asm-untested",
        "an IstioGateway of ASM: its fields follow ASM's API documentation; this was not tested",
        "apply it to ASM's own API server, for one gateway first",
    )
    return None
