"""Which workloads a plan is about, and how each is secured: decided by the version of its proxy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from meshscrape.envoy.override import BOOTSTRAP_FILE, PREFIX
from meshscrape.istio.allow_list import Scraper as AllowEntry
from meshscrape.istio.allow_list import SpiffeScraper
from meshscrape.istio.names import INJECT, NAMESPACE_INJECTION, NEVER_INJECTED
from meshscrape.istio.ports import MERGED, STATS
from meshscrape.istio.versions import UNKNOWN, IstioVersion
from meshscrape.kube.objects import Inventory, Object, Ref, as_mapping, dig, selects
from meshscrape.observe.model import ControlPlane, ObservedJob
from meshscrape.observe.observation import Observation
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.edited_objects import EditedObjects
from meshscrape.plan.model import Decided, Intent
from meshscrape.spiffe.ids import SpiffeId

NATIVE_SINCE = "1.31"
LOCALHOST_ONLY_SINCE = "1.22"
PARAMETERS_SINCE = "1.26"
GATEWAY_OVERRIDE_SINCE = "1.27"
# RBAC's matcher and the URI SAN input came with Envoy 1.24; what does not know them would refuse everybody.
BOOTSTRAP_SINCE = "1.17"
# The plaintext ports of a proxy: Envoy's statistics and the agent's merged metrics.
PLAINTEXT_PORTS = frozenset({STATS, MERGED})
# Scrapers that can be given a certificate and jobs over mutual TLS.
ABLE = ("prometheus", "operator", "vmagent")
# The ConfigMap with the bootstrap override of a namespace's proxies.
OVERRIDE_NAME = "meshscrape-bootstrap"
_RESTARTED = ("Deployment", "StatefulSet", "DaemonSet")


@dataclass(slots=True)
class Context:
    """What every part of the planner works with.

    `checksums` are those of overrides planned already, `addresses` the wildcards that they listen on.
    """

    observation: Observation
    inventory: Inventory
    intent: Intent
    draft: EditedObjects
    scrapers: tuple[AllowEntry, ...] = ()
    targets: list[PlannedWorkload] = field(default_factory=list)
    checksums: dict[Ref, str | None] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()

    def object_of(self, ref: Ref) -> Object:
        """The object, as the plan so far leaves it; empty when it is not known."""
        return self.draft.get(ref) or {}


@dataclass(frozen=True, slots=True)
class PlannedWorkload:
    """A workload that is planned for, its mode, and the version its proxy has after a restart."""

    workload: ObservedWorkload
    mode: Decided
    version: IstioVersion

    @property
    def ref(self) -> Ref:
        """The object that is changed."""
        return self.workload.ref


def restarts_of(context: Context, workload: ObservedWorkload) -> tuple[str, ...]:
    """What a changed pod template restarts, in plain words."""
    if workload.ref.kind not in _RESTARTED:
        return ()
    count = len(workload.running)
    pods = f" ({count} pod{'s' * (count != 1)})" if count else ""
    strategy = dig(context.object_of(workload.ref), "spec", "updateStrategy", "type")
    by_hand = ", only as its pods are deleted (OnDelete)" if strategy == "OnDelete" else ""
    return (f"{workload.ref.kind} {workload.namespace}/{workload.name}{pods}{by_hand}",)


def selector_of(context: Context, workload: ObservedWorkload) -> dict[str, str]:
    """Labels that select the workload's pods, from its own selector where it has one."""
    data = context.object_of(workload.ref)
    own = as_mapping(dig(data, "spec", "selector", "matchLabels"))
    return dict(own or workload.labels)


def default_scrapers(context: Context) -> tuple[AllowEntry, ...]:
    """The identities of the scrapers that read proxies' metrics, else of all that were found and could.

    Beside a new Prometheus, only those count that use mutual TLS already: it takes the others' place.
    """
    observation = context.observation
    replaced = context.intent.prometheus in ("addon", "operator")
    used = {
        each.scraper
        for each in observation.scrape_jobs
        if (each.over == "mtls" and (each.ports_of or each.ports_after))
        or (not replaced and reads_plaintext(each))
    }
    able = [each for each in observation.scrapers if each.kind in ABLE and each.spiffe_id]
    chosen = [each for each in able if each.ref in used] or ([] if replaced else able)
    for each in chosen:
        if each.service_account == "default":
            context.draft.note(
                each.ref,
                "it runs as ServiceAccount `default`: every pod of its namespace that does may scrape, too",
                "give it a ServiceAccount of its own",
            )
    return tuple(SpiffeScraper(SpiffeId.parse(each.spiffe_id)) for each in chosen)


