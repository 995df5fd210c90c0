"""The closed schemas that other tests rely on: they refuse what an API server would drop or reject."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import yaml

from support.schemas import assert_valid, crds, known, problems
from support.upstream import SAMPLES, needs_upstream

POD_MONITOR = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "PodMonitor",
    "metadata": {"name": "a", "namespace": "b"},
    "spec": {"selector": {}, "podMetricsEndpoints": [{"port": "web", "tlsConfig": {"serverName": "a"}}]},
}
SIDECAR = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "Sidecar",
    "metadata": {"name": "a", "namespace": "b"},
    "spec": {"ingress": [{"port": {"number": 1, "name": "a", "protocol": "HTTP"}, "defaultEndpoint": "a"}]},
}
ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "a"},
    "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
}

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "a"},
    "spec": {"selector": {"app": "a"}, "ports": [{"name": "a", "port": 1, "protocol": "TCP"}]},
}
PROMETHEUS = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "Prometheus",
    "metadata": {"name": "a"},
    "spec": {"scrapeClasses": [{"name": "a"}]},
}


def changed(obj: dict[str, Any], *path: str | int, value: Any) -> dict[str, Any]:
    """A copy with `value` at a path."""
    result = deepcopy(obj)
    place: Any = result
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return result


@needs_upstream
def test_valid_object_passes() -> None:
    """A custom resource of the Operator, one of Istio, one of Kubernetes."""
    assert_valid(POD_MONITOR, SIDECAR, ROLE, SERVICE, PROMETHEUS)


@needs_upstream
@pytest.mark.parametrize(
    "wrong",
    [
        changed(POD_MONITOR, "spec", "podMetricsEndpoints", 0, "tlsConfig", "caFile", value="/ca"),
        changed(POD_MONITOR, "spec", "podMetricsEndpoints", 0, "scheme", value="ftp"),
        changed(POD_MONITOR, "metadata", "lables", value={}),
        changed(POD_MONITOR, "metadata", "labels", value={"a": 1}),
        changed(POD_MONITOR, "spec", "selector", value=None),
        changed(SIDECAR, "spec", "ingres", value=[]),
        changed(SIDECAR, "spec", "ingress", 0, "port", "number", value="15091"),
        changed(SIDECAR, "status", value={"unknown": 1}) | {"extra": 1},
        changed(SIDECAR, "spec", "ingress", 0, "port", value={"number": 1, "name": "a"})
        | {"kind": "Gateway"},
        changed(ROLE, "rules", 0, "verb", value=["get"]),
        changed(SERVICE, "spec", "ports", value=[{"name": "a", "port": 1}, {"name": "b", "port": 1}]),
        changed(PROMETHEUS, "spec", "scrapeClasses", value=[{"name": "a"}, {"name": "a"}]),
        changed(ROLE, "rules", 0, "verbs", value="get"),
        {key: value for key, value in SIDECAR.items() if key != "metadata"},
    ],
)
def test_invalid_object_is_reported(wrong: dict[str, Any]) -> None:
    """Unknown fields, wrong types, values outside an enumeration, nulls, doubles, missing metadata."""
    assert problems(wrong)


@needs_upstream
def test_an_unserved_version_and_an_unknown_kind_are_errors_of_the_test() -> None:
    """Not taken for valid."""
    with pytest.raises(LookupError):
        problems({**SIDECAR, "apiVersion": "networking.istio.io/v9"})
    assert not known({"apiVersion": "istio.alibabacloud.com/v1", "kind": "IstioGateway"})


@needs_upstream
def test_every_kind_that_is_rendered_has_a_schema() -> None:
    """Istio's, the Gateway API's and the Operator's."""
    kinds = {kind for _, kind in crds()}
    wanted = "Sidecar PeerAuthentication AuthorizationPolicy VirtualService ServiceEntry ProxyConfig Gateway"
    wanted += " Prometheus PodMonitor ServiceMonitor PrometheusRule ScrapeConfig"
    assert kinds >= set(wanted.split())
    assert {group for group, kind in crds() if kind == "Gateway"} == {
        "networking.istio.io", "gateway.networking.k8s.io",
    }  # fmt: skip


@needs_upstream
def test_upstreams_own_manifests_pass() -> None:
    """The schemas are not stricter than reality."""
    for path in (SAMPLES / "bookinfo.yaml", SAMPLES / "httpbin-gateway.yaml", SAMPLES / "httpbin.yaml"):
        documents = [each for each in yaml.safe_load_all(path.read_text()) if each]
        assert documents
        assert_valid(*documents)
