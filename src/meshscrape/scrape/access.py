"""The rights of a scraper: its ServiceAccount, and roles with the bindings that make them count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshscrape.scrape.prometheus_options import PrometheusOptions

_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]
# What discovery of role `pod` lists.
PODS: list[dict[str, Any]] = [{"apiGroups": [""], "resources": ["pods"], "verbs": _READ}]
# ServiceMonitors find pods through Services and their endpoints, of whichever API the Operator uses.
SERVICES: list[dict[str, Any]] = [
    {"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": _READ},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": _READ},
]


def access(options: PrometheusOptions, rules: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """ServiceAccount, role and binding: of the cluster, or of each namespace when `options` names some.

    A role without a binding gives no right, and Prometheus then finds no target and logs why.
    """
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": options.metadata()}
    ]
    # Roles of the cluster have no namespace: two Prometheuses of one name must not share them.
    cluster_name = f"{options.namespace}-{options.name}"
    if not options.namespaces:
        return objects + _granted(options, rules, "Cluster", cluster_name, "")
    for namespace in sorted({*options.namespaces, *(each.namespace for each in options.applications)}):
        objects += _granted(options, rules, "", cluster_name, namespace)
    return objects


def _granted(
    options: PrometheusOptions, rules: Sequence[dict[str, Any]], scope: str, name: str, namespace: str
) -> list[dict[str, Any]]:
    account = {"kind": "ServiceAccount", "name": options.service_account, "namespace": options.namespace}
    return [
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": f"{scope}Role",
            "metadata": options.metadata(name, namespace),
            "rules": [dict(rule) for rule in rules],
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": f"{scope}RoleBinding",
            "metadata": options.metadata(name, namespace),
            "roleRef": {"apiGroup": _RBAC, "kind": f"{scope}Role", "name": name},
            "subjects": [account],
        },
    ]