def reads_plaintext(consumer: ObservedJob) -> bool:
    """Whether a consumer reads plaintext ports of any proxy, now or after a restart."""
    seen = (*consumer.ports_of.values(), *consumer.ports_after.values())
    return consumer.over == "plaintext" and any(not PLAINTEXT_PORTS.isdisjoint(ports) for ports in seen)


def choose(context: Context) -> list[PlannedWorkload]:
    """The targets among the chosen workloads; why others are none is noted."""
    chosen = list(_chosen(context))
    if not context.intent.inject:
        _note_outside(context, chosen)
    return [target for workload in chosen if (target := _target(context, workload))]


def _note_outside(context: Context, chosen: list[ObservedWorkload]) -> None:
    system = (*NEVER_INJECTED, context.observation.mesh.root_namespace)
    outside = [each for each in chosen if each.kind == "uninjected" and each.namespace not in system]
    for each in outside:
        context.draft.note(
            each.ref,
            "it has no sidecar, and is left alone",
            "take it into the mesh with --inject if it belongs in",
        )


def _chosen(context: Context) -> Iterator[ObservedWorkload]:
    intent = context.intent
    scrapers = {each.ref for each in context.observation.scrapers}
    for workload in context.observation.workloads:
        if intent.namespaces and workload.namespace not in intent.namespaces:
            continue
        if intent.selector is not None and not selects(intent.selector, workload.labels):
            continue
        if workload.ref not in scrapers:
            yield workload


def _target(context: Context, workload: ObservedWorkload) -> PlannedWorkload | None:
    if workload.kind == "ambient":
        context.draft.note(
            workload.ref,
            "ambient: it has no sidecar, and ztunnel's own metrics are out of scope",
            "its waypoint, if it has one, is planned for like a gateway",
        )
        return None
    if workload.kind == "uninjected" and not _to_be_injected(context, workload):
        return None
    if not _changeable(context, workload):
        return None
    version = version_of(context, workload)
    mode = _mode(context, workload, version)
    return PlannedWorkload(workload, mode, version) if mode else None


def _to_be_injected(context: Context, workload: ObservedWorkload) -> bool:
    root = context.observation.mesh.root_namespace
    if not context.intent.inject or workload.namespace in (*NEVER_INJECTED, root):
        return False
    if workload.host_network:
        context.draft.note(workload.ref, "it uses the host's network: Istio does not inject it", "leave it")
        return False
    if opted_out(context, workload):
        context.draft.note(
            workload.ref,
            "it is kept out of the mesh explicitly",
            'remove the label sidecar.istio.io/inject: "false" (or istio-injection: disabled) to take it in',
        )
        return False
    return True


def opted_out(context: Context, workload: ObservedWorkload) -> bool:
    """Whether a label or annotation says that this workload must have no sidecar."""
    namespace = as_mapping(
        dig(context.object_of(Ref("", "Namespace", "", workload.namespace)), "metadata", "labels")
    )
    own = workload.labels.get(INJECT) or workload.annotations.get(INJECT)
    return own == "false" or namespace.get(NAMESPACE_INJECTION) == "disabled"


def _changeable(context: Context, workload: ObservedWorkload) -> bool:
    """Whether there is an object whose change reaches the proxy; else a note."""
    note = context.draft.note
    if workload.kind in ("gateway-api", "waypoint", "asm-gateway"):
        if workload.gateway_ref is None or context.draft.get(workload.gateway_ref) is None:
            note(
                workload.ref,
                "it is managed by a Gateway that is not among the objects",
                "give the Gateway too; a change of the Deployment would be reconciled away",
                refused=True,
            )
            return False
        return True
    if context.draft.get(workload.ref) is None:
        note(
            workload.ref,
            "its pods are among the objects, it is not",
            f"give the {workload.ref.kind} too: that is what has to change",
            refused=True,
        )
        return False
    if workload.standalone or workload.ref.kind in ("Pod", "Job", "ReplicaSet", "ReplicationController"):
        note(
            workload.ref,
            f"a standalone {workload.ref.kind}: its pods are not made anew when it changes",
            "secure its template where it comes from and create it again; nothing is deleted for you",
            refused=True,
        )
        return False
    if workload.injection.by == "manual":
        note(
            workload.ref,
            "its template already holds the proxy (istioctl kube-inject): annotations have no effect there",
            "plan for the manifest as it was before injection, then inject it again",
            refused=True,
        )
        return False
    return True


