"""Choose the objects of a cluster that the planner reads, from the API server's lists of resources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.istio import names
from meshscrape.kube.objects import as_list, as_mapping, dig
from meshscrape.observe.cluster import AZURE_MONITORING, GATEWAY_GROUP, OPENTELEMETRY, VICTORIA
from meshscrape.observe.google_monitoring import GROUP as GOOGLE_MONITORING

# The resources to read, by API group: plural names, or all that can be listed. Secrets are not among them:
# nothing that the planner decides needs one.
ALL = ("*",)
READ: Mapping[str, tuple[str, ...]] = {
    "": ("namespaces", "serviceaccounts", "pods", "services", "configmaps"),
    "apps": ("deployments", "statefulsets", "daemonsets", "replicasets", "controllerrevisions"),
    "batch": ("cronjobs", "jobs"),
    "autoscaling": ("horizontalpodautoscalers",),
    names.NETWORKING_GROUP: ("networkpolicies",),
    names.RBAC_GROUP: ("roles", "rolebindings", "clusterroles", "clusterrolebindings"),
    "admissionregistration.k8s.io": ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"),
    names.ISTIO_NETWORKING: ALL,
    names.ISTIO_SECURITY: ALL,
    names.ISTIO_TELEMETRY: ALL,
    "extensions.istio.io": ALL,
    names.ISTIO_INSTALL: ALL,
    names.ASM_GROUP: ALL,
    GATEWAY_GROUP: ALL,
    names.MONITORING_GROUP: ALL,
    AZURE_MONITORING: ALL,
    VICTORIA: ALL,
    GOOGLE_MONITORING: ALL,
    OPENTELEMETRY: ALL,
}


@dataclass(frozen=True, slots=True, order=True)
class Resource:
    """A resource that an API server serves: its group and version, plural name and kind."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """Return the `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """Return the path that lists it in all namespaces."""
        return f"{group_path(self.group, self.version)}/{self.plural}"

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


def group_path(group: str, version: str) -> str:
    """Return the path of a group's version; the core group has a path of its own."""
    return f"/apis/{group}/{version}" if group else f"/api/{version}"


def groups_to_read(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return group and preferred version of each group to read, from the answer to `/apis` (APIGroupList)."""
    served = (as_mapping(group) for group in as_list(document.get("groups")))
    versions = [
        (str(group.get("name")), str(dig(group, "preferredVersion", "version", default="")))
        for group in served
    ]
    return [("", "v1"), *sorted((name, version) for name, version in versions if version and name in READ)]


def resources_to_read(group: str, version: str, document: Mapping[str, Any]) -> list[Resource]:
    """Return the resources to list of a group's version, from its APIResourceList.

    Subresources and what cannot be listed are left out.
    """
    wanted = READ[group]
    served = (as_mapping(resource) for resource in as_list(document.get("resources")))
    return sorted(
        Resource(group, version, str(resource.get("name")), str(resource.get("kind")))
        for resource in served
        if "/" not in str(resource.get("name"))
        and "list" in as_list(resource.get("verbs"))
        and (wanted == ALL or resource.get("name") in wanted)
    )


def complete(item: Mapping[str, Any], resource: Resource, *, managers: bool = False) -> dict[str, Any]:
    """Return an item of a list as an object of its own: with its kind, without the managed fields.

    The items of a list of a built-in kind have neither `apiVersion` nor `kind`. kubectl, too, leaves the
    managed fields out; `managers` keeps them, as the record of who wrote which field.
    """
    metadata = {
        key: value
        for key, value in as_mapping(item.get("metadata")).items()
        if managers or key != "managedFields"
    }
    return {"apiVersion": resource.api_version, "kind": resource.kind, **item, "metadata": metadata}


def reading_rules() -> list[dict[str, Any]]:
    """Return the rules of a ClusterRole that allow reading what the planner reads, and nothing else."""
    by_resources: dict[tuple[str, ...], list[str]] = {}
    for group, plurals in READ.items():
        by_resources.setdefault(plurals, []).append(group)
    return [
        {"apiGroups": groups, "resources": list(plurals), "verbs": ["list"]}
        for plurals, groups in by_resources.items()
    ]
