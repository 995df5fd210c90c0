"""Make the plan: (observation, intent) -> plan."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

from meshscrape.errors import InputError
from meshscrape.istio.allow_list import Scraper as AllowEntry
from meshscrape.istio.allow_list import SpiffeScraper
from meshscrape.istio.names import (
    BOOTSTRAP_CHECKSUM,
    BOOTSTRAP_OVERRIDE,
    ENVOY_SECURE_MERGED_METRICS_PORT,
    ENVOY_SECURE_METRICS_PORT,
    RBAC_GROUP,
)
from meshscrape.istio.ports import SECURE_MERGED, SECURE_STATS, refuse_reserved
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe.injection_template import OVERRIDE_NAME
from meshscrape.observe.observation import Observation
from meshscrape.observe.references import counted, first, references
from meshscrape.plan import native, templates
from meshscrape.plan.bootstrap import plan_bootstrap
from meshscrape.plan.choice import choose
from meshscrape.plan.credentials import plan_credentials
from meshscrape.plan.edited_objects import EditedObjects, Mutable
from meshscrape.plan.gateways import ProxyPatch, patch_gateway
from meshscrape.plan.hardening import plan_hardening
from meshscrape.plan.holding import assess, held_gates, hold, label_notes
from meshscrape.plan.injected_overrides import harmed_by_template, hold_injected
from meshscrape.plan.injection import plan_injection
from meshscrape.plan.legacy import plan_legacy
from meshscrape.plan.migration import plan_removal
from meshscrape.plan.model import LEGACY_PORT, Gate, Intent, Missing, Plan, Refused
from meshscrape.plan.network_policy import plan_network_policies
from meshscrape.plan.outcome import LEFT_ALONE, Outcome, outcome_of
from meshscrape.plan.proxy_pod import plan_scrape_proxies
from meshscrape.plan.readings import observe_unmoved
from meshscrape.plan.reads import QUERY
from meshscrape.plan.scaling import autoscaled
from meshscrape.plan.scope import blocked_by_scope, open_wide, opted_out, place_of
from meshscrape.plan.scrapers import new_prometheus, secured_scrapers
from meshscrape.plan.scraping import plan_scraping
from meshscrape.plan.upgrade import note_upgrade
from meshscrape.plan.workloads import (
    Context,
    Held,
    PlannedWorkload,
    default_scrapers,
    has_override,
    restarts_of,
)
from meshscrape.prometheus.scrape_proxy_pod import CSI_DRIVER, ISTIOD
from meshscrape.spiffe.ids import SpiffeId

_REASON = "opens Istio's secure metrics ports"
# Each attempt holds back more than the previous one. After so many attempts the whole plan is held back.
_ATTEMPTS = 5


def plan(observation: Observation, inventory: Inventory, intent: Intent) -> Plan:
    """Return the changes that lead to `intent`, in the order to apply them.

    `observation` is the result of `observe` for `inventory`. The plan is judged by its predicted result: a
    workload or a scraper that would be worse off stays unchanged, and a gate says what is missing. After the
    plan is applied, the same intent gives no further changes.
    """
    _check(intent)
    held = Held()
    for _ in range(_ATTEMPTS):
        drafted, context = _drafted(observation, inventory, intent, held)
        assessment = assess(context, drafted)
        if not hold(assessment, held):
            return replace(drafted, notes=drafted.notes + label_notes(assessment))
    everything = (
        Missing("unsettled", "no part of the plan is known to be safe", "plan for fewer workloads"),
    )
    held.workloads |= {target.ref: everything for target in context.targets}
    held.scrapers |= {scraper.ref: everything for scraper in observation.scrapers}
    return _drafted(observation, inventory, intent, held)[0]


def _drafted(
    observation: Observation, inventory: Inventory, intent: Intent, held: Held
) -> tuple[Plan, Context]:
    """Return the plan without the changes that are held back."""
    draft = EditedObjects(inventory)
    context = Context(observation, inventory, intent, draft, observation, held=held)
    context.scrapers = _scrapers(context)
    chosen = _in_scope(context, choose(context))
    context.targets = [target for target in chosen if target.ref not in held.workloads]
    _contradicted(context)
    note_upgrade(context)
    gates: list[Gate] = []
    if context.targets:
        draft.phase = "injection"
        joining = any(target.workload.kind == "uninjected" for target in context.targets)
        plan_injection(context)
        draft.phase = "listeners"
        open_wide(context)
        context.targets = [target for target in context.targets if _listeners(context, target)]
        hold_injected(context)
        _look_again(context, joining=joining)
        draft.phase = "listeners"
        plan_network_policies(context, only_blocked=not intent.network_policy)
        draft.phase = "credentials"
        plan_credentials(context)
        draft.phase = "scrape"
        moved = plan_scraping(context)
        plan_scrape_proxies(context)
        draft.phase = "hardening"
        if intent.harden:
            gates = plan_hardening(context, moved, _scraped(context))
        draft.phase = "removal"
        plan_removal(context)
        _stale(context)
        _overrides(context)
        _general(context)
        if moved:
            _assumed_rights(context)
        if intent.harden:
            _hints(context)
    gates += held_gates(context, chosen, gates)
    modes = {target.ref: target.mode for target in context.targets}
    apart = any(target.workload.flavour == "asm" for target in chosen)
    made = Plan(draft.changes(), draft.notes, tuple(gates), modes, apart, autoscaled(inventory))
    made = replace(made, chart_values=context.chart_values)
    return replace(made, outcome=_outcome(made, chosen, context.delivered)), context


def _in_scope(context: Context, chosen: list[PlannedWorkload]) -> list[PlannedWorkload]:
    """Return the chosen workloads without those that opted out of a default; hold back what it harms."""
    if context.intent.scope == "workload":
        return chosen
    inside = []
    for target in chosen:
        if target.mode == "native" and place_of(context, target.workload) and opted_out(target.workload):
            context.draft.note(
                target.ref,
                "opted-out",
                "its own annotation turns Istio's secure port off",
                f"remove {ENVOY_SECURE_MERGED_METRICS_PORT} from it, or plan with --scope workload",
            )
        else:
            inside.append(target)
    context.held.workloads |= blocked_by_scope(context, inside)
    context.held.workloads |= harmed_by_template(context, inside)
    return inside


def _outcome(made: Plan, chosen: list[PlannedWorkload], delivered: Collection[Ref]) -> Outcome:
    waiting = [gate for gate in made.gates if not gate.planned]
    changed = {*(change.ref for change in made.changes), *delivered}
    return outcome_of(
        [target.ref for target in chosen if str(target.ref) not in made.refused],
        changed=frozenset(
            target.ref for target in chosen if {target.ref, target.workload.gateway_ref} & changed
        ),
        held=frozenset(ref for gate in waiting for ref in gate.workloads),
        left=[note.ref for note in made.notes if note.ref and note.code in LEFT_ALONE],
        refused=made.refused,
    )


def _check(intent: Intent) -> None:
    own = (SECURE_STATS, SECURE_MERGED)
    for option, port in (("--merged-port", intent.merged_port), ("--envoy-port", intent.envoy_port)):
        if port not in own:
            refuse_reserved(port, option)
    if intent.prometheus != "existing" and intent.proxy_certificates.startswith("/"):
        raise InputError(
            "the pod of a new Prometheus has no directory of certificate files",
            where="--proxy-certificates",
            remedy=f"use {ISTIOD} or {CSI_DRIVER}",
        )
    if intent.merged_port == intent.envoy_port:
        raise InputError(
            f"both ports are {intent.merged_port}", where="--envoy-port", remedy="use two different ones"
        )


def _contradicted(context: Context) -> None:
    """Note where the objects show another version than `--istio-version`. The objects' version counts."""
    for pitfall in context.observation.pitfalls:
        if pitfall.code == "version-contradicts":
            text, remedy = pitfall.text.rstrip("."), pitfall.remedy.rstrip(".")
            context.draft.note(pitfall.ref, pitfall.code, text, remedy)


