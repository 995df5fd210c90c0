"""Which of the chosen workloads a plan is about, how each is secured, and why others are left alone."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.istio.names import INJECT, NAMESPACE_INJECTION, NEVER_INJECTED
from meshscrape.istio.versions import IstioVersion
from meshscrape.kube.objects import Ref, as_list, as_mapping, dig, selects
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.model import Decided, Refused
from meshscrape.plan.workloads import (
    BOOTSTRAP_SINCE,
    NATIVE_SINCE,
    PARAMETERS_SINCE,
    Context,
    PlannedWorkload,
    has_override,
    version_of,
)

# What Kubernetes and istiod make themselves has its template elsewhere; these owners are known to observe.
_KNOWN_OWNERS = ("Gateway", "IstioGateway", "ReplicaSet", "CronJob")
# The Operator makes a scraper's StatefulSet: its Prometheus object is planned in its place.
_SCRAPERS = ("Prometheus", "PrometheusAgent", "VMAgent", "VMSingle")


def choose(context: Context) -> list[PlannedWorkload]:
    """Return the targets among the chosen workloads; note why others are none."""
    chosen = list(chosen_workloads(context))
    if not context.intent.inject:
        _note_outside(context, chosen)
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
    """Return the workloads that namespaces and selector choose, without those that scrape."""
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
    """Return the object of another controller that the workload's template is made from."""
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
                "it has no sidecar, and is left alone",
                "take it into the mesh with --inject if it belongs in",
            )


def _note_ambient(context: Context, workload: ObservedWorkload) -> None:
    context.draft.note(
        workload.ref,
        "ambient",
        "it is in ambient mode: it has no sidecar, and ztunnel's own metrics stay plaintext",
        "its waypoint, if it has one, is planned for like a gateway",
    )


def _note_no_envoy(context: Context, workload: ObservedWorkload, reason: str) -> None:
    context.draft.note(
        workload.ref,
        "no-envoy",
        f"it has no Envoy ({reason}), so nothing can open a secure port: it stays as it is",
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
            "it is kept out of the mesh explicitly",
            'remove the label sidecar.istio.io/inject: "false" (or istio-injection: disabled) to take it in',
        )
        return False
    return True


def opted_out(context: Context, workload: ObservedWorkload) -> bool:
    """Return whether a label or annotation says that this workload must have no sidecar."""
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
    """Return why there is no object whose change reaches the proxy."""
    if workload.kind in ("gateway-api", "waypoint", "asm-gateway"):
        if workload.gateway_ref is None or context.draft.get(workload.gateway_ref) is None:
            return Refused(
                "gateway-unknown",
                "it is managed by a Gateway that is not among the given objects",
                "give the Gateway too: istiod takes back a change of the Deployment",
            )
        return None
    if context.draft.get(workload.ref) is None:
        return Refused(
            "object-unknown",
            "its pods are among the given objects, but it is not",
            f"give the {workload.ref.kind} too: that is what has to change",
        )
    if workload.standalone or workload.ref.kind in ("Pod", "Job", "ReplicaSet", "ReplicationController"):
        return Refused(
            "standalone",
            f"a standalone {workload.ref.kind}: nothing makes its pods anew when it changes",
            "secure its template where it comes from and create it again; nothing is deleted for you",
        )
    if owner := owner_of(context, workload):
        return Refused(
            "template-owned",
            f"{owner} makes its template, and takes a change of it back",
            f"set the same labels and annotations in the pod template of {owner}",
        )
    if workload.injection.by == "manual":
        return Refused(
            "manually-injected",
            "its template already holds the proxy (istioctl kube-inject): annotations have no effect there",
            "plan for the manifest as it was before injection, then inject it again",
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
            "a waypoint takes no Gateway or Sidecar of its own, so legacy mode is not possible",
            f"upgrade Istio to {NATIVE_SINCE}, or use --mode bootstrap from {PARAMETERS_SINCE} on",
        )
    if mode in ("legacy", "bootstrap") and not context.scrapers:
        return Refused(
            "no-scraper",
            f"{mode} mode needs to know who may scrape, and no scraper is among the given objects",
            "name it: --scraper spiffe:spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT",
        )
    return mode


def _automatic(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | Refused:
    if has_override(context, workload):
        # Other listeners would be on the same ports: the override stays until another mode is asked for.
        return _bootstrap(context, workload, version)
    native = version.at_least(NATIVE_SINCE)
    if native is None:
        return Refused(
            "version-unknown",
            f"the version of its proxy is unknown{_from(version)}",
            "say it: --istio-version VERSION, or give the control plane's objects; --mode legacy and "
            "--mode bootstrap work without",
        )
    if native and workload.flavour == "asm":
        context.draft.note(
            workload.ref,
            "asm-untested",
            f"ASM {version}: no such version could be run here, so the mode that every version has is taken",
            "try --mode native on one workload first",
        )
        return "legacy"
    return "native" if native else "legacy"


def _from(version: IstioVersion) -> str:
    return f" ({version.text})" if version.text else ""


def _native(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | Refused:
    if version.at_least(NATIVE_SINCE):
        _note_asm(context, workload, version, "native")
        return "native"
    known = f"{version} ignores it silently" if version.known else f"the version is unknown{_from(version)}"
    return Refused(
        "native-too-old",
        f"native mode needs a proxy of {NATIVE_SINCE} or newer: {known}",
        "use --mode auto, or say the version: --istio-version VERSION",
    )


def _bootstrap(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | Refused:
    if version.at_least(BOOTSTRAP_SINCE) is False:
        return Refused(
            "bootstrap-too-old",
            f"the Envoy of {version} does not know the allow list's matcher, and would refuse every scraper",
            "use --mode legacy",
        )
    if workload.kind in ("gateway-api", "waypoint") and not version.at_least(PARAMETERS_SINCE):
        return Refused(
            "gateway-parameters-too-old",
            f"a Gateway takes parametersRef from {PARAMETERS_SINCE} on; this is {version}",
            "use --mode legacy, or say the version: --istio-version VERSION",
        )
    _note_asm(context, workload, version, "bootstrap")
    return "bootstrap"


def _note_asm(context: Context, workload: ObservedWorkload, version: IstioVersion, mode: Decided) -> None:
    if workload.flavour == "asm":
        context.draft.note(
            workload.ref,
            "asm-untested",
            f"{mode} mode on ASM {version}: it could not be run here",
            "try one workload first",
        )
