"""The rights of a scraper: its ServiceAccount, and roles with their bindings."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import DISCOVERY_GROUP, RBAC_GROUP
from meshscrape.prometheus.options import PrometheusOptions

Resources = tuple[tuple[str, tuple[str, ...]], ...]

# API group and resources: what discovery of role `pod` lists.
PODS: Resources = (("", ("pods",)),)
# ServiceMonitors find pods through Services and endpoints. The Operator may use either endpoints API.
SERVICES: Resources = (("", ("services", "endpoints")), (DISCOVERY_GROUP, ("endpointslices",)))


def access(options: PrometheusOptions, resources: Resources, own: bool = False) -> list[dict[str, Any]]:
    """Return ServiceAccount, a role to read `resources`, and its binding.

    They apply to the cluster, or to each namespace that `options` names. With `own`, they also apply to
    Prometheus's own namespace.
    """
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": options.metadata()}
    ]
    # ClusterRoles have no namespace, so their name must differ for two Prometheuses of the same name.
    cluster_name = f"{options.namespace}-{options.name}"
    if not options.namespaces:
        return objects + _granted(options, resources, "Cluster", cluster_name, "")
    wanted = {*options.namespaces, *(application.namespace for application in options.applications)}
    for namespace in sorted(wanted | ({options.namespace} if own else set())):
        objects += _granted(options, resources, "", cluster_name, namespace)
    return objects


def _granted(
    options: PrometheusOptions, resources: Resources, scope: str, name: str, namespace: str
) -> list[dict[str, Any]]:
    account = {"kind": "ServiceAccount", "name": options.service_account, "namespace": options.namespace}
    return [
        {
            "apiVersion": f"{RBAC_GROUP}/v1",
            "kind": f"{scope}Role",
            "metadata": options.metadata(name, namespace),
            "rules": [
                {"apiGroups": [group], "resources": list(names), "verbs": ["get", "list", "watch"]}
                for group, names in resources
            ],
        },
        {
            "apiVersion": f"{RBAC_GROUP}/v1",
            "kind": f"{scope}RoleBinding",
            "metadata": options.metadata(name, namespace),
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": f"{scope}Role", "name": name},
            "subjects": [account],
        },
    ]
