"""Pitfalls of the Prometheus Operator, and of permissions."""

from __future__ import annotations

from typing import Any

import pytest

from support.objects import Object, control_plane, deployment, namespace, observed, only, pitfalls
from support.scraping_objects import (
    SCRAPE_CLASS,
    operated_prometheus,
    operator,
    permissions,
    pod_monitor,
    prometheus,
    secure_job,
)

FILES = {"caFile": "/c/root-cert.pem", "certFile": "/c/cert-chain.pem", "keyFile": "/c/key.pem"}
PLANE = [*control_plane(), namespace("monitoring")]


def service_monitor(tls: dict[str, Any] | None = None, **spec: Any) -> Object:
    endpoint: Object = {"port": "http", "scheme": "https"}
    if tls is not None:
        endpoint["tlsConfig"] = tls
    return operator("ServiceMonitor", "app", {"selector": {}, "endpoints": [endpoint]} | spec)


def test_an_operator_done_right() -> None:
    """Scrape class, selectors, permissions: nothing to say."""
    assert (
        observed(PLANE, operated_prometheus(), pod_monitor(), permissions(namespace="monitoring")).pitfalls
        == ()
    )


def test_monitor_file_pruned() -> None:
    """PodMonitor, ScrapeConfig and Probe have no certificate files; a ServiceMonitor has."""
    code = "monitor-file-pruned"
    assert "caFile" in only(pitfalls(code, pod_monitor(tlsConfig=FILES))).text
    for kind in ("ScrapeConfig", "Probe"):
        assert only(pitfalls(code, operator(kind, "x", {"tlsConfig": FILES})))
    assert pitfalls(code, service_monitor(FILES)) == []
    assert pitfalls(code, pod_monitor(tlsConfig={"insecureSkipVerify": True})) == []


def test_monitor_files_denied() -> None:
    """arbitraryFSAccessThroughSMs.deny rejects files in ServiceMonitors; a class is not affected."""
    code = "monitor-files-denied"
    server = operated_prometheus(arbitraryFSAccessThroughSMs={"deny": True})
    assert only(pitfalls(code, PLANE, server, service_monitor(FILES))).severity == "error"
    assert pitfalls(code, PLANE, server, service_monitor(scrapeClass="istio-mtls")) == []
    assert pitfalls(code, PLANE, operated_prometheus(), service_monitor(FILES)) == []


def test_scrape_class_unknown() -> None:
    """A class that the Prometheus object does not have gets the monitor rejected."""
    code = "scrape-class-unknown"
    assert (
        "istio-mtls" in only(pitfalls(code, PLANE, operated_prometheus(scrapeClasses=[]), pod_monitor())).text
    )
    assert pitfalls(code, PLANE, operated_prometheus(), pod_monitor()) == []


def test_scrape_class_default() -> None:
    """A default class with files is everybody's."""
    server = operated_prometheus(scrapeClasses=[{**SCRAPE_CLASS, "default": True}])
    assert only(pitfalls("scrape-class-default", PLANE, server))
    assert pitfalls("scrape-class-default", PLANE, operated_prometheus()) == []


def test_scrape_class_verify_lost() -> None:
    """A field of its own in the monitor's tlsConfig loses the class's insecureSkipVerify."""
    code = "scrape-class-verify-lost"
    assert only(pitfalls(code, PLANE, operated_prometheus(), pod_monitor(tlsConfig={"serverName": "x"})))
    for fine in ({}, {"insecureSkipVerify": True}):
        assert pitfalls(code, PLANE, operated_prometheus(), pod_monitor(tlsConfig=fine)) == []


@pytest.mark.parametrize("word", ["podMonitor", "serviceMonitor", "scrapeConfig"])
def test_selector_null(word: str) -> None:
    """A selector that is not set matches nothing; it only matters where such monitors are."""
    monitor = {
        "podMonitor": pod_monitor(), "serviceMonitor": service_monitor(),
        "scrapeConfig": operator("ScrapeConfig", "x", {}),
    }[word]  # fmt: skip
    server = operated_prometheus(**{f"{word}Selector": None})
    assert word in only(pitfalls("selector-null", PLANE, server, monitor)).text
    assert pitfalls("selector-null", PLANE, server) == []
    assert pitfalls("selector-null", PLANE, operated_prometheus(), monitor) == []


