"""Hold back the workloads and scrapers that would be worse off after the plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshscrape.istio.names import RBAC_GROUP
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe import observe
from meshscrape.observe.cluster import owner_of_pod
from meshscrape.observe.model import Pitfall
from meshscrape.plan.judge import Result, ScrapeVerdict, judge, new_errors, unread
from meshscrape.plan.model import Gate, Missing, Note, Plan
from meshscrape.plan.scrapers import concerns, new_deployment, new_prometheus_ref
from meshscrape.plan.selectors import LabelChange, broken_selectors
from meshscrape.plan.workloads import Context, Held, PlannedWorkload


@dataclass(frozen=True, slots=True)
class _Fault:
    """One thing that a plan would make worse, and the objects that may cause it, the likeliest first."""

    missing: tuple[Missing, ...]
    blamed: tuple[Ref | None, ...]


@dataclass(frozen=True, slots=True)
class Assessment:
    """A drafted plan and its predicted result."""

    context: Context
    drafted: Plan
    result: Result
    verdicts: tuple[ScrapeVerdict, ...]

    @property
    def label_changes(self) -> dict[LabelChange, list[Ref]]:
        """Return the label changes of moved scrapes, each with its workloads."""
        changes: dict[LabelChange, list[Ref]] = {}
        for verdict in self.verdicts:
            for change in verdict.labels:
                refs = changes.setdefault(change, [])
                if verdict.workload not in refs:
                    refs.append(verdict.workload)
        return changes


def assess(context: Context, drafted: Plan) -> Assessment:
    """Predict the result of a drafted plan and judge it."""
    intent = context.intent
    after = observe(outlook(context.inventory, drafted), istio_version=intent.istio_version)
    replaced = intent.prometheus in ("addon", "operator")
    result = Result(context.observed, after, bool(intent.scrapers), replaced)
    return Assessment(context, drafted, result, judge(result))


def hold(assessment: Assessment, held: Held) -> bool:
    """Add to `held` what the drafted plan would make worse; return whether anything was added."""
    known = held.refs
    for fault in _faults(assessment):
        # One hold can cure several faults. The next draft shows that.
        if not (held.refs - known).intersection(fault.blamed):
            _hold(assessment.context, fault, held)
    if held.refs == known:
        # Last, because what else is held back decides who reads what.
        held.open |= _unread(assessment)
    return held.refs != known


def _unread(assessment: Assessment) -> dict[Ref, tuple[Missing, ...]]:
    """Return the workloads that the draft counts as secured although no scraper is shown to read them."""
    outcome = assessment.drafted.outcome
    return unread(assessment.result, frozenset((*outcome.secured, *outcome.unchanged)))


def label_notes(assessment: Assessment) -> tuple[Note, ...]:
    """Return notes on labels that moved scrapes lose or change, one note for each group of workloads."""
    grouped: dict[tuple[Ref, ...], list[LabelChange]] = {}
    for change, refs in assessment.label_changes.items():
        grouped.setdefault(tuple(refs), []).append(change)
    return tuple(
        Note(
            refs[0] if len(refs) == 1 else None,
            "labels-change",
            f"labels of its metrics change: {_told_changes(changes)}",
            "no selector among the given objects uses them; check alerts and dashboards kept elsewhere",
        )
        for refs, changes in grouped.items()
    )


def _told_changes(changes: Iterable[LabelChange]) -> str:
    """Return label changes as text: first labels with a new value, then the names of removed labels."""
    changed = [
        f'{change.label} "{change.before}" becomes "{change.after}"' for change in changes if change.after
    ]
    gone = sorted({change.label for change in changes if not change.after})
    return "; ".join([*changed, *([f"without {', '.join(gone)}"] if gone else [])])


def _faults(assessment: Assessment) -> list[_Fault]:
    """Return what the plan would make worse."""
    context, drafted, result = assessment.context, assessment.drafted, assessment.result
    unchanged = Result(result.before, result.before, result.vouched, result.replaced)
    known = {_told(verdict) for verdict in judge(unchanged)}
    faults = [
        _Fault(verdict.missing, (verdict.blamed, verdict.workload, verdict.scraper))
        for verdict in assessment.verdicts
        if verdict.answer != "shown" and _told(verdict) not in known
    ]
    for pitfall in new_errors(result.before, result.after):
        missing = Missing(pitfall.code, pitfall.text.rstrip("."), pitfall.remedy.rstrip("."))
        faults.append(_Fault((missing,), tuple(_blamed(context, drafted, pitfall))))
    return faults + _broken(assessment)


def _broken(assessment: Assessment) -> list[_Fault]:
    """Return the selectors that stop matching the metrics, with the scrapers whose move causes it."""
    faults = []
    for broken in broken_selectors(assessment.context.inventory, assessment.label_changes):
        after = f'{broken.change.label}="{broken.change.after}"' if broken.change.after else "no such label"
        missing = Missing(
            "selector-breaks",
            f"{broken.ref} selects {broken.selector}, and the metrics would have {after}",
            "change that selector so that it matches both values, and plan again",
        )
        scrapers = [verdict.scraper for verdict in assessment.verdicts if broken.change in verdict.labels]
        faults.append(_Fault((missing,), tuple(dict.fromkeys(scrapers))))
    return faults


def outlook(inventory: Inventory, planned: Plan) -> Inventory:
    """Return the objects as they would be after the plan is applied and all pods have restarted.

    Pods that a workload among the objects owns are left out: a predicted pod from the template replaces them.
    Roles are left out if the dump has none: otherwise the plan's roles would look like the only ones.
    """
    after = planned.apply(inventory)
    owners = {pod.ref: owner_of_pod(pod, after) for pod in after.of_kind("Pod", "")}
    gone = [pod for pod, owner in owners.items() if owner != pod and owner in after]
    if not any(manifest.ref.group == RBAC_GROUP for manifest in inventory):
        gone += [manifest.ref for manifest in after if manifest.ref.group == RBAC_GROUP]
    return after.changed((), gone) if gone else after


def _told(verdict: ScrapeVerdict) -> tuple[Ref, str, tuple[str, ...]]:
    return verdict.workload, verdict.job, tuple(missing.code for missing in verdict.missing)


def _blamed(context: Context, drafted: Plan, pitfall: Pitfall) -> Iterable[Ref | None]:
    """Return the possible causes of a new error: its own object, or the scraper with jobs in that object."""
    yield pitfall.ref
    for scraper in context.observation.scrapers:
        jobs = (job for job in context.unmoved if job.scraper == scraper.ref)
        if pitfall.ref == scraper.config or any(job.ref == pitfall.ref for job in jobs):
            yield scraper.ref
    for change in drafted.changes:
        if change.ref == pitfall.ref and change.phase in ("credentials", "scrape"):
            if context.intent.prometheus in ("addon", "operator"):
                yield new_prometheus_ref(context)
            yield from (scraper.ref for scraper in context.observation.scrapers)


def _hold(context: Context, fault: _Fault, held: Held) -> None:
    targets = {target.ref for target in context.targets}
    if (own := new_deployment(context)) in fault.blamed and own not in held.open:
        held.open[own] = fault.missing
        return
    scrapers = {scraper.ref for scraper in context.observation.scrapers}
    for ref in fault.blamed:
        if ref in targets and ref not in held.workloads:
            held.workloads[ref] = fault.missing
            return
        if ref is not None and (ref in scrapers or _is_new(context, ref)) and ref not in held.scrapers:
            held.scrapers[ref] = fault.missing
            return
    # No known part of the plan causes it, so hold back everything that the plan could still change.
    for ref in targets:
        held.workloads.setdefault(ref, fault.missing)


def _is_new(context: Context, ref: Ref) -> bool:
    return ref == new_prometheus_ref(context)


def held_gates(context: Context, chosen: Iterable[PlannedWorkload], known: Iterable[Gate]) -> list[Gate]:
    """Return the gates of everything that is held back, with equal reasons in one gate.

    `known` are the gates of hardening: a port that stays open for want of a reader is in them already.
    """
    refs = [target.ref for target in chosen]
    told = {ref for gate in known if not gate.planned for ref in gate.workloads}
    grouped: dict[tuple[Missing, ...], list[Ref]] = {}
    for ref in refs:
        if missing := context.held.workloads.get(ref):
            grouped.setdefault(missing, []).append(ref)
    gates = [
        Gate("listeners", tuple(refs_of_gate), missing, False) for missing, refs_of_gate in grouped.items()
    ]
    lacking: dict[tuple[Missing, ...], list[Ref]] = {}
    for ref in refs:
        if (missing := context.held.open.get(ref)) and ref not in told and ref not in context.held.workloads:
            lacking.setdefault(missing, []).append(ref)
    gates += [
        Gate("scrape", tuple(refs_of_gate), missing, False) for missing, refs_of_gate in lacking.items()
    ]
    for scraper, missing in context.held.scrapers.items():
        jobs = [job for job in context.unmoved if job.scraper == scraper]
        read = tuple(ref for ref in refs if any(concerns(job, {ref}) for job in jobs))
        gates.append(Gate("scrape", read or tuple(refs), missing, False))
    return gates
