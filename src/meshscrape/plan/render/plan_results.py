"""A plan's notes, refusals, held-back phases and pending changes as results for a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.kube.objects import Inventory
from meshscrape.observe.reporting.results import PipelineResult, placed
from meshscrape.plan.model import Plan

PENDING = "pending-change"


def plan_results(plan: Plan, inventory: Inventory) -> tuple[PipelineResult, ...]:
    """Return a result for each refusal (error), held-back workload (warning), note and change (info)."""
    return tuple(dict.fromkeys(placed(result, inventory) for result in _results(plan)))


def _results(plan: Plan) -> Iterator[PipelineResult]:
    for note in plan.notes:
        if note.refused:
            yield PipelineResult(note.code, "error", note.ref, note.text, note.remedy)
    for gate in plan.gates:
        if gate.planned:
            continue
        for ref in gate.workloads:
            for missing in gate.waits_for:
                text = f"the phase {gate.phase} is held back, waiting for: {missing.text}"
                yield PipelineResult(missing.code, "warning", ref, text, missing.remedy)
    for note in plan.notes:
        if not note.refused:
            yield PipelineResult(note.code, "info", note.ref, note.text, note.remedy)
    for change in plan.changes:
        text = f"{change.action} in the phase {change.phase}: {change.reason}"
        yield PipelineResult(
            PENDING, "info", change.ref, text, "see `meshscrape plan`, apply the phases in order"
        )
