"""Delete meshscrape's own objects when nothing needs them any more."""

from __future__ import annotations

from collections.abc import Iterable

from meshscrape.istio.names import (
    BOOTSTRAP_CHECKSUM,
    ISTIO_NETWORKING,
    ISTIO_SECURITY,
    MANAGED_BY,
    MONITORING_GROUP,
    NETWORKING_GROUP,
)
from meshscrape.kube.objects import Manifest, Object, Ref, dig, labels
from meshscrape.observe.injection_template import OVERRIDE_NAME
from meshscrape.observe.references import first, references
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.model import MANAGER, Phase
from meshscrape.plan.workloads import Context
from meshscrape.prometheus.scrape_proxy_pod import CONTAINER

_PREFIX = f"{MANAGER}-"
# They open a port of legacy mode; the policies that protect it go after them.
_OPENING = ("Sidecar", "Gateway", "VirtualService", "ServiceEntry")
_ADMIN = "meshscrape-gateway-admin"
_MONITORS = ("PodMonitor", "ServiceMonitor")
_REASON = "meshscrape made it, and nothing needs it any more"


def is_owned(data: Object) -> bool:
    """Return whether meshscrape made an object: by its label and the name that a plan gives."""
    name = str(dig(data, "metadata", "name"))
    named = _PREFIX in name or name.endswith(f"-{CONTAINER}")
    return labels(data).get(MANAGED_BY) == MANAGER and named


def delete_owned(
    context: Context, leaving: Iterable[ObservedWorkload], staying: Iterable[ObservedWorkload], *, whole: bool
) -> None:
    """Plan to delete the objects of the workloads that leave; with `whole`, all objects of meshscrape."""
    needed = {(workload.namespace, workload.name) for workload in staying}
    legacy = {workload.namespace for workload in staying if workload.is_gateway and workload.legacy}
    gone = {(workload.namespace, workload.name) for workload in leaving} - needed
    overridden = {workload.namespace for workload in staying if workload.bootstrap_override == OVERRIDE_NAME}
    for manifest in list(context.inventory):
        if not is_owned(manifest.data):
            continue
        ref = manifest.ref
        context.draft.phase = _phase(ref)
        if ref.name == OVERRIDE_NAME:
            if ref.namespace not in overridden and (
                whole or any(ref.namespace == place for place, _ in gone)
            ):
                _override(context, manifest)
            continue
        if ref.name == _ADMIN and ref.namespace in legacy:
            continue
        if whole or (_of_workload(ref) and (ref.namespace, _workload_of(ref)) in gone):
            context.draft.delete(ref, _REASON)


def _of_workload(ref: Ref) -> bool:
    """Return whether meshscrape makes objects of this kind for single workloads."""
    overlay = ref.kind == "ConfigMap"
    return overlay or ref.group in (ISTIO_NETWORKING, ISTIO_SECURITY, NETWORKING_GROUP)


def _workload_of(ref: Ref) -> str:
    return ref.name.removeprefix(_PREFIX).removesuffix("-allow")


def _phase(ref: Ref) -> Phase:
    if ref.group == ISTIO_NETWORKING and ref.kind in _OPENING:
        return "listeners"
    return "scrape" if ref.group == MONITORING_GROUP and ref.kind in _MONITORS else "removal"


def _override(context: Context, manifest: Manifest) -> None:
    """Delete a ConfigMap with a bootstrap override, unless a rollback could make pods that need it."""
    # Today's pods are replaced. Their ReplicaSet is what a rollback brings back.
    left = _templated_pods(context, manifest.ref.namespace)
    referring = references(context.inventory, manifest.ref)
    users = sorted({*left, *(ref for ref in referring if ref.kind != "Pod")})
    if not users:
        context.draft.delete(manifest.ref, _REASON)
        return
    shown = first(users, 5)
    context.draft.note(
        manifest.ref,
        "override-in-use",
        f"{len(users)} objects refer to it, and none of their pods starts without it: {shown}"
        if not left
        else f"{len(users)} objects refer to it, and their pods lose their secure ports without it: {shown}",
        "remove again when they are gone; a rollback to an older revision needs it too",
    )


def _templated_pods(context: Context, namespace: str) -> set[Ref]:
    """Return the pods that an injection template gave the override: no change of theirs restarts them."""
    return {
        pod.ref
        for workload in context.observed.workloads
        if workload.namespace == namespace and BOOTSTRAP_CHECKSUM not in workload.annotations
        for pod in workload.running
        if BOOTSTRAP_CHECKSUM in pod.annotations
    }