def version_of(context: Context, workload: ObservedWorkload) -> IstioVersion:
    """The version of the proxy after a restart; else the one that runs, if all pods have the same."""
    if workload.versions.after.known:
        return workload.versions.after
    if workload.kind == "uninjected" and (plane := default_control_plane(context.observation)):
        return plane.version
    versions = set(workload.versions.running) or {workload.versions.now}
    return versions.pop() if len(versions) == 1 else UNKNOWN


def default_control_plane(observation: Observation) -> ControlPlane | None:
    """The control plane that injects where no revision is named."""
    planes = observation.control_planes
    named = [each for each in planes if "default" in (each.revision, *each.tags)]
    found = named or (planes if len(planes) == 1 else ())
    return found[0] if found else None


def _mode(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | None:
    wanted = context.intent.mode
    match wanted:
        case "auto":
            mode = _automatic(context, workload, version)
        case "native":
            mode = _native(context, workload, version)
        case "bootstrap":
            mode = _bootstrap(context, workload, version)
        case "legacy":
            mode = "legacy"
    if mode == "legacy" and workload.kind == "waypoint":
        context.draft.note(
            workload.ref,
            "a waypoint takes no Gateway or Sidecar of one's own, so legacy is not possible",
            f"upgrade Istio to {NATIVE_SINCE}, or use --mode bootstrap from {PARAMETERS_SINCE} on",
            refused=True,
        )
        return None
    if mode in ("legacy", "bootstrap") and not context.scrapers:
        context.draft.note(
            workload.ref,
            f"{mode} needs to know who may scrape, and no scraper was found in the objects",
            "name it: --scraper spiffe:spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT",
            refused=True,
        )
        return None
    return mode


def _automatic(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | None:
    if has_override(context, workload):
        # Its listeners would be on the same ports as others: it stays until another mode is asked for.
        return _bootstrap(context, workload, version)
    native = version.at_least(NATIVE_SINCE)
    if native is None:
        context.draft.note(
            workload.ref,
            f"the version of its proxy cannot be told{_from(version)}",
            "say it: --istio-version VERSION, or give the control plane's objects; --mode legacy and "
            "--mode bootstrap work without",
            refused=True,
        )
        return None
    if native and workload.flavour == "asm":
        context.draft.note(
            workload.ref,
            f"ASM {version}: no such version could be run here, so the mode that every version has is taken",
            "try --mode native on one workload first",
        )
        return "legacy"
    return "native" if native else "legacy"


def has_override(context: Context, workload: ObservedWorkload) -> bool:
    """Whether a bootstrap override opens our listeners on this workload already."""
    if not workload.bootstrap_override:
        return False
    data = context.draft.get(Ref("", "ConfigMap", workload.namespace, workload.bootstrap_override))
    text = str(dig(data, "data", BOOTSTRAP_FILE, default=""))
    return workload.bootstrap_override == OVERRIDE_NAME or f'"{PREFIX}_' in text


def _from(version: IstioVersion) -> str:
    return f" from {version.text}" if version.text else ""


def _native(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | None:
    if version.at_least(NATIVE_SINCE):
        _note_asm(context, workload, version, "native")
        return "native"
    known = f"{version} ignores it silently" if version.known else f"the version is unknown{_from(version)}"
    context.draft.note(
        workload.ref,
        f"native mode needs a proxy of {NATIVE_SINCE} or newer: {known}",
        "use --mode auto, or say the version: --istio-version VERSION",
        refused=True,
    )
    return None


def _bootstrap(context: Context, workload: ObservedWorkload, version: IstioVersion) -> Decided | None:
    if version.at_least(BOOTSTRAP_SINCE) is False:
        text = f"the Envoy of {version} does not know the allow list's matcher, and would refuse everybody"
        remedy = "use --mode legacy"
    elif workload.kind in ("gateway-api", "waypoint") and not version.at_least(PARAMETERS_SINCE):
        text = f"a Gateway takes parametersRef from {PARAMETERS_SINCE} on; this is {version}"
        remedy = "use --mode legacy, or say the version: --istio-version VERSION"
    else:
        _note_asm(context, workload, version, "bootstrap")
        return "bootstrap"
    context.draft.note(workload.ref, text, remedy, refused=True)
    return None


def _note_asm(context: Context, workload: ObservedWorkload, version: IstioVersion, mode: Decided) -> None:
    if workload.flavour == "asm":
        context.draft.note(
            workload.ref, f"{mode} mode on ASM {version}: it could not be run here", "try one workload first"
        )
