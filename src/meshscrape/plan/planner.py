"""(what was observed, what is wanted) -> the plan."""

from __future__ import annotations

from dataclasses import replace

from meshscrape.errors import InputError
from meshscrape.istio.allow_list import Scraper as AllowEntry
from meshscrape.istio.allow_list import SpiffeScraper
from meshscrape.istio.names import (
    BOOTSTRAP_CHECKSUM,
    BOOTSTRAP_OVERRIDE,
    ENVOY_SECURE_MERGED_METRICS_PORT,
    ENVOY_SECURE_METRICS_PORT,
)
from meshscrape.istio.ports import SECURE_MERGED, SECURE_STATS, refuse_reserved
from meshscrape.kube.objects import Inventory
from meshscrape.observe import observe
from meshscrape.observe.observation import Observation
from meshscrape.plan import native, templates
from meshscrape.plan.bootstrap import plan_bootstrap
from meshscrape.plan.credentials import plan_credentials
from meshscrape.plan.edited_objects import EditedObjects, Mutable
from meshscrape.plan.gateways import ProxyPatch, patch_gateway
from meshscrape.plan.hardening import plan_hardening
from meshscrape.plan.injection import plan_injection
from meshscrape.plan.legacy import plan_legacy
from meshscrape.plan.migration import plan_removal
from meshscrape.plan.model import LEGACY_PORT, Gate, Intent, Plan
from meshscrape.plan.network_policy import plan_network_policies
from meshscrape.plan.scaling import autoscaled
from meshscrape.plan.scrapers import new_prometheus, secured_scrapers
from meshscrape.plan.scraping import plan_scraping
from meshscrape.plan.workloads import (
    OVERRIDE_NAME,
    Context,
    PlannedWorkload,
    choose,
    default_scrapers,
    has_override,
    restarts_of,
)
from meshscrape.spiffe.ids import SpiffeId

_REASON = "opens Istio's secure metrics ports"


def plan(observation: Observation, inventory: Inventory, intent: Intent) -> Plan:
    """The changes that give `intent`, in the order in which they are to be applied.

    `observation` is what `observe` says of `inventory`. Applied in memory and observed again, the same
    intent gives no changes.
    """
    _check(intent)
    draft = EditedObjects(inventory)
    context = Context(observation, inventory, intent, draft)
    context.scrapers = _scrapers(context)
    context.targets = choose(context)
    _contradicted(context)
    gates: list[Gate] = []
    if context.targets:
        draft.phase = "injection"
        plan_injection(context)
        draft.phase = "credentials"
        plan_credentials(context)
        draft.phase = "listeners"
        context.targets = [target for target in context.targets if _listeners(context, target)]
        if intent.network_policy:
            plan_network_policies(context)
        _look_again(context)
        draft.phase = "scrape"
        moved = plan_scraping(context)
        draft.phase = "hardening"
        if intent.harden:
            gates = plan_hardening(context, moved, _scraped(context))
        draft.phase = "removal"
        plan_removal(context)
        _stale(context)
        _general(context)
    modes = {target.ref: target.mode for target in context.targets}
    apart = any(target.workload.flavour == "asm" for target in context.targets)
    return Plan(draft.changes(), draft.notes, tuple(gates), modes, apart, autoscaled(inventory))


def _check(intent: Intent) -> None:
    own = (SECURE_STATS, SECURE_MERGED)
    for option, port in (("--merged-port", intent.merged_port), ("--envoy-port", intent.envoy_port)):
        if port not in own:
            refuse_reserved(port, option)
    if intent.merged_port == intent.envoy_port:
        raise InputError(
            f"both ports are {intent.merged_port}", where="--envoy-port", remedy="use two different ones"
        )


def _contradicted(context: Context) -> None:
    """Say where `--istio-version` is not what counts: the objects tell another."""
    for each in context.observation.pitfalls:
        if each.code == "version-contradicts":
            context.draft.note(each.ref, each.text.rstrip("."), each.remedy.rstrip("."))


def _look_again(context: Context) -> None:
    """Workloads that join the mesh get annotations by which plaintext jobs find them: see which ones do."""
    if any(target.workload.kind == "uninjected" for target in context.targets):
        joined = Plan(context.draft.changes()).apply(context.inventory)
        after = observe(joined, istio_version=context.intent.istio_version)
        context.observation = replace(context.observation, scrape_jobs=after.scrape_jobs)


def _scrapers(context: Context) -> tuple[AllowEntry, ...]:
    """The allow list, in an order that does not depend on how it came about."""
    intent = context.intent
    found = set(intent.scrapers or default_scrapers(context))
    if intent.prometheus in ("addon", "operator") and not intent.scrapers:
        spiffe_id = new_prometheus(context).spiffe_id(context.observation.mesh.trust_domain)
        found.add(SpiffeScraper(SpiffeId.parse(spiffe_id)))
    return tuple(sorted(found, key=str))


