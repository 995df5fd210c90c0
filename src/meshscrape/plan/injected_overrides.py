"""Bootstrap mode by an injection template: `--scope namespace|mesh` without a change of any pod template.

A plan writes the ConfigMaps and names the values of Istio's chart. It does not write the injector's ConfigMap
behind the chart: after the chart's next upgrade, new pods would have neither a secure port nor open plaintext
ports. The workloads wait until the injector's ConfigMap among the objects has the template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshscrape.istio import names
from meshscrape.kube.objects import Ref
from meshscrape.observe.control import injector_of
from meshscrape.observe.injection_template import TEMPLATE, InjectionTemplate, chart_values
from meshscrape.observe.model import ControlPlane
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan import native, templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.model import Missing, Refused
from meshscrape.plan.workloads import (
    TEMPLATE_SINCE,
    Context,
    PlannedWorkload,
    default_control_plane,
    restarts_of,
    template_too_old,
)

_OPT_OUT = f"set the pod annotation {names.TEMPLATES}: sidecar, or plan with --scope workload"


def by_template(context: Context, target: PlannedWorkload) -> bool:
    """Return whether a workload is to get its override from the injection template.

    The others keep settings of their own: gateways, workloads that name their injection templates, that have
    an override of their own or Istio's secure ports, or that need a port which the template does not
    announce.
    """
    workload = target.workload
    if target.mode != "bootstrap" or (context.intent.scope == "workload" and not workload.template_checksum):
        return False
    if not _reached(workload) or native.off(context, workload):
        return False
    return native.envoy_port(context.intent, workload) == context.intent.envoy_port


def _reached(workload: ObservedWorkload) -> bool:
    """Return whether the template would reach the pods of a workload in a namespace that it lists."""
    if workload.kind not in ("sidecar", "uninjected") or (workload.proxy and workload.proxy.complete):
        return False
    own = workload.override is not None and not workload.template_checksum
    return not own and names.TEMPLATES not in workload.annotations


def plan_injected(context: Context, target: PlannedWorkload, checksum: str) -> Refused | None:
    """Note that a workload gets its override from the template; exclude its ports where STRICT needs it."""
    workload = target.workload
    if target.version.at_least(TEMPLATE_SINCE) is False:
        return template_too_old(target.version)
    context.templated[workload.ref] = checksum
    if workload.template_checksum != checksum:
        return None

    def change(data: Mutable) -> None:
        template = templates.template_of(data)
        excluded = native.excluded_ports(context, workload, template)
        if excluded is not None:
            templates.annotate(template, {names.EXCLUDE_INBOUND: excluded})

    if any(workload.mtls.of(port) == "STRICT" for port in context.intent.secure_ports):
        reason = "its sidecar must not intercept the secure port, as mutual TLS is STRICT"
        context.draft.edit(target.ref, change, reason, restarts_of(context, workload))
    return None


def hold_injected(context: Context) -> None:
    """Name the values of Istio's chart, and hold the workloads that its injector does not give them yet."""
    waiting: list[PlannedWorkload] = []
    by_revision: dict[str, list[PlannedWorkload]] = {}
    for target in context.targets:
        if target.ref in context.templated:
            by_revision.setdefault(_revision(context, target.workload), []).append(target)
    planes = {plane.revision: plane for plane in context.observation.control_planes}
    for revision, targets in sorted(by_revision.items()):
        waiting += _waiting(context, revision, planes.get(revision), targets)
    refs = {target.ref for target in waiting}
    context.targets = [target for target in context.targets if target.ref not in refs]


def _waiting(
    context: Context, revision: str, plane: ControlPlane | None, targets: list[PlannedWorkload]
) -> list[PlannedWorkload]:
    """Return the targets whose injector does not give them their override; hold them."""
    wanted = _wanted(context, plane, targets)
    there = plane.override_template if plane else None
    complete = plane is not None and there == wanted and TEMPLATE in plane.default_templates
    if complete:
        return []
    excluded = ""
    if context.intent.scope == "mesh":
        present = plane.mesh.exclude_inbound_ports if plane else ()
        excluded = templates.merged_ports(",".join(present), context.intent.secure_ports)
    context.chart_values[revision] = chart_values(wanted, plane.default_templates if plane else (), excluded)
    waiting = [each for each in targets if not _delivered(there, wanted, each, plane)]
    missing = (_missing(context, revision),)
    for target in waiting:
        context.held.open[target.ref] = missing
    return waiting


