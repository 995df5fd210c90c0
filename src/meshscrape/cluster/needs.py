"""List the rights that a run needs for its plan, and the namespaces that must exist. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from meshscrape.cluster import lease as leases
from meshscrape.cluster.kinds import Resource
from meshscrape.cluster.writes import collection_path
from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.plan.model import Change

_VERBS = {"create": "create", "update": "patch", "delete": "delete"}


@dataclass(frozen=True, slots=True, order=True)
class NeededRight:
    """One right in the words of Kubernetes; without a namespace, in the whole cluster."""

    verb: str
    group: str
    resource: str
    namespace: str
    subresource: str = ""

    @property
    def attributes(self) -> dict[str, str]:
        """Return the `resourceAttributes` of an access review."""
        return {
            "verb": self.verb,
            "group": self.group,
            "resource": self.resource,
            "namespace": self.namespace,
            **({"subresource": self.subresource} if self.subresource else {}),
        }

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        sub = f"/{self.subresource}" if self.subresource else ""
        return f"{self.verb} {self.resource}{sub}{group} in {self.namespace or 'the cluster'}"


def rights_of(changes: Iterable[Change], resources: Iterable[Resource]) -> Iterator[NeededRight]:
    """Yield the rights to make changes and to follow their effect. Raise InputError for a kind not served."""
    for change in changes:
        data = change.after if change.after is not None else change.before
        version = str((data or {}).get("apiVersion"))
        plural = collection_path(change.ref, version, resources).rpartition("/")[2]
        yield NeededRight(_VERBS[change.action], change.ref.group, plural, change.ref.namespace)
        if change.after is not None:
            yield NeededRight("get", change.ref.group, plural, change.ref.namespace)


def rights_to_follow(refs: Iterable[Ref], resources: Iterable[Resource]) -> Iterator[NeededRight]:
    """Yield the rights to read objects that another tool changes."""
    for ref in refs:
        plural = collection_path(ref, "", resources).rpartition("/")[2]
        yield NeededRight("get", ref.group, plural, ref.namespace)


def rights_of_run(asked: Iterable[Ref]) -> Iterator[NeededRight]:
    """Yield the rights to hold the Lease, and to ask these Prometheus pods for their targets."""
    for verb in ("get", "create", "update"):
        yield NeededRight(verb, leases.GROUP, "leases", ROOT_NAMESPACE)
    for pod in asked:
        yield NeededRight("get", "", "pods", pod.namespace, "proxy")


def absent_namespaces(changes: Iterable[Change], inventory: Inventory) -> frozenset[str]:
    """Return the namespaces of new objects that neither exist nor are created by the changes."""
    return frozenset(_places(changes)) - _known(inventory) - created_namespaces(changes)


def created_namespaces(changes: Iterable[Change]) -> frozenset[str]:
    """Return the namespaces that the changes create."""
    return frozenset(
        change.ref.name for change in changes if change.action == "create" and change.ref.kind == "Namespace"
    )


def _places(changes: Iterable[Change]) -> Iterator[str]:
    return (change.ref.namespace for change in changes if change.action == "create" and change.ref.namespace)


def _known(inventory: Inventory) -> frozenset[str]:
    return frozenset(namespace.ref.name for namespace in inventory.of_kind("Namespace", ""))