def _scraped(context: Context) -> bool:
    """Whether somebody scrapes the secure ports once the plan is applied, as far as can be told."""
    match context.intent.prometheus:
        case "addon" | "operator":
            return True
        case "existing" if secured_scrapers(context):
            return True
    return bool(context.intent.scrapers) or any(
        each.over in ("mtls", "tls-unverified") and each.spiffe_id for each in context.observation.scrape_jobs
    )


def _listeners(context: Context, target: PlannedWorkload) -> bool:
    """Plan a target's listeners; False, with a note, where that is impossible."""
    try:
        with context.draft.whole():
            _open_ports(context, target)
    except InputError as error:
        # Overrides that this target alone brought about are gone with it: others make them again.
        context.checksums.clear()
        context.draft.note(target.ref, str(error), "see the message; nothing is planned for it", refused=True)
        return False
    return True


def _open_ports(context: Context, target: PlannedWorkload) -> None:
    _check_ports(context, target)
    if target.workload.kind in ("sidecar", "gateway-injected", "uninjected"):
        off = {ENVOY_SECURE_MERGED_METRICS_PORT: "0", ENVOY_SECURE_METRICS_PORT: "0"}
        wanted = native.variables(context.intent) if target.mode == "native" else off
        native.refuse_overridden(context, target.workload, wanted)
    _leave_override(context, target)
    match target.mode:
        case "native":
            _native(context, target)
        case "bootstrap":
            plan_bootstrap(context, target)
        case "legacy":
            plan_legacy(context, target)


def _leave_override(context: Context, target: PlannedWorkload) -> None:
    """Take our override from a template that gets other listeners: with two on a port, Envoy ends."""
    workload = target.workload
    if target.mode == "bootstrap" or not has_override(context, workload):
        return
    if workload.kind not in ("sidecar", "gateway-injected") or workload.bootstrap_override != OVERRIDE_NAME:
        raise InputError(
            f"ConfigMap {workload.bootstrap_override} opens the same ports on it by a bootstrap override",
            remedy="take the listeners out of that override first, or stay with --mode bootstrap",
        )

    def change(data: Mutable) -> None:
        template = templates.template_of(data)
        own = templates.child(template, "metadata", "annotations")
        for key in (BOOTSTRAP_OVERRIDE, BOOTSTRAP_CHECKSUM):
            own.pop(key, None)

    context.draft.edit(target.ref, change, "leaves the bootstrap override", restarts_of(context, workload))


def _check_ports(context: Context, target: PlannedWorkload) -> None:
    wanted = set(context.intent.secure_ports)
    workload = target.workload
    if workload.is_gateway and workload.metrics.mode in ("legacy", "mixed") and LEGACY_PORT in wanted:
        raise InputError(
            f"its Gateway object has port {LEGACY_PORT} open as yet",
            remedy="leave --envoy-port out until the old objects are gone, or take another port",
        )
    for port in workload.container_ports:
        if port.number in wanted:
            raise InputError(
                f"its application has port {port.number} itself",
                remedy="take another one: --merged-port, --envoy-port",
            )


def _native(context: Context, target: PlannedWorkload) -> None:
    workload = target.workload
    if workload.is_gateway and workload.kind != "gateway-injected":
        env = native.missing(workload, context.intent)
        patch = ProxyPatch(env, native.announcements(context.intent))
        patch_gateway(context, target, patch, _REASON)
        return

    def change(data: Mutable) -> None:
        native.edit_sidecar(context, target, templates.template_of(data))

    context.draft.edit(target.ref, change, _REASON, restarts_of(context, workload))


def _general(context: Context) -> None:
    """What holds for the whole mesh."""
    if any(target.mode == "native" for target in context.targets):
        context.draft.note(
            None,
            "native mode: every workload of the mesh may read the secure ports; Istio has no list of who may",
            "use --mode bootstrap where only the scraper should, or --network-policy",
        )
    for plane in context.observation.control_planes:
        if plane.custom_templates:
            context.draft.note(
                None,
                f"revision {plane.revision} has injection templates of its own "
                f"({', '.join(plane.custom_templates)}): they may not honour all annotations",
                "look at one pod after its restart: meshscrape observe",
            )


def _stale(context: Context) -> None:
    """Pods that run an older configuration than their template already says."""
    for target in context.targets:
        if names := target.workload.stale:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            context.draft.note(
                target.ref,
                f"{shown} still run{'s' * (len(names) == 1)} with an older configuration than the template's",
                f"kubectl -n {target.workload.namespace} rollout restart "
                f"{target.ref.kind.lower()}/{target.ref.name}",
            )
