"""Add workloads without a sidecar to the mesh, by a label on their namespace or on their pods."""

from __future__ import annotations

from meshscrape.istio.names import INJECT, NAMESPACE_INJECTION, REVISION
from meshscrape.kube.objects import Ref, labels
from meshscrape.observe.model import ControlPlane
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.workloads import Context, PlannedWorkload, default_control_plane, restarts_of


def plan_injection(context: Context) -> None:
    """Plan the labels that give every target its proxy."""
    plane = default_control_plane(context.observation)
    missing = [target for target in context.targets if target.workload.kind == "uninjected"]
    for namespace in sorted({target.workload.namespace for target in missing}):
        ref = Ref("", "Namespace", "", namespace)
        targets = [target for target in missing if target.workload.namespace == namespace]
        if context.intent.selector is None and context.draft.get(ref) is not None:
            _label_namespace(context, ref, plane)
        else:
            for target in targets:
                _label_pods(context, target, plane)


def injection_labels(plane: ControlPlane | None) -> dict[str, str]:
    """Return the pod labels that request a sidecar of the control plane `plane`.

    They are for namespaces without an injection label of their own.
    """
    revision = _revision(plane)
    return {REVISION: revision} if revision else {INJECT: "true"}


def _revision(plane: ControlPlane | None) -> str:
    """Return the revision to name; empty if this control plane injects by default."""
    if plane is None or "default" in (plane.revision, *plane.tags):
        return ""
    return plane.tags[0] if plane.tags else plane.revision


def _label_namespace(context: Context, ref: Ref, plane: ControlPlane | None) -> None:
    revision = _revision(plane)
    injecting = {REVISION: revision} if revision else {NAMESPACE_INJECTION: "enabled"}

    def change(data: Mutable) -> None:
        templates.label(data, injecting)

    context.draft.edit(ref, change, "new pods of this namespace get a sidecar; running pods stay unchanged")


def _label_pods(context: Context, target: PlannedWorkload, plane: ControlPlane | None) -> None:
    def change(data: Mutable) -> None:
        template = templates.template_of(data)
        if REVISION not in labels(template):
            templates.label(template, injection_labels(plane))

    context.draft.edit(target.ref, change, "its pods get a sidecar", restarts_of(context, target.workload))
