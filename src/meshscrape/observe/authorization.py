"""Decide by Istio's AuthorizationPolicies whether a request reaches a port of a workload.

Precedence as Istio documents it: a DENY policy that matches refuses the request. Otherwise the request is
allowed when there is no ALLOW policy, or when one matches. CUSTOM and AUDIT policies are not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.istio.names import ISTIO_SECURITY
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.kube.selectors import LabelIndex
from meshscrape.observe.cluster import Cluster

_SPIFFE = "spiffe://"
# Objects do not tell these properties of a client, so a rule with them may or may not match.
_UNKNOWN_SOURCES = ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks", "requestPrincipals")


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """A request to a workload; `spiffe_id` is empty for a client without a certificate."""

    port: int
    path: str
    method: str = "GET"
    spiffe_id: str = ""

    @property
    def principal(self) -> str:
        """Return the identity as policies spell it."""
        return self.spiffe_id.removeprefix(_SPIFFE)

    @property
    def namespace(self) -> str:
        """Return the namespace of the identity, or empty."""
        parts = self.principal.split("/")
        return parts[2] if len(parts) > 2 and parts[1] == "ns" else ""


class AuthorizationPolicies:
    """The AuthorizationPolicies of a mesh, indexed by the workloads that they apply to."""

    def __init__(self, cluster: Cluster, root_namespace: str) -> None:
        self._root = root_namespace
        self._policies: LabelIndex[Manifest] = LabelIndex()
        for policy in cluster.inventory.of_kind("AuthorizationPolicy", ISTIO_SECURITY):
            spec = objects.as_mapping(policy.data.get("spec"))
            if spec.get("targetRefs") or spec.get("targetRef"):
                # Such a policy applies to a Gateway, a waypoint or a Service, not to the pods of a namespace.
                continue
            selector = objects.as_mapping(spec.get("selector"))
            self._policies.add(policy.ref.namespace, selector, policy)

    def of(self, namespace: str, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        """Return the policies for pods with `labels`: of their namespace and of the root namespace."""
        applying = {
            policy.ref: policy
            for place in (namespace, self._root)
            for policy in self._policies.matching(place, labels)
        }
        return tuple(policy for _, policy in sorted(applying.items()))


def is_allowed(policies: Iterable[Manifest], request: WorkloadRequest) -> bool:
    """Return whether `request` may pass; it may when the objects do not tell."""
    by_action: dict[str, list[Manifest]] = {}
    for policy in policies:
        by_action.setdefault(str(objects.dig(policy.data, "spec", "action", default="ALLOW")), []).append(
            policy
        )
    if any(_matches(policy, request, certainly=True) for policy in by_action.get("DENY", ())):
        return False
    allowing = by_action.get("ALLOW", [])
    return not allowing or any(_matches(policy, request, certainly=False) for policy in allowing)


def allow_policies(policies: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """Return the ALLOW policies. With any of them, every request that none of them matches is refused."""
    return tuple(
        policy
        for policy in policies
        if objects.dig(policy.data, "spec", "action", default="ALLOW") == "ALLOW"
    )


def _matches(policy: Manifest, request: WorkloadRequest, certainly: bool) -> bool:
    """Return whether a rule of the policy matches.

    With `certainly`, a condition that objects do not tell counts as not met.
    """
    rules = objects.as_list(objects.dig(policy.data, "spec", "rules"))
    return any(_rule_matches(rule, request, certainly) for rule in rules)


def _rule_matches(rule: Any, request: WorkloadRequest, certainly: bool) -> bool:
    sources = [
        objects.as_mapping(objects.dig(source, "source"))
        for source in objects.as_list(objects.dig(rule, "from"))
    ]
    operations = [
        objects.as_mapping(objects.dig(to, "operation")) for to in objects.as_list(objects.dig(rule, "to"))
    ]
    if objects.as_list(objects.dig(rule, "when")) and certainly:
        return False
    from_matches = not sources or any(_source_matches(source, request, certainly) for source in sources)
    return from_matches and (
        not operations or any(_operation_matches(operation, request) for operation in operations)
    )


def _source_matches(source: Mapping[str, Any], request: WorkloadRequest, certainly: bool) -> bool:
    if certainly and any(source.get(field) for field in _UNKNOWN_SOURCES):
        return False
    accounts = request.principal.replace("/sa/", "/", 1).partition("/ns/")[2]
    return (
        _listed(source, "principals", request.principal)
        and _listed(source, "namespaces", request.namespace)
        and _listed(source, "serviceAccounts", accounts)
    )


def _operation_matches(operation: Mapping[str, Any], request: WorkloadRequest) -> bool:
    if operation.get("hosts") or operation.get("notHosts"):
        # The client chooses the Host header.
        return True
    return (
        _listed(operation, "ports", str(request.port))
        and _listed(operation, "methods", request.method)
        and _listed(operation, "paths", request.path)
    )


def _listed(fields: Mapping[str, Any], name: str, value: str) -> bool:
    """Return whether `value` is in the list `name` (if there is one) and not in its opposite."""
    wanted = [str(pattern) for pattern in objects.as_list(fields.get(name))]
    unwanted = [str(pattern) for pattern in objects.as_list(fields.get(f"not{name[0].upper()}{name[1:]}"))]
    if wanted and not any(_like(pattern, value) for pattern in wanted):
        return False
    return not any(_like(pattern, value) for pattern in unwanted)


def _like(pattern: str, value: str) -> bool:
    """Return whether a value matches Istio's pattern: exact, `*` (any), a prefix `a*` or a suffix `*a`."""
    if pattern == "*":
        return bool(value)
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return value.endswith(pattern[1:]) if pattern.startswith("*") else value == pattern
