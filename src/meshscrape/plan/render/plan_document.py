"""Convert a plan to plain data, for programs."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.kube.objects import Ref
from meshscrape.plan.model import Change, Plan


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return the plan for `json.dumps`: changes in order, notes, gates, and the mode of each workload."""
    return {
        "apiVersion": DOCUMENT_VERSION,
        "kind": "Plan",
        "inverse": plan.inverse,
        "changes": [_change(change) for change in plan.changes],
        "notes": [
            {
                "object": _ref(note.ref),
                "code": note.code,
                "text": note.text,
                "remedy": note.remedy,
                "refused": note.refused,
            }
            for note in plan.notes
        ],
        "refused": len(plan.refused),
        "outcome": {
            "secured": [_ref(ref) for ref in plan.outcome.secured],
            "removed": [_ref(ref) for ref in plan.outcome.removed],
            "unchanged": [_ref(ref) for ref in plan.outcome.unchanged],
            "leftAlone": [_ref(ref) for ref in plan.outcome.left],
            "heldBack": [_ref(ref) for ref in plan.outcome.held],
            "refused": list(plan.outcome.refused),
        },
        "gates": [
            {
                "phase": gate.phase,
                "workloads": [_ref(ref) for ref in gate.workloads],
                "waitsFor": [
                    {"code": missing.code, "text": missing.text, "remedy": missing.remedy}
                    for missing in gate.waits_for
                ],
                "planned": gate.planned,
            }
            for gate in plan.gates
        ],
        "chartValues": dict(plan.chart_values),
        "modes": [{"workload": _ref(ref), "mode": mode} for ref, mode in plan.modes.items()],
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "action": change.action,
        "phase": change.phase,
        "object": _ref(change.ref),
        "reason": change.reason,
        "restarts": list(change.restarts),
        "before": change.before,
        "after": change.after,
    }


def _ref(ref: Ref | None) -> dict[str, str] | None:
    if ref is None:
        return None
    return {"group": ref.group, "kind": ref.kind, "namespace": ref.namespace, "name": ref.name}
