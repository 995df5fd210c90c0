"""Find out what RBAC allows a scraper to discover: pods and EndpointSlices, cluster-wide or per namespace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from meshscrape.istio.names import DISCOVERY_GROUP, RBAC_GROUP
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Manifest, Ref
from meshscrape.observe.declared_jobs import DeclaredJob, is_endpoints
from meshscrape.observe.model import Scraper

EVERYWHERE = ""


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """The right to list and watch a resource in a namespace; `EVERYWHERE` is the whole cluster."""

    resource: str
    namespace: str = EVERYWHERE


def wanted_rights(scraper: Scraper, jobs: Iterable[DeclaredJob], inventory: Inventory) -> tuple[Right, ...]:
    """Return the rights that the jobs of a scraper need."""
    rights = set()
    server = inventory.get(scraper.ref)
    spec = objects.as_mapping(server.data.get("spec")) if server else {}
    by_slices = scraper.kind == "operator" and spec.get("serviceDiscoveryRole") == "EndpointSlice"
    for job in (job for job in jobs if job.scraper is scraper):
        for discovery in job.discoveries:
            for namespace in discovery.namespaces or (EVERYWHERE,):
                if discovery.role == "pod" or is_endpoints(discovery.role):
                    rights.add(Right("pods", namespace))
                if discovery.role == "endpointslice" or (by_slices and is_endpoints(discovery.role)):
                    rights.add(Right("endpointslices", namespace))
    return tuple(sorted(rights))


class Grants:
    """The roles that are bound to the ServiceAccounts of a cluster."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._cluster = inventory.of_kind("ClusterRoleBinding", RBAC_GROUP)
        self._namespaced = inventory.of_kind("RoleBinding", RBAC_GROUP)
        self._has_cluster_roles = bool(self._cluster or inventory.of_kind("ClusterRole", RBAC_GROUP))
        self._has_roles = bool(self._namespaced or inventory.of_kind("Role", RBAC_GROUP))

    def bound(self, namespace: str, account: str) -> bool:
        """Return whether any binding names the ServiceAccount."""
        bindings = (*self._cluster, *self._namespaced)
        return any(_names(binding, namespace, account) for binding in bindings)

    def tells(self, right: Right) -> bool:
        """Return whether the dump has the kinds of objects that could give the right."""
        return self._has_cluster_roles and (right.namespace == EVERYWHERE or self._has_roles)

    def allows(self, namespace: str, account: str, right: Right) -> bool:
        """Return whether the ServiceAccount has the right; a role that is not in the dump may give it."""
        bindings = [*self._cluster]
        if right.namespace != EVERYWHERE:
            bindings += [binding for binding in self._namespaced if binding.ref.namespace == right.namespace]
        return any(
            _allows(self._role(binding), right.resource)
            for binding in bindings
            if _names(binding, namespace, account)
        )

    def accounts(self, right: Right) -> Iterator[tuple[str, str]]:
        """Return namespace and name of the ServiceAccounts that have the right in some namespace."""
        for binding in (*self._cluster, *self._namespaced):
            role = self._role(binding)
            if role is not None and _allows(role, right.resource):
                for subject in objects.as_list(binding.data.get("subjects")):
                    if objects.dig(subject, "kind") == "ServiceAccount":
                        namespace = objects.dig(subject, "namespace", default=binding.ref.namespace)
                        yield str(namespace), str(objects.dig(subject, "name"))

    def _role(self, binding: Manifest) -> Manifest | None:
        kind = str(objects.dig(binding.data, "roleRef", "kind", default="ClusterRole"))
        namespace = binding.ref.namespace if kind == "Role" else ""
        return self._inventory.get(
            Ref(RBAC_GROUP, kind, namespace, str(objects.dig(binding.data, "roleRef", "name")))
        )


def _names(binding: Manifest, namespace: str, account: str) -> bool:
    return any(
        _is(subject, binding, namespace, account) for subject in objects.as_list(binding.data.get("subjects"))
    )


def _is(subject: Any, binding: Manifest, namespace: str, account: str) -> bool:
    kind, name = objects.dig(subject, "kind"), objects.dig(subject, "name")
    if kind == "Group":
        return name in (
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        )
    if kind == "User":
        return bool(name == f"system:serviceaccount:{namespace}:{account}")
    own = objects.dig(subject, "namespace", default=binding.ref.namespace)
    return (kind, own, name) == ("ServiceAccount", namespace, account)


def _allows(role: Manifest | None, resource: str) -> bool:
    if role is None or role.data.get("aggregationRule"):
        return True
    group = DISCOVERY_GROUP if resource == "endpointslices" else ""
    needs = ([group], [resource], ["list", "watch"])
    for rule in objects.as_list(role.data.get("rules")):
        allowed = [objects.as_list(objects.dig(rule, key)) for key in ("apiGroups", "resources", "verbs")]
        if objects.dig(rule, "resourceNames"):
            continue
        if all(
            "*" in have or all(wanted in have for wanted in need)
            for have, need in zip(allowed, needs, strict=True)
        ):
            return True
    return False
