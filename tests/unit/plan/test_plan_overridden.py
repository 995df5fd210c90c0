"""Settings that win over a pod's annotation: ProxyConfig objects, and the user's own proxy container."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.istio.allow_list import parse_scrapers
from support.objects import cluster, control_plane, deployment, injected_namespace, meta, namespace, own_proxy
from support.planning import codes, settled, template
from support.planning import proxy_config as planned_config

MERGED = "ENVOY_SECURE_MERGED_METRICS_PORT"
LOCAL = "METRICS_LOCALHOST_ACCESS_ONLY"
NAMED: dict[str, Any] = {
    "prometheus": "none",
    "scrapers": parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus"),
}


def proxy_config(app: str = "httpbin", **variables: str) -> dict[str, Any]:
    """A ProxyConfig object for one workload."""
    return {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "ProxyConfig",
        "metadata": meta("tuned"),
        "spec": {"selector": {"matchLabels": {"app": app}}, "environmentVariables": variables},
    }


@pytest.mark.parametrize("mode", ["bootstrap", "legacy"])
@pytest.mark.parametrize("port", ["15092", "15093"])
def test_native_listeners_that_cannot_be_turned_off_are_refused(mode: Any, port: str) -> None:
    """On the same port Envoy would not start; on another one everybody in the mesh could read."""
    objects = cluster(control_plane(), injected_namespace(), deployment(), proxy_config(**{MERGED: port}))
    plan = settled(objects, mode=mode, **NAMED)
    assert plan.changes == ()
    assert "proxy-config-wins" in codes(plan)


def test_another_port_than_the_announced_one_is_refused() -> None:
    """The annotation would change nothing but what is announced."""
    objects = cluster(control_plane(), injected_namespace(), deployment(), proxy_config(**{MERGED: "15093"}))
    assert settled(objects, **NAMED).changes == ()
    assert settled(objects, merged_port=15093, **NAMED).changes != ()


def test_matching_or_unrelated_settings_are_ignored() -> None:
    """The wanted port already, or another workload's object."""
    for config in (proxy_config(**{MERGED: "15092"}), proxy_config("other", **{MERGED: "15093"})):
        plan = settled(cluster(control_plane(), injected_namespace(), deployment(), config), **NAMED)
        assert "proxy-config-wins" not in codes(plan)
        assert plan.changes != ()


def test_hardening_of_only_one_port_is_refused() -> None:
    """15090 goes by the annotation, 15020 by the environment: the other one would stay open."""
    objects = cluster(control_plane(), injected_namespace(), deployment(), proxy_config(**{LOCAL: "false"}))
    plan = settled(objects, **NAMED)
    assert {change.phase for change in plan.changes} == {"listeners"}
    assert "proxy-config-wins" in codes(plan)


def test_a_users_own_container_is_turned_off_too() -> None:
    """Its variables win over the annotation as well."""
    app = own_proxy("httpbin")
    (proxy,) = app["spec"]["template"]["spec"]["containers"]
    proxy |= {"env": [{"name": MERGED, "value": "15092"}], "args": ["proxy", "sidecar"]}
    plan = settled(cluster(control_plane(), injected_namespace(), app), mode="bootstrap", **NAMED)
    (proxy,) = template(plan)["spec"]["containers"]
    assert {"name": MERGED, "value": "0"} in proxy["env"]


def test_legacy_without_interception_is_refused() -> None:
    """Legacy mode is the sidecar's interception: with NONE, no connection reaches the Sidecar's listener."""
    app = deployment(annotations={"sidecar.istio.io/interceptionMode": "NONE"})
    plan = settled(cluster(control_plane("1.29.0"), injected_namespace(), app), **NAMED)
    assert plan.changes == ()
    assert "legacy-not-intercepted" in codes(plan)


@pytest.mark.parametrize("mode", ["bootstrap", "legacy"])
@pytest.mark.parametrize("where", ["annotation", "mesh", "namespace"])
def test_workload_that_joins_the_mesh_gets_no_native_listeners_by_default(mode: Any, where: str) -> None:
    """They come with the sidecar: from the first pod on, Envoy would have two listeners on a port."""
    text = f"proxyMetadata: {{{MERGED}: '15092'}}"
    wide = proxy_config(**{MERGED: "15092"})
    del wide["spec"]["selector"]
    objects = cluster(
        control_plane(mesh=f"defaultConfig: {{{text}}}" if where == "mesh" else ""),
        namespace(labels={"team": "default"}),
        deployment(annotations={"proxy.istio.io/config": text} if where == "annotation" else {}),
        [wide] if where == "namespace" else [],
    )
    plan = settled(objects, mode=mode, inject=True, **NAMED)
    assert planned_config(plan)["proxyMetadata"][MERGED] == "0"
