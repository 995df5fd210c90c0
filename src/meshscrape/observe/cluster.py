"""The inventory with indexes for `observe`, so that no lookup scans all objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Manifest, Ref
from meshscrape.kube.selectors import LabelIndex

TAG_LABEL = "istio.io/tag"
GATEWAY_GROUP = "gateway.networking.k8s.io"
VICTORIA = "operator.victoriametrics.com"
AZURE_MONITORING = "azmonitoring.coreos.com"
OPENTELEMETRY = "opentelemetry.io"
_HASH = "pod-template-hash"
# Intermediate owners: users change the owners of these.
_BETWEEN = ("ReplicaSet", "Job")


class Cluster:
    """An inventory and its indexes."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.namespaces = {
            namespace.ref.name: objects.labels(namespace.data) for namespace in inventory.of_kind("Namespace")
        }
        self.services: LabelIndex[Manifest] = LabelIndex()
        for service in inventory.of_kind("Service", ""):
            selector = objects.as_mapping(objects.dig(service.data, "spec", "selector"))
            if selector:
                self.services.add(service.ref.namespace, {"matchLabels": selector}, service)
        self.pods = _pods_by_owner(inventory)

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace; none when it is not known."""
        return self.namespaces.get(namespace, {})

    def selecting(self, kind: str, group: str, *path: str) -> LabelIndex[Manifest]:
        """Return all objects of a kind, indexed by the selector at `path` (absent: it selects everything)."""
        index: LabelIndex[Manifest] = LabelIndex()
        for manifest in self.inventory.of_kind(kind, group):
            selector = objects.as_mapping(objects.dig(manifest.data, *path))
            # Sidecar's workloadSelector has `labels`, Istio's Gateway a bare mapping.
            if "labels" in selector:
                selector = {"matchLabels": selector["labels"]}
            index.add(manifest.ref.namespace, selector, manifest)
        return index


def _pods_by_owner(inventory: Inventory) -> dict[Ref, list[Manifest]]:
    pods_by_owner: dict[Ref, list[Manifest]] = {}
    for pod in inventory.of_kind("Pod", ""):
        # A terminating pod does not count, because its configuration cannot be changed any more.
        if objects.dig(pod.data, "metadata", "deletionTimestamp") is None:
            pods_by_owner.setdefault(owner_of_pod(pod, inventory), []).append(pod)
    return pods_by_owner


def owner_of_pod(pod: Manifest, inventory: Inventory) -> Ref:
    """Return the object that a user changes to change this pod: Deployment, CronJob, …; else the pod.

    The ReplicaSet in between need not be in the dump: its name is the Deployment's and the pod template's
    hash.
    """
    owner = _controller(pod)
    if owner is None:
        return pod.ref
    if owner.kind in _BETWEEN and (between := inventory.get(owner)) is not None:
        return _controller(between) or owner
    pod_hash = objects.labels(pod.data).get(_HASH)
    if owner.kind == "ReplicaSet" and pod_hash and owner.name.endswith(f"-{pod_hash}"):
        return Ref(owner.group, "Deployment", owner.namespace, owner.name.removesuffix(f"-{pod_hash}"))
    return owner


def _controller(manifest: Manifest) -> Ref | None:
    return next((ref for ref in owners(manifest)), None)


def owners(manifest: Manifest) -> Iterator[Ref]:
    """Return the owners of an object, its controller first."""
    references = objects.as_list(objects.dig(manifest.data, "metadata", "ownerReferences"))
    mappings = [reference for reference in references if isinstance(reference, Mapping)]
    for reference in sorted(mappings, key=lambda reference: reference.get("controller") is not True):
        group = str(reference.get("apiVersion", "")).rpartition("/")[0]
        ref = Ref(group, str(reference.get("kind")), manifest.ref.namespace, str(reference.get("name")))
        # The creator of a pod writes its owner, and the API server does not check that it is a valid name.
        if ref.printable:
            yield ref
