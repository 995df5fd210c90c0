"""Find the objects that still refer to a bootstrap override; their pods do not start without it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from meshscrape.istio.names import BOOTSTRAP_OVERRIDE
from meshscrape.kube.objects import Inventory, Manifest, Ref, as_list, as_mapping, dig

# Where each kind has a pod template. A rollback brings the template of a ReplicaSet or ControllerRevision
# back, and a Job makes pods from its own.
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "Pod": (),
    "ReplicaSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "ControllerRevision": ("data", "spec", "template"),
}
_ENDED = ("Succeeded", "Failed")


def references(inventory: Inventory, config_map: Ref) -> tuple[Ref, ...]:
    """Return the pods, ReplicaSets, ControllerRevisions and Jobs whose pods mount an override's ConfigMap.

    Pods and Jobs that have ended do not count: they start nothing.
    """
    return tuple(sorted(_references(inventory, config_map)))


def _references(inventory: Inventory, config_map: Ref) -> Iterator[Ref]:
    for kind, path in _TEMPLATES.items():
        for manifest in inventory.of_kind(kind):
            template = dig(manifest.data, *path) if path else manifest.data
            here = manifest.ref.namespace == config_map.namespace and not _ended(manifest)
            if here and _refers(template, config_map.name):
                yield manifest.ref


def _ended(manifest: Manifest) -> bool:
    if manifest.ref.kind == "Job":
        conditions = as_list(dig(manifest.data, "status", "conditions"))
        return any(
            dig(condition, "type") in ("Complete", "Failed") and str(dig(condition, "status")) == "True"
            for condition in conditions
        )
    return manifest.ref.kind == "Pod" and dig(manifest.data, "status", "phase") in _ENDED


def _refers(template: Any, name: str) -> bool:
    noted = as_mapping(dig(template, "metadata", "annotations"))
    if noted.get(BOOTSTRAP_OVERRIDE) == name:
        return True
    for volume in as_list(dig(template, "spec", "volumes")):
        sources = [volume, *as_list(dig(volume, "projected", "sources"))]
        if any(dig(source, "configMap", "name") == name for source in sources):
            return True
    return False


def first(things: Sequence[object], most: int) -> str:
    """Return the first of several things by name, and how many more there are: `a, b, c and 2 more`."""
    more = len(things) - most
    return ", ".join(map(str, things[:most])) + (f" and {more} more" if more > 0 else "")


def counted(refs: Iterable[Ref]) -> str:
    """Return how many objects of each kind there are, and their names: `2 Pods (a, b), 1 ReplicaSet (c)`."""
    kinds: dict[str, list[str]] = {}
    for ref in refs:
        kinds.setdefault(ref.kind, []).append(ref.name)
    return ", ".join(
        f"{len(named)} {kind}{'s' * (len(named) != 1)} ({', '.join(named[:3])}{', …' * (len(named) > 3)})"
        for kind, named in kinds.items()
    )