def test_monitor_not_selected() -> None:
    """A monitor in a namespace, or with labels, that no Prometheus object takes does nothing."""
    code = "monitor-not-selected"
    chart = operated_prometheus(podMonitorSelector={"matchLabels": {"release": "stack"}})
    assert "podMonitorSelector" in only(pitfalls(code, PLANE, chart, pod_monitor())).remedy
    assert pitfalls(code, PLANE, operated_prometheus(), pod_monitor()) == []
    assert pitfalls(code, pod_monitor()) == []


@pytest.mark.parametrize("endpoint", [{"portNumber": 15091}, {"targetPort": 15092}, {"port": "15092"}])
def test_monitor_port_undeclared(endpoint: dict[str, Any]) -> None:
    """The secure ports are no declared container ports: a monitor that selects them has no targets."""
    assert "http-envoy-prom" in only(pitfalls("monitor-port-undeclared", pod_monitor(**endpoint))).remedy
    assert pitfalls("monitor-port-undeclared", pod_monitor()) == []


# Permissions


def mesh_prometheus(*rbac: Object, **job: Any) -> list[Object]:
    return [*PLANE, *prometheus(secure_job(**job), rbac=False), *rbac]


def test_cluster_role_unbound() -> None:
    """A ClusterRole that nothing binds allows nothing: there are no targets."""
    role, binding = permissions()
    assert "ClusterRoleBinding" in only(pitfalls("cluster-role-unbound", mesh_prometheus(role))).remedy
    assert pitfalls("cluster-role-unbound", mesh_prometheus(role, binding)) == []
    other = permissions(namespace="elsewhere")[1]
    assert only(pitfalls("cluster-role-unbound", mesh_prometheus(role, other)))


def test_without_rbac_in_the_dump_nothing_is_reported() -> None:
    """What is not in the objects is not claimed to be missing."""
    assert pitfalls("cluster-role-unbound", mesh_prometheus()) == []


def test_the_operators_prometheus_needs_permissions_too() -> None:
    """The account of the Prometheus object is what must be bound."""
    role = permissions()[0]
    parts = [*PLANE, operated_prometheus(), pod_monitor(), role]
    assert only(pitfalls("cluster-role-unbound", parts)).ref.kind == "Prometheus"  # type: ignore[union-attr]


def test_bound_by_a_group() -> None:
    """All accounts of a namespace can be bound at once."""
    role, binding = permissions()
    binding["subjects"] = [{"kind": "Group", "name": "system:serviceaccounts:istio-system"}]
    assert pitfalls("cluster-role-unbound", mesh_prometheus(role, binding)) == []


def test_endpointslices_forbidden() -> None:
    """Discovery by EndpointSlice needs that resource of its own API group."""
    code, role = "endpointslices-forbidden", [{"role": "endpointslice"}]
    assert (
        "discovery.k8s.io"
        in only(pitfalls(code, mesh_prometheus(*permissions(), kubernetes_sd_configs=role))).remedy
    )
    allowed = permissions()
    rule = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["*"]}
    allowed[0]["rules"].append(rule)
    assert pitfalls(code, mesh_prometheus(*allowed, kubernetes_sd_configs=role)) == []
    assert pitfalls(code, mesh_prometheus(*permissions())) == []


def test_endpointslices_of_the_operator() -> None:
    """serviceDiscoveryRole: EndpointSlice needs the resource for ServiceMonitors as well."""
    spec = {"selector": {}, "namespaceSelector": {"any": True}, "endpoints": [{"port": "http"}]}
    parts = [
        *PLANE,
        operated_prometheus(serviceDiscoveryRole="EndpointSlice"),
        operator("ServiceMonitor", "web", spec),
        *permissions(namespace="monitoring"),
    ]
    assert only(pitfalls("endpointslices-forbidden", parts))


