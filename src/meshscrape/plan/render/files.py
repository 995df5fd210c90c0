"""Render a plan as files: one directory per phase, one file per object; equal plans give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from meshscrape.istio.names import CONTROL_PLANE_GROUPS, DEPLOYMENT_REVISION
from meshscrape.kube import objects
from meshscrape.kube.objects import LAST_APPLIED, Object, Ref, stable
from meshscrape.kube.yaml_text import dump
from meshscrape.plan.model import PHASES, Change, Phase, Plan, revert
from meshscrape.plan.render.diff import plan_text

OVERVIEW = "PLAN.txt"
HEAD = "# Made by meshscrape render. Apply the directories one after the other, in order.\n\n"
# Controllers keep state in these annotations; applying a file with them would reset it.
_NUMBERED = (DEPLOYMENT_REVISION, "deprecated.daemonset.template.generation")
ORIGINALS = "originals"
VALUES_HEAD = (
    "# Values for Istio's chart (IstioOperator: in spec.values). Add them to your own, and upgrade Istio\n"
    "# with them after 3-listeners is applied. kubectl must not apply this file.\n"
)
CONTROL_PLANE, DATA_PLANE = "asm-control-plane", "cluster"


def plan_files(plan: Plan) -> dict[str, str]:
    """Return relative paths and their text: `PHASE/NAMESPACE.KIND.NAME.yaml`, and an overview of the plan.

    Objects to delete are in `PHASE/delete/`, unchanged and numbered in their order: kubectl processes files
    by name, and a port must close before the policies that protect it are deleted. For the way back,
    `originals/` has each object before the plan, and `originals/delete/` the objects that the plan creates.
    With ASM, each API server has its own tree.
    """
    files = {OVERVIEW: HEAD + plan_text(plan)}
    for number, change in enumerate(plan.changes, 1):
        directory = f"{place(plan, change.ref)}{phase_directory(change.phase, plan.phases)}"
        data, name = _applied(plan, change), file_name(change.ref)
        if data is None:
            directory, data, name = f"{directory}/delete", change.before, f"{number:05}_{name}"
        assert data is not None  # noqa: S101 - a change has one of both
        files[f"{directory}/{name}"] = _head(change) + dump(clean(data))
    files |= _originals(plan)
    for revision, values in plan.chart_values.items():
        files[values_file(revision)] = VALUES_HEAD + values
    return dict(sorted(files.items()))


def values_file(revision: str) -> str:
    """Return the name of the file with the values of Istio's chart for a revision."""
    return "istio-values.yaml" if revision in ("", "default") else f"istio-values-{revision}.yaml"


def _applied(plan: Plan, change: Change) -> Object | None:
    """Return the object for `kubectl apply`, which keeps fields that the file does not contain."""
    data = change.after
    if data is None or change.ref not in plan.autoscaled or not isinstance(data.get("spec"), Mapping):
        return data
    spec = {key: value for key, value in data["spec"].items() if key != "replicas"}
    return {**data, "spec": spec}


def _originals(plan: Plan) -> dict[str, str]:
    latest = {change.ref: change for change in revert(plan).changes}
    files = {}
    for number, (ref, change) in enumerate(latest.items(), 1):
        directory, data, name = f"{place(plan, ref)}{ORIGINALS}", change.after, file_name(ref)
        if data is None:
            directory, data, name = f"{directory}/delete", change.before, f"{number:05}_{name}"
        assert data is not None  # noqa: S101 - a change has one of both
        files[f"{directory}/{name}"] = dump(_with_applied(clean(data), data))
    return files


def _with_applied(written: dict[str, Any], data: Object) -> dict[str, Any]:
    """Return an original with kubectl's last-applied annotation, to avoid a warning of `kubectl apply`."""
    applied = objects.annotations(data).get(LAST_APPLIED)
    if applied is None:
        return written
    metadata = written["metadata"]
    notes = {**metadata.get("annotations", {}), LAST_APPLIED: applied}
    return {**written, "metadata": {**metadata, "annotations": notes}}


def plan_stream(plan: Plan, phase: Phase) -> str:
    """Return the objects of one phase as one YAML stream; comments name the objects to delete."""
    parts = []
    for change in plan.changes:
        if change.phase == phase:
            data = _applied(plan, change)
            body = dump(clean(data)) if data is not None else f"# delete {change.ref}\n"
            parts.append(_head(change) + body)
    return "---\n".join(parts)


def phase_directory(phase: Phase, phases: Sequence[Phase] = PHASES) -> str:
    """Return the directory's name, such as `3-listeners`, which sorts in the order of the phases."""
    return f"{phases.index(phase) + 1}-{phase}"


def file_name(ref: Ref) -> str:
    """Return a file name that no other object has."""
    kind = f"{ref.kind}.{ref.group}" if ref.group else ref.kind
    parts = [part for part in (ref.namespace, kind, ref.name) if part]
    return "_".join(parts).replace("/", "_").replace(":", "_").lower() + ".yaml"


def place(plan: Plan, ref: Ref) -> str:
    """Return the directory of the object's API server; empty if there is only one API server."""
    if not plan.apart:
        return ""
    return f"{CONTROL_PLANE if ref.group in CONTROL_PLANE_GROUPS else DATA_PLANE}/"


def clean(data: Object) -> dict[str, Any]:
    """Return an object for a file: without status and the fields that a cluster adds."""
    written = stable(data)
    notes = {key: value for key, value in objects.annotations(written).items() if key not in _NUMBERED}
    if notes != objects.annotations(written):
        kept = {key: value for key, value in written["metadata"].items() if key != "annotations"}
        written["metadata"] = kept | ({"annotations": notes} if notes else {})
    metadata = data.get("metadata")
    if isinstance(metadata, Mapping) and "namespace" in metadata:
        # Write the namespace even if it is `default`, because kubectl uses the current namespace otherwise.
        written["metadata"] = _with_namespace(written["metadata"], str(metadata["namespace"]))
    return written


def _with_namespace(metadata: Mapping[str, object], namespace: str) -> dict[str, object]:
    return {"name": metadata.get("name"), "namespace": namespace} | {
        key: value for key, value in metadata.items() if key not in ("name", "namespace")
    }


def _head(change: Change) -> str:
    return "".join(_comments(change))


def _comments(change: Change) -> Iterator[str]:
    yield f"# why: {change.reason}\n"
    if change.restarts:
        yield f"# restarts: {', '.join(change.restarts)}\n"
