"""Make the plan that takes meshscrape's changes back from today's objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from meshscrape.istio.names import MONITORING_GROUP, OVERWRITTEN
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Manifest, Ref, dig, selects, template_path
from meshscrape.observe import observe
from meshscrape.observe.injection_template import TEMPLATE
from meshscrape.observe.observation import Observation
from meshscrape.observe.references import first
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.edited_objects import EditedObjects
from meshscrape.plan.holding import outlook
from meshscrape.plan.inverse import traces
from meshscrape.plan.inverse.defaults import take_defaults
from meshscrape.plan.inverse.edits import take_fields
from meshscrape.plan.inverse.evidence import Evidence
from meshscrape.plan.inverse.judge import judge_inverse
from meshscrape.plan.inverse.overlays import take_gateway, take_override
from meshscrape.plan.inverse.owned import delete_owned, is_owned
from meshscrape.plan.inverse.record import forget
from meshscrape.plan.inverse.scraping import take_certificates, take_scraping
from meshscrape.plan.model import INVERSE_PHASES, Gate, Intent, Missing, Plan
from meshscrape.plan.outcome import Outcome
from meshscrape.plan.scaling import autoscaled
from meshscrape.plan.workloads import Context, restarts_of

# Each attempt holds back more than the previous one. After so many, everything is held back.
_ATTEMPTS = 5
_OPERATED = ("Prometheus", "PrometheusAgent", "VMAgent", "VMSingle")


@dataclass(frozen=True, slots=True)
class InverseIntent:
    """What to take back.

    `namespaces` and `selector` (a Kubernetes label selector for pod labels; None: all) choose workloads.
    `unscraped`: also take back where no plaintext job takes over, so that a scrape ends. `evidence` tells
    what was there before meshscrape.
    """

    namespaces: tuple[str, ...] = ()
    selector: Mapping[str, Any] | None = None
    unscraped: bool = False
    evidence: Evidence = field(default_factory=Evidence)
    istio_version: str | None = None


def plan_inverse(observation: Observation, inventory: Inventory, intent: InverseIntent) -> Plan:
    """Return the changes that take back what meshscrape wrote, in the order to apply them.

    `observation` is the result of `observe` for `inventory`. Plaintext ports open first, then plaintext jobs
    read the pods again, then secure ports close, then scrapers lose their certificates, and objects of
    meshscrape go last. Fields that others wrote or changed since stay. A workload that no job would read
    afterwards is held back as a whole.
    """
    held = _templated(observation, intent)
    for _ in range(_ATTEMPTS):
        drafted, chosen = _drafted(observation, inventory, intent, held)
        after = observe(outlook(inventory, drafted), istio_version=intent.istio_version)
        faults = judge_inverse(observation, after, unscraped=intent.unscraped)
        fresh = {ref: missing for ref, missing in faults.items() if ref not in held and ref in chosen}
        if not fresh and set(faults) - set(held):
            # Nothing that could be held back causes it, so hold back everything.
            missing = tuple(dict.fromkeys(fault for of_one in faults.values() for fault in of_one))
            fresh = {ref: missing for ref in chosen if ref not in held}
        if not fresh:
            return drafted
        held |= fresh
    unsettled = (Missing("unsettled", "no part of the plan is known to be safe", "remove fewer workloads"),)
    held |= dict.fromkeys(chosen, unsettled)
    return _drafted(observation, inventory, intent, held)[0]


def _templated(observation: Observation, intent: InverseIntent) -> dict[Ref, tuple[Missing, ...]]:
    """Return the workloads whose override comes from Istio's chart, with what its owner must do first."""
    return {
        workload.ref: (
            Missing(
                "template-stays",
                f"the injection template {TEMPLATE} of Istio's chart still gives new pods of namespace "
                f"{workload.namespace} the override",
                "take the namespace out of the template's first line in the values of Istio's chart (the "
                f"last one: remove {TEMPLATE} from templates and defaultTemplates), upgrade it, restart the "
                "pods, and remove again",
            ),
        )
        for workload in _chosen(observation, intent)
        if workload.template_checksum
    }


def _drafted(
    observation: Observation,
    inventory: Inventory,
    intent: InverseIntent,
    held: Mapping[Ref, tuple[Missing, ...]],
) -> tuple[Plan, list[Ref]]:
    """Return the plan without the workloads in `held`, and the references of all chosen workloads."""
    draft = EditedObjects(inventory, INVERSE_PHASES)
    context = Context(observation, inventory, Intent(), draft, observation)
    chosen = list(_chosen(observation, intent))
    leaving = [workload for workload in chosen if workload.ref not in held]
    for workload in leaving:
        _take_ports(context, workload, intent.evidence)
    take_defaults(context, observation, {workload.ref for workload in leaving}, intent.evidence)
    staying = _staying(context, intent, {workload.ref for workload in leaving})
    delete_owned(context, leaving, staying, whole=not staying)
    if staying:
        _note_staying(context, staying)
    else:
        draft.phase = "scrape"
        take_scraping(context, intent.evidence)
        draft.phase = "credentials"
        take_certificates(context, intent.evidence, partial(_observed, context, intent))
    draft.phase = "injection"
    for workload in leaving:
        _take_injection(context, workload, intent.evidence)
    draft.phase = "removal"
    for manifest in inventory:
        ends = not staying or manifest.ref in _refs(leaving)
        # A Deployment's controller copies its annotations to its ReplicaSets.
        owned = bool(dig(manifest.data, "metadata", "ownerReferences"))
        if ends and not owned and OVERWRITTEN in objects.annotations(manifest.data):
            draft.edit(manifest.ref, forget, "its record of overwritten values is not needed any more")
    _note_evidence(context, intent.evidence)
    changed = {change.ref for change in draft.changes()}
    gates = tuple(_gates(held))
    outcome = Outcome(
        removed=tuple(workload.ref for workload in leaving if {workload.ref, workload.gateway_ref} & changed),
        held=tuple(held),
    )
    apart = any(workload.flavour == "asm" for workload in chosen)
    made = Plan(draft.changes(), draft.notes, gates, {}, apart, autoscaled(inventory), outcome, inverse=True)
    return made, [workload.ref for workload in chosen]