def _look_again(context: Context, *, joining: bool) -> None:
    """Observe the scrape jobs again, with the drafted changes and every pod still in its plaintext job.

    This is needed because workloads that join the mesh get annotations by which plaintext jobs find them.
    """
    context.unmoved = observe_unmoved(context)
    if joining:
        context.observation = replace(context.observation, scrape_jobs=context.unmoved)


def _scrapers(context: Context) -> tuple[AllowEntry, ...]:
    """Return the allow list, in an order that does not depend on the order of the input."""
    intent = context.intent
    entries = set(intent.scrapers or default_scrapers(context))
    if intent.prometheus in ("addon", "operator") and not intent.scrapers:
        spiffe_id = new_prometheus(context).spiffe_id(context.observation.mesh.trust_domain)
        entries.add(SpiffeScraper(SpiffeId.parse(spiffe_id)))
    return tuple(sorted(entries, key=str))


def _scraped(context: Context) -> bool:
    """Return whether a known scraper reads the secure ports after the plan is applied."""
    match context.intent.prometheus:
        case "addon" | "operator":
            return True
        case "existing" if secured_scrapers(context):
            return True
    return bool(context.intent.scrapers) or any(
        job.over in ("mtls", "tls-unverified") and job.spiffe_id for job in context.observation.scrape_jobs
    )


