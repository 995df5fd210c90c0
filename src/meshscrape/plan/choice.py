"""Decide which of the chosen workloads a plan secures, in which mode, and why it leaves others alone."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.istio.names import INJECT, NAMESPACE_INJECTION, NEVER_INJECTED, ROLLOUTS_GROUP
from meshscrape.istio.versions import IstioVersion
from meshscrape.kube.objects import Ref, as_list, as_mapping, dig, labels, selects, template_path
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.model import Decided, Refused
from meshscrape.plan.workloads import (
    BOOTSTRAP_SINCE,
    NATIVE_SINCE,
    PARAMETERS_SINCE,
    TEMPLATE_SINCE,
    Context,
    PlannedWorkload,
    has_override,
    template_too_old,
    version_of,
)

# Owners that Kubernetes or istiod makes. The template is elsewhere then, and `observe` knows where.
_KNOWN_OWNERS = ("Gateway", "IstioGateway", "ReplicaSet", "CronJob")
# The Operator makes a scraper's StatefulSet, so the plan changes its Prometheus object instead.
_SCRAPERS = ("Prometheus", "PrometheusAgent", "VMAgent", "VMSingle")


def choose(context: Context) -> list[PlannedWorkload]:
    """Return the chosen workloads that the plan secures; note why it does not secure the others."""
    chosen = list(chosen_workloads(context))
    if not context.intent.inject:
        _note_outside(context, chosen)
    _note_rollouts(context)
    targets = []
    for workload in chosen:
        if workload.kind == "ambient":
            _note_ambient(context, workload)
            continue
        if workload.kind == "uninjected" and not _to_be_injected(context, workload):
            continue
        if reason := workload.envoy_missing:
            _note_no_envoy(context, workload, reason)
            continue
        target = _target(context, workload)
        if isinstance(target, Refused):
            context.draft.refuse(workload.ref, target)
        else:
            targets.append(target)
    return targets


def chosen_workloads(context: Context) -> Iterator[ObservedWorkload]:
    """Return the workloads that the namespaces and the selector choose, without the scrapers."""
    intent = context.intent
    scrapers = {scraper.ref for scraper in context.observation.scrapers}
    for workload in context.observation.workloads:
        if intent.namespaces and workload.namespace not in intent.namespaces:
            continue
        if intent.selector is not None and not selects(intent.selector, workload.labels):
            continue
        owner = owner_of(context, workload)
        if workload.ref not in scrapers and (owner is None or owner.kind not in _SCRAPERS):
            yield workload


def owner_of(context: Context, workload: ObservedWorkload) -> Ref | None:
    """Return the object of another controller that generates the workload's template."""
    for owner in as_list(dig(context.object_of(workload.ref), "metadata", "ownerReferences")):
        if dig(owner, "controller") is True and dig(owner, "kind") not in _KNOWN_OWNERS:
            group = str(dig(owner, "apiVersion", default="")).rpartition("/")[0]
            return Ref(group, str(dig(owner, "kind")), workload.namespace, str(dig(owner, "name")))
    return None


def _note_outside(context: Context, chosen: list[ObservedWorkload]) -> None:
    system = (*NEVER_INJECTED, context.observation.mesh.root_namespace)
    for workload in chosen:
        if workload.kind == "uninjected" and workload.namespace not in system:
            context.draft.note(
                workload.ref,
                "no-sidecar",
                "it has no sidecar, so it is left alone",
                "add it to the mesh with --inject",
            )


def _note_rollouts(context: Context) -> None:
    """Note the chosen Rollouts of Argo Rollouts without pods: nothing else shows what they run."""
    intent, known = context.intent, {workload.ref for workload in context.observation.workloads}
    for rollout in context.inventory.of_kind("Rollout", ROLLOUTS_GROUP):
        elsewhere = intent.namespaces and rollout.ref.namespace not in intent.namespaces
        pod_labels = labels(dig(rollout.data, "spec", "template"))
        unselected = intent.selector is not None and not selects(intent.selector, pod_labels)
        if rollout.ref not in known and not elsewhere and not unselected:
            context.draft.note(
                rollout.ref,
                "pods-unknown",
                "none of its pods is among the objects, so it is left alone",
                "give its pods and ReplicaSets too",
            )