def _delivered(
    there: InjectionTemplate | None,
    wanted: InjectionTemplate,
    target: PlannedWorkload,
    plane: ControlPlane | None,
) -> bool:
    if there is None or plane is None or TEMPLATE not in plane.default_templates:
        return False
    space = target.workload.namespace
    ports = (there.merged_port, there.envoy_port) == (wanted.merged_port, wanted.envoy_port)
    return ports and there.checksums.get(space) == wanted.checksums[space]


def _missing(context: Context, revision: str) -> Missing:
    name = revision or "default"
    if injector_of(context.inventory, revision) is None:
        return Missing(
            "template-unknown",
            f"the ConfigMap of the injector of revision {name}, which may have the template {TEMPLATE}",
            "give the ConfigMap istio-sidecar-injector too",
        )
    return Missing(
        "template-missing",
        f"the injection template {TEMPLATE}, as this plan needs it, in the injector of revision {name}",
        "apply the listeners, add the printed values (istio-values.yaml of `meshscrape render`) to those "
        "of Istio's chart, upgrade it, and plan again",
    )


def _wanted(
    context: Context, plane: ControlPlane | None, targets: Iterable[PlannedWorkload]
) -> InjectionTemplate:
    """Return the template for the targets and for the namespaces that it already has."""
    there = plane.override_template.checksums if plane and plane.override_template else {}
    own = {target.workload.namespace: context.templated[target.ref] for target in targets}
    return InjectionTemplate(context.intent.merged_port, context.intent.envoy_port, {**there, **own})


def _revision(context: Context, workload: ObservedWorkload) -> str:
    """Return the revision of the control plane that injects a workload."""
    for plane in context.observation.control_planes:
        if workload.revision in (plane.revision, *plane.tags):
            return plane.revision
    default = default_control_plane(context.observation)
    return default.revision if default else workload.revision


def harmed_by_template(context: Context, chosen: Iterable[PlannedWorkload]) -> dict[Ref, tuple[Missing, ...]]:
    """Return the chosen workloads of namespaces where the template would harm a workload, with the reason."""
    blocked: dict[Ref, tuple[Missing, ...]] = {}
    spaces: dict[str, list[PlannedWorkload]] = {}
    for target in chosen:
        if by_template(context, target):
            spaces.setdefault(target.workload.namespace, []).append(target)
    for workload in context.observation.workloads:
        if workload.namespace in spaces and workload.in_mesh and _reached(workload):
            for missing in _harm(context, workload):
                for target in spaces[workload.namespace]:
                    if target.ref not in context.held.workloads:
                        blocked[target.ref] = (*blocked.get(target.ref, ()), missing)
    return blocked


def _harm(context: Context, workload: ObservedWorkload) -> Iterator[Missing]:
    prefix = f"the injection template would also reach {workload.ref}: "
    if workload.ref in context.held.workloads:
        yield Missing(
            "scope-held",
            f"{prefix}it is held back",
            f"do what the gate of {workload.ref} says, or {_OPT_OUT}",
        )
    elif workload.envoy_missing:
        yield Missing("no-envoy", f"{prefix}it has no Envoy, and would announce a port", _OPT_OUT)
    elif any(port.number in context.intent.secure_ports for port in workload.container_ports):
        yield Missing("port-taken", f"{prefix}its application uses the port itself", _OPT_OUT)


def unproven(context: Context, workload: ObservedWorkload) -> tuple[Missing, ...]:
    """Return what is missing until a running pod shows that istiod injects by the template.

    istiod reads its changed ConfigMap only after the kubelet has written it into istiod's pod, but it sends a
    ProxyConfig at once. A pod made in between would have closed ports and no secure one.
    """
    if not workload.template_checksum:
        return ()
    revision = _revision(context, workload)
    for other in context.observed.workloads:
        if other.template_checksum and _revision(context, other) == revision:
            shown = (pod.annotations.get(names.BOOTSTRAP_CHECKSUM) for pod in other.running)
            if other.template_checksum in shown:
                return ()
    return (
        Missing(
            "template-unproven",
            f"a running pod with the override of the injection template {TEMPLATE}: none shows that istiod's "
            "webhook uses it yet",
            "restart one workload (kubectl rollout restart) some two minutes after the chart's upgrade, see "
            f"that its pod has the annotation {names.BOOTSTRAP_CHECKSUM}, and plan again",
        ),
    )
