"""The rights that a verb needs in a cluster, as objects to apply. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshscrape.cluster import lease as leases
from meshscrape.cluster.kinds import reading_rules
from meshscrape.istio.names import (
    ISTIO_NETWORKING,
    ISTIO_SECURITY,
    MONITORING_GROUP,
    NETWORKING_GROUP,
    RBAC_GROUP,
)
from meshscrape.kube.objects import Object
from meshscrape.observe.cluster import GATEWAY_GROUP

_API_VERSION = f"{RBAC_GROUP}/v1"
_PODS: list[dict[str, Any]] = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
_WRITE = ["create", "patch", "delete"]
# The objects that a plan writes. The API server lets users write a Role only if they have its rights, so
# `escalate` and `bind` are not requested.
_APPLY: list[dict[str, Any]] = [
    *reading_rules(),
    {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "create", "patch"]},
    {
        "apiGroups": [""],
        "resources": ["serviceaccounts", "services", "configmaps"],
        "verbs": ["get", *_WRITE],
    },
    {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]},
    {
        "apiGroups": ["apps"],
        "resources": ["deployments", "statefulsets", "daemonsets"],
        "verbs": ["get", *_WRITE],
    },
    {"apiGroups": ["batch"], "resources": ["cronjobs"], "verbs": ["get", *_WRITE]},
    {
        "apiGroups": [NETWORKING_GROUP, ISTIO_NETWORKING, ISTIO_SECURITY, GATEWAY_GROUP, MONITORING_GROUP],
        "resources": ["*"],
        "verbs": ["get", *_WRITE],
    },
    {
        "apiGroups": [RBAC_GROUP],
        "resources": ["roles", "rolebindings", "clusterroles", "clusterrolebindings"],
        "verbs": ["get", *_WRITE],
    },
    {"apiGroups": [leases.GROUP], "resources": ["leases"], "verbs": ["get", "create", "update"]},
]
# The Jobs of `verify --image`, and what belongs to them.
_JOBS: list[dict[str, Any]] = [
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "delete"]},
    {"apiGroups": [""], "resources": ["configmaps", "serviceaccounts"], "verbs": ["create", "delete"]},
    {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
]
# Verb -> its rules.
RULES = {
    "observe": reading_rules(),
    "plan": reading_rules(),
    "render": reading_rules(),
    "apply": _APPLY,
    "remove": _APPLY,
    "verify": [*reading_rules(), {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]}],
    "verify-image": _JOBS,
    "proxy": _PODS,
}


def rights(verb: str, *, account: str, namespaces: Sequence[str] = ()) -> list[Object]:
    """Return the role of a verb and its binding to a ServiceAccount, given as `NAMESPACE/NAME`.

    Without namespaces it is a ClusterRole; else a Role and a RoleBinding in each of them.
    """
    namespace, _, name = account.partition("/")
    subjects = [{"kind": "ServiceAccount", "namespace": namespace, "name": name}]
    title = f"meshscrape-{verb}"
    if not namespaces:
        return [
            _role("ClusterRole", {"name": title}, RULES[verb]),
            _binding("ClusterRole", {"name": title}, subjects),
        ]
    return [
        made
        for place in namespaces
        for made in (
            _role("Role", {"name": title, "namespace": place}, RULES[verb]),
            _binding("Role", {"name": title, "namespace": place}, subjects),
        )
    ]


def _role(kind: str, metadata: dict[str, str], rules: list[dict[str, Any]]) -> Object:
    return {"apiVersion": _API_VERSION, "kind": kind, "metadata": metadata, "rules": rules}


def _binding(kind: str, metadata: dict[str, str], subjects: list[dict[str, str]]) -> Object:
    return {
        "apiVersion": _API_VERSION,
        "kind": f"{kind}Binding",
        "metadata": metadata,
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": kind, "name": metadata["name"]},
        "subjects": subjects,
    }