def _note_ambient(context: Context, workload: ObservedWorkload) -> None:
    context.draft.note(
        workload.ref,
        "ambient",
        "it is in ambient mode: it has no sidecar, and ztunnel's own metrics stay plaintext",
        "if it has a waypoint, the plan secures that like a gateway",
    )


def _note_no_envoy(context: Context, workload: ObservedWorkload, reason: str) -> None:
    context.draft.note(
        workload.ref,
        "no-envoy",
        f"it has no Envoy ({reason}), so it cannot have a secure port: it is left alone",
        "scrape its plaintext port behind a NetworkPolicy",
    )


def _to_be_injected(context: Context, workload: ObservedWorkload) -> bool:
    root = context.observation.mesh.root_namespace
    if not context.intent.inject or workload.namespace in (*NEVER_INJECTED, root):
        return False
    if workload.host_network:
        context.draft.note(
            workload.ref,
            "host-network",
            "it uses the host's network: Istio does not inject it",
            "leave it as it is",
        )
        return False
    if opted_out(context, workload):
        context.draft.note(
            workload.ref,
            "opted-out",
            "it is excluded from the mesh explicitly",
            'remove the label sidecar.istio.io/inject: "false" (or istio-injection: disabled) to add it',
        )
        return False
    return True


def opted_out(context: Context, workload: ObservedWorkload) -> bool:
    """Return whether a label or annotation excludes this workload from injection."""
    namespace = context.object_of(Ref("", "Namespace", "", workload.namespace))
    own = workload.labels.get(INJECT) or workload.annotations.get(INJECT)
    labels = as_mapping(dig(namespace, "metadata", "labels"))
    return own == "false" or labels.get(NAMESPACE_INJECTION) == "disabled"


def _target(context: Context, workload: ObservedWorkload) -> PlannedWorkload | Refused:
    if refused := _unchangeable(context, workload):
        return refused
    version = version_of(context, workload)
    mode = _mode(context, workload, version)
    return mode if isinstance(mode, Refused) else PlannedWorkload(workload, mode, version)


def _unchangeable(context: Context, workload: ObservedWorkload) -> Refused | None:
    """Return the reason if no object's change reaches the proxy."""
    if workload.kind in ("gateway-api", "waypoint", "asm-gateway"):
        if workload.gateway_ref is None or context.draft.get(workload.gateway_ref) is None:
            return Refused(
                "gateway-unknown",
                "it is managed by a Gateway that is not among the given objects",
                "give the Gateway too: istiod reverts changes of the Deployment",
            )
        return None
    if context.draft.get(workload.ref) is None:
        return Refused(
            "object-unknown",
            "its pods are among the given objects, but the object itself is not",
            f"give the {workload.ref.kind} too: the plan must change it",
        )
    if workload.standalone or workload.ref.kind in ("Pod", "Job", "ReplicaSet", "ReplicationController"):
        return Refused(
            "standalone",
            f"a standalone {workload.ref.kind}: no controller recreates its pods when it changes",
            "change its template at its source and create it again; meshscrape does not delete it",
        )
    if template_path(workload.ref.kind) is None:
        return Refused(
            "template-owned",
            f"a plan does not change objects of kind {workload.ref.kind}",
            "set the labels and annotations that a plan sets on a Deployment in its pod template",
        )
    if owner := owner_of(context, workload):
        return Refused(
            "template-owned",
            f"{owner} generates its template and reverts changes of it",
            f"set the same labels and annotations in the pod template of {owner}",
        )
    if workload.injection.by == "manual":
        return Refused(
            "manually-injected",
            "its template already contains the proxy (istioctl kube-inject), so annotations have no effect",
            "plan for the manifest from before the injection, then inject it again",
        )
    for refusal in workload.refusals:
        # A restart would leave the workload without any pod.
        return Refused("never-starts", refusal.text.rstrip("."), refusal.remedy.rstrip("."))
    return None