def _listeners(context: Context, target: PlannedWorkload) -> bool:
    """Plan a target's listeners; add a note and return False if that is impossible."""
    checksums = dict(context.checksums)
    refused = context.draft.whole(partial(_open_ports, context, target))
    if refused is None:
        return True
    # The refusal also undid the overrides that this target had added, so forget them: others add them again.
    context.checksums = checksums
    context.draft.refuse(target.ref, refused)
    return False


def _open_ports(context: Context, target: PlannedWorkload) -> Refused | None:
    if refused := _port_taken(context, target):
        return refused
    if target.workload.kind in ("sidecar", "gateway-injected", "uninjected"):
        off = {ENVOY_SECURE_MERGED_METRICS_PORT: "0", ENVOY_SECURE_METRICS_PORT: "0"}
        variables = native.variables(context.intent, target.workload) if target.mode == "native" else off
        if refused := native.overridden(context, target.workload, variables):
            return refused
    if refused := _leave_override(context, target):
        return refused
    match target.mode:
        case "native":
            return _native(context, target)
        case "bootstrap":
            return plan_bootstrap(context, target)
        case "legacy":
            return plan_legacy(context, target)


def _leave_override(context: Context, target: PlannedWorkload) -> Refused | None:
    """Remove our override from a template that gets other listeners: Envoy cannot run two on one port."""
    workload = target.workload
    # The injection template leaves out proxies with Istio's own secure ports.
    if target.mode == "bootstrap" or workload.template_checksum or not has_override(context, workload):
        return None
    if workload.kind not in ("sidecar", "gateway-injected") or workload.bootstrap_override != OVERRIDE_NAME:
        return Refused(
            "override-opens-ports",
            f"its bootstrap override in ConfigMap {workload.bootstrap_override} already opens the same ports",
            "remove the listeners from that override first, or keep --mode bootstrap",
        )

    def change(data: Mutable) -> None:
        template = templates.template_of(data)
        own = templates.child(template, "metadata", "annotations")
        for key in (BOOTSTRAP_OVERRIDE, BOOTSTRAP_CHECKSUM):
            own.pop(key, None)

    context.draft.edit(target.ref, change, "drops the bootstrap override", restarts_of(context, workload))
    return None


def _port_taken(context: Context, target: PlannedWorkload) -> Refused | None:
    new_ports = set(context.intent.secure_ports)
    workload = target.workload
    if workload.is_gateway and workload.metrics.mode in ("legacy", "mixed") and LEGACY_PORT in new_ports:
        return Refused(
            "legacy-port-open",
            f"its Gateway object still has port {LEGACY_PORT} open",
            "omit --envoy-port until the old objects are removed, or use another port",
        )
    for port in workload.container_ports:
        if port.number in new_ports:
            return Refused(
                "port-taken",
                f"its application uses port {port.number} itself",
                "use another port: --merged-port, --envoy-port",
            )
    return None


