"""Tell which manager took a change back, and how long to wait for one that might. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from meshscrape.cluster.trackers import tracker
from meshscrape.kube.objects import Manifest, Object, Ref, as_list, dig
from meshscrape.plan.model import MANAGER, Change, Phase

# How long a tool may take until it compares the cluster with its repository, in seconds: Argo CD's default
# of `timeout.reconciliation` with its jitter, and Flux' usual `spec.interval` of a Kustomization. OLM watches
# its objects. Helm compares only when somebody runs it.
_INTERVALS = {"Argo CD": 180.0, "Flux": 600.0, "OLM": 180.0}
# The parts of Kubernetes that write status and scale, not what a plan sets.
_CONTROLLERS = ("kube-controller-manager", "kubelet", "kube-scheduler")


def reconcile_seconds(objects: Iterable[Manifest], namespaces: Collection[str]) -> float:
    """Return the longest reconcile interval of the tools that track objects of `namespaces`; else 0."""
    tools = {tracker(manifest.data) for manifest in objects if manifest.ref.namespace in namespaces}
    return max((_INTERVALS.get(tool, 0.0) for tool in tools), default=0.0)


def taken_back(changes: Iterable[Change], written: Collection[tuple[Phase, Ref]]) -> list[Ref]:
    """Return the objects whose change is planned again although this run has written it."""
    return list(dict.fromkeys(change.ref for change in changes if (change.phase, change.ref) in written))


def other_managers(data: Object) -> list[str]:
    """Return the field managers that wrote an object, the latest first, without meshscrape and Kubernetes."""
    entries = [
        (str(dig(entry, "time", default="")), str(dig(entry, "manager", default="")))
        for entry in as_list(dig(data, "metadata", "managedFields"))
        if not dig(entry, "subresource")
    ]
    names = [name for _, name in sorted(entries, reverse=True)]
    return [name for name in dict.fromkeys(names) if name and name not in (MANAGER, *_CONTROLLERS)]