def _refs(workloads: list[ObservedWorkload]) -> set[Ref | None]:
    return {ref for workload in workloads for ref in (workload.ref, workload.gateway_ref)}


def _gates(held: Mapping[Ref, tuple[Missing, ...]]) -> Iterator[Gate]:
    grouped: dict[tuple[Missing, ...], list[Ref]] = {}
    for ref, missing in held.items():
        grouped.setdefault(missing, []).append(ref)
    for missing, refs in grouped.items():
        yield Gate("hardening", tuple(refs), missing, False)


def _chosen(observation: Observation, intent: InverseIntent) -> Iterator[ObservedWorkload]:
    """Return the chosen workloads, except scrapers and pods that operators make."""
    scrapers = {scraper.ref for scraper in observation.scrapers}
    for workload in observation.workloads:
        if workload.ref in scrapers or (workload.owned_by and workload.owned_by.kind in _OPERATED):
            continue
        if intent.namespaces and workload.namespace not in intent.namespaces:
            continue
        if intent.selector is None or selects(intent.selector, workload.labels):
            yield workload


def _take_ports(context: Context, workload: ObservedWorkload, evidence: Evidence) -> None:
    """Take back hardening and the secure ports of one workload."""
    everywhere = context.observation.mesh.exclude_inbound_ports
    path, restarts = template_path(workload.ref.kind), restarts_of(context, workload)
    managed = workload.kind in ("gateway-api", "waypoint", "asm-gateway")
    context.draft.phase = "hardening"
    if managed:
        take_gateway(context, workload, evidence, listeners=False)
    elif path is not None:
        hardening = partial(traces.take_hardening, path=path)
        reason = "opens the plaintext ports 15090 and 15020"
        take_fields(context, workload.ref, evidence, hardening, reason, restarts)
    context.draft.phase = "listeners"
    if managed:
        take_gateway(context, workload, evidence, listeners=True)
    elif path is not None:
        listeners = partial(traces.take_listeners, path=path, everywhere=everywhere)
        take_fields(context, workload.ref, evidence, listeners, "closes the secure metrics ports", restarts)
    take_override(context, workload)


def _take_injection(context: Context, workload: ObservedWorkload, evidence: Evidence) -> None:
    path = template_path(workload.ref.kind)
    if path is not None:
        labels = partial(traces.take_labels, path=path)
        restarts = restarts_of(context, workload)
        take_fields(
            context, workload.ref, evidence, labels, "its pods lose their sidecar", restarts, quiet=True
        )
    space = Ref("", "Namespace", "", workload.namespace)
    take = partial(traces.take_labels, path=())
    take_fields(context, space, evidence, take, "new pods of this namespace get no sidecar", quiet=True)


def _observed(context: Context, intent: InverseIntent) -> Observation:
    """Return the observation of the objects with the changes so far."""
    drafted = Plan(context.draft.changes(), inverse=True)
    return observe(outlook(context.inventory, drafted), istio_version=intent.istio_version)


def _staying(context: Context, intent: InverseIntent, leaving: Set[Ref]) -> list[ObservedWorkload]:
    """Return the workloads that do not leave and announce a secure port: their scrape jobs are needed."""
    scrapers = {scraper.ref for scraper in context.observation.scrapers}
    others = scrapers | leaving | {manifest.ref for manifest in context.inventory if is_owned(manifest.data)}
    return [
        workload
        for workload in _observed(context, intent).workloads
        if workload.metrics.listening and workload.metrics.announced and workload.ref not in others
    ]


def _note_evidence(context: Context, evidence: Evidence) -> None:
    """Note that nothing tells who wrote the fields of the changed objects."""
    changed = [change for change in context.draft.changes() if change.before is not None]
    recorded = any(dig(change.before, "metadata", "managedFields") for change in changed)
    if changed and not evidence.originals and not recorded:
        context.draft.note(
            None,
            "no-record",
            "the objects do not show who wrote their fields, so all that meshscrape could have written goes",
            "give the recorded objects (--originals DIR), or a dump with --show-managed-fields",
        )


def _note_staying(context: Context, staying: list[ObservedWorkload]) -> None:
    refs = [workload.ref for workload in staying]
    if refs and any(_has_jobs(manifest) for manifest in context.inventory):
        context.draft.note(
            None,
            "jobs-stay",
            f"the scrape jobs over mutual TLS stay, because they read {first(refs, 5)}",
            "pods that lose their secure port return to their plaintext job by themselves",
        )


def _has_jobs(manifest: Manifest) -> bool:
    return manifest.ref.group == MONITORING_GROUP or manifest.ref.kind == "ConfigMap"