def _native(context: Context, target: PlannedWorkload) -> Refused | None:
    workload = target.workload
    if workload.is_gateway and workload.kind != "gateway-injected":
        wide = context.intent.scope != "workload"
        # A default would reach a Gateway's pods only when istiod makes its Deployment anew.
        env = native.variables(context.intent, workload) if wide else native.missing(workload, context.intent)
        patch = ProxyPatch(env, native.announcements(context.intent, workload))
        return patch_gateway(context, target, patch, _REASON)

    def change(data: Mutable) -> None:
        native.edit_sidecar(context, target, templates.template_of(data))

    context.draft.edit(target.ref, change, _REASON, restarts_of(context, workload))
    return None


def _general(context: Context) -> None:
    """Note what applies to the whole mesh."""
    if any(target.mode == "native" for target in context.targets):
        context.draft.note(
            None,
            "native-no-allow-list",
            "native mode: every workload of the mesh can read the secure ports, as Istio has no allow list",
            "use --mode bootstrap or --network-policy to let only the scraper read them",
        )
    for plane in context.observation.control_planes:
        if plane.custom_templates:
            context.draft.note(
                None,
                "custom-templates",
                f"revision {plane.revision} has injection templates of its own "
                f"({', '.join(plane.custom_templates)}): they may not honour all annotations",
                "look at one pod after its restart: meshscrape observe",
            )


def _assumed_rights(context: Context) -> None:
    """Note that the judge could not look at the scrapers' rights: objects without any role tell nothing."""
    if not any(manifest.ref.group == RBAC_GROUP for manifest in context.inventory):
        context.draft.note(
            None,
            "rights-unseen",
            "the objects have no Roles or ClusterRoles: the plan assumes that its scrapers may list the pods",
            "give them too, or see that the targets are up after the phase scrape",
        )


def _hints(context: Context) -> None:
    """Note which components may list pods for an unknown purpose. This does not hold anything back."""
    if listers := context.observation.unknown_listers:
        shown = first(listers, 3)
        context.draft.note(
            None,
            "may-read",
            f"{len(listers)} workloads may list pods and could read their plaintext ports: {shown}",
            f"measure before the plaintext ports close: --reads FILE, the answer of Prometheus to {QUERY}"
            if context.intent.reads is None
            else "check what they read before the plaintext ports close",
        )


def _overrides(context: Context) -> None:
    """Name what still refers to an override of ours that no workload's template names any more."""
    named = {
        Ref("", "ConfigMap", workload.namespace, workload.bootstrap_override)
        for workload in context.observed.workloads
        if workload.bootstrap_override
    }
    spaces = {target.ref.namespace for target in context.targets if target.mode == "bootstrap"}
    other_spaces = {target.ref.namespace for target in context.targets} - spaces
    used = {ref for ref in named if ref.namespace in other_spaces}
    overrides = {
        manifest.ref
        for manifest in context.inventory.of_kind("ConfigMap")
        if manifest.ref.name == OVERRIDE_NAME
    }
    for ref in sorted((overrides - named) | (overrides & used)):
        if referring := references(context.inventory, ref):
            context.draft.note(
                ref,
                "override-in-use",
                f"{counted(referring)} refer to it, and none of their pods starts without it",
                "keep it until they are gone; a rollback to an older revision needs it too",
            )


def _stale(context: Context) -> None:
    """Note pods that still run with an older configuration than their template or Istio's defaults have."""
    if context.intent.scope != "workload":
        _following(context)
        return
    for target in context.targets:
        if names := target.workload.stale:
            context.draft.note(
                target.ref,
                "pods-stale",
                f"{first(names, 3)} still run{'s' * (len(names) == 1)} with an older configuration than the "
                "template's",
                f"kubectl -n {target.workload.namespace} rollout restart "
                f"{target.ref.kind.lower()}/{target.ref.name}",
            )


def _following(context: Context) -> None:
    """Note the workloads whose pods get the defaults at their next restart; the text is the same for all."""
    for target in context.targets:
        if target.workload.stale:
            context.draft.note(
                target.ref,
                "pods-follow",
                "its running pods get these settings when they are next recreated",
                "wait for its next release, or: kubectl rollout restart; `meshscrape observe` lists the pods "
                "that have not followed yet",
            )