def _mode(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | Refused:
    mode: Decided | Refused
    match context.intent.mode:
        case "auto":
            mode = _automatic(context, workload, version)
        case "native":
            mode = _native(context, workload, version)
        case "bootstrap":
            mode = _bootstrap(context, workload, version)
        case "legacy":
            mode = "legacy"
    if mode == "legacy" and workload.kind == "waypoint":
        return Refused(
            "waypoint-in-legacy",
            "legacy mode is not possible: Istio applies no Gateway or Sidecar object to a waypoint",
            f"upgrade Istio to {NATIVE_SINCE}, or use --mode bootstrap from {PARAMETERS_SINCE} on",
        )
    if mode in ("legacy", "bootstrap") and not context.scrapers:
        return Refused(
            "no-scraper",
            f"{mode} mode needs an allow list, and no scraper is among the given objects",
            "name it: --scraper spiffe:spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT",
        )
    return mode


def _automatic(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | Refused:
    if has_override(context, workload):
        # Other listeners would use the same ports, so the override stays until the user sets another mode.
        return _bootstrap(context, workload, version)
    native = version.at_least(NATIVE_SINCE)
    if native is None:
        return Refused(
            "version-unknown",
            f"the version of its proxy is unknown{_from(version)}",
            "set --istio-version VERSION, or give the control plane's objects; --mode legacy and "
            "--mode bootstrap work without",
        )
    if native and workload.flavour == "asm":
        context.draft.note(
            workload.ref,
            "asm-untested",
            f"ASM {version} was not tested, so meshscrape uses the mode that every version supports",
            "try --mode native on one workload first",
        )
        return "legacy"
    return "native" if native else "legacy"


def _from(version: IstioVersion) -> str:
    return f" ({version.text})" if version.text else ""


def _native(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | Refused:
    refused = unfit("native", workload, version)
    if refused is None:
        _note_asm(context, workload, version, "native")
    return refused or "native"


def _bootstrap(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | Refused:
    refused = unfit("bootstrap", workload, version)
    if refused is None:
        _note_asm(context, workload, version, "bootstrap")
    return refused or "bootstrap"


def unfit(mode: Decided, workload: ObservedWorkload, version: IstioVersion) -> Refused | None:
    """Return why a proxy of this version cannot serve its metrics in this mode; None if it can."""
    if mode == "native" and not version.at_least(NATIVE_SINCE):
        known = (
            f"{version} ignores it silently" if version.known else f"the version is unknown{_from(version)}"
        )
        return Refused(
            "native-too-old",
            f"native mode needs a proxy of {NATIVE_SINCE} or newer: {known}",
            "use --mode auto, or set the version: --istio-version VERSION",
        )
    if mode == "bootstrap" and version.at_least(BOOTSTRAP_SINCE) is False:
        return Refused(
            "bootstrap-too-old",
            f"the Envoy of {version} does not know the allow list's matcher and would refuse every scraper",
            "use --mode legacy",
        )
    if mode == "bootstrap" and workload.template_checksum and version.at_least(TEMPLATE_SINCE) is False:
        return template_too_old(version)
    managed = workload.kind in ("gateway-api", "waypoint")
    if mode == "bootstrap" and managed and not version.at_least(PARAMETERS_SINCE):
        return Refused(
            "gateway-parameters-too-old",
            f"a Gateway's parametersRef needs {PARAMETERS_SINCE} or newer; this is {version}",
            "use --mode legacy, or set the version: --istio-version VERSION",
        )
    return None


def _note_asm(context: Context, workload: ObservedWorkload, version: IstioVersion, mode: Decided) -> None:
    if workload.flavour == "asm":
        context.draft.note(
            workload.ref,
            "asm-untested",
            f"{mode} mode on ASM {version} was not tested",
            "try one workload first",
        )