def test_discovery_forbidden() -> None:
    """A role without pods discovers none."""
    parts = mesh_prometheus(*permissions(resources=["services"]))
    assert "pods" in only(pitfalls("discovery-forbidden", parts)).text
    assert pitfalls("discovery-forbidden", mesh_prometheus(*permissions())) == []


# Rights in single namespaces


def namespaced(*spaces: str, account: str = "prometheus") -> list[Object]:
    """Roles and RoleBindings that give the right to discover pods in some namespaces; none in the cluster."""
    role, binding = permissions(resources=["nodes"])
    found = [role, binding]
    for space in spaces:
        own, bound = permissions(account)
        own |= {"kind": "Role", "metadata": {"name": account, "namespace": space}}
        bound |= {"kind": "RoleBinding", "metadata": {"name": account, "namespace": space}}
        bound["roleRef"]["kind"] = "Role"
        found += [own, bound]
    return found


def test_a_role_in_one_namespace_does_not_discover_all() -> None:
    """A job of all namespaces lists pods of the whole cluster, which a Role does not allow."""
    everywhere = mesh_prometheus(*namespaced("istio-system"))
    assert "in all namespaces" in only(pitfalls("discovery-forbidden", everywhere)).text


@pytest.mark.parametrize(
    ("granted", "missing"), [(("shop",), ""), (("shop", "other"), ""), (("other",), "shop")]
)
def test_a_job_of_one_namespace_needs_the_right_there(granted: tuple[str, ...], missing: str) -> None:
    """Discovery in listed namespaces needs the right in each of them."""
    discovery = [{"role": "pod", "namespaces": {"names": ["shop"]}}]
    found = pitfalls(
        "discovery-forbidden", mesh_prometheus(*namespaced(*granted), kubernetes_sd_configs=discovery)
    )
    assert [f"in {missing}" in each.text for each in found] == ([True] if missing else [])


def test_absent_role_bindings_are_not_missing() -> None:
    """A dump without RoleBindings does not tell whether a namespace's right is there."""
    discovery = [{"role": "pod", "namespaces": {"names": ["shop"]}}]
    parts = mesh_prometheus(*permissions(resources=["nodes"]), kubernetes_sd_configs=discovery)
    assert pitfalls("discovery-forbidden", parts) == []


# The Operator's version


def operator_of(tag: str) -> Object:
    found = deployment("prometheus-operator", "monitoring")
    container = found["spec"]["template"]["spec"]["containers"][0]
    container["image"] = f"quay.io/prometheus-operator/prometheus-operator:{tag}"
    return found


@pytest.mark.parametrize(
    ("tag", "supported"), [("v0.63.0", False), ("v0.74.0", True), ("v0.85.0", True), ("main", True)]
)
def test_scrape_class_unsupported(tag: str, supported: bool) -> None:
    """An Operator before 0.74 drops the class; an unknown version is not judged."""
    parts = [*PLANE, operated_prometheus(), pod_monitor(), operator_of(tag)]
    found = pitfalls("scrape-class-unsupported", parts)
    assert {each.ref and each.ref.kind for each in found} == (
        set() if supported else {"Prometheus", "PodMonitor"}
    )
    assert observed(parts).operator_version == (
        None if tag == "main" else tuple(map(int, tag[1:].split(".")))
    )


def test_two_mounts_at_one_path_of_a_prometheus_object() -> None:
    """The Operator's pods are judged by the object that they are made of."""
    double = operated_prometheus()
    double["spec"]["volumeMounts"].append({"name": "other", "mountPath": "/etc/prom-certs"})
    assert only(pitfalls("volume-mounted-twice", [*PLANE, double])).ref.kind == "Prometheus"  # type: ignore[union-attr]
    assert pitfalls("volume-mounted-twice", [*PLANE, operated_prometheus()]) == []
