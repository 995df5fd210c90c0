"""Plans that put settings at Istio's places for defaults, for a namespace or for the mesh."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from meshscrape.plan.model import Plan
from support.objects import (
    SECURE,
    cluster,
    config_map,
    control_plane,
    deployment,
    injected_namespace,
    istio,
    observed,
    own_proxy,
    peer_authentication,
    pod_of,
    proxy_config,
    rendered_gateway,
    service,
)
from support.planning import annotations, changed, codes, planned, ref, refs, settled
from support.scraping_objects import envoy_stats, plain_prometheus

PORT = "ENVOY_SECURE_MERGED_METRICS_PORT"
CLOSED = "METRICS_LOCALHOST_ACCESS_ONLY"
EXCLUDE = "traffic.sidecar.istio.io/excludeInboundPorts"


def mesh(*more: Any, version: str = "1.31.0") -> list[Any]:
    """Two namespaces with two workloads each, and a Prometheus outside the mesh."""
    found = [*control_plane(version), *plain_prometheus()]
    for space in ("default", "shop"):
        found.append(injected_namespace(space))
        for name in ("one", "two"):
            found += [deployment(name, space), service(name, space)]
    return [*found, *more]


def variables(plan: Plan, namespace: str) -> Any:
    """The variables of the planned ProxyConfig of a namespace."""
    (found,) = {
        str(c.ref): c.after
        for c in plan.changes
        if c.ref.kind == "ProxyConfig" and c.ref.namespace == namespace
    }.values()
    return found["spec"]["environmentVariables"] if found else None


def changed_workloads(plan: Plan) -> set[str]:
    """The workloads of applications whose template the plan changes."""
    found = {change.ref for change in plan.changes if change.ref.kind in ("Deployment", "StatefulSet")}
    return {f"{each.namespace}/{each.name}" for each in found if each.namespace != "monitoring"}


def test_the_mesh_gets_its_ports_from_one_object() -> None:
    """No template of another team changes; ports open and close by the defaults of the mesh."""
    plan = settled(cluster(mesh()), scope="mesh")
    assert changed_workloads(plan) == set()
    assert variables(plan, "istio-system") == {PORT: "15092", CLOSED: "true"}
    assert len(plan.outcome.secured) == 4
    restarted = {text for change in plan.changes for text in change.restarts}
    assert restarted == {"Deployment monitoring/prometheus"}


def test_a_namespace_gets_its_ports_from_one_object() -> None:
    """The other namespace and the root namespace stay as they are."""
    plan = settled(cluster(mesh()), scope="namespace", namespaces=("shop",))
    assert changed_workloads(plan) == set()
    assert {c.ref.namespace for c in plan.changes} == {"shop", "monitoring"}
    assert variables(plan, "shop") == {PORT: "15092", CLOSED: "true"}
    assert len(plan.outcome.secured) == 2


def test_the_chart_value_excludes_the_port_for_the_mesh() -> None:
    """Under STRICT too, and the chart's owner is told what to set."""
    plan = settled(cluster(mesh(peer_authentication("STRICT", "istio-system"))), scope="mesh")
    values = json.loads(changed(plan, "ConfigMap", "istio-sidecar-injector")["data"]["values"])
    assert values["global"]["proxy"]["excludeInboundPorts"] == "15092"
    assert values["global"]["tag"] == "1.31.0"
    assert "chart-takes-back" in codes(plan)
    assert changed_workloads(plan) == set()


def test_an_own_list_of_excluded_ports_gets_the_port_under_strict() -> None:
    """A pod's annotation replaces the chart's value, so it is the one template that changes."""
    own = deployment("three", "shop", annotations={EXCLUDE: "9999"})
    plan = settled(cluster(mesh(own, peer_authentication("STRICT", "istio-system"))), scope="mesh")
    assert changed_workloads(plan) == {"shop/three"}
    assert annotations(plan, name="three") == {EXCLUDE: "9999,15092"}


def test_under_strict_a_namespace_excludes_ports_in_its_templates() -> None:
    """Istio has no place for excluded ports of a namespace."""
    strict = peer_authentication("STRICT", "shop")
    plan = settled(cluster(mesh(strict)), scope="namespace", namespaces=("shop",))
    assert changed_workloads(plan) == {"shop/one", "shop/two"}
    assert annotations(plan, name="one") == {EXCLUDE: "15092"}


def test_without_the_injectors_values_ports_are_excluded_in_the_templates() -> None:
    """The plan says which value of the chart would do it."""
    objects = [each for each in mesh() if each["metadata"]["name"] != "istio-sidecar-injector"]
    plan = settled(
        cluster(objects, peer_authentication("STRICT", "istio-system")), scope="mesh", istio_version="1.31.0"
    )
    assert "injector-values-unknown" in codes(plan)
    assert changed_workloads(plan) == {"default/one", "default/two", "shop/one", "shop/two"}


def test_the_oldest_proxy_config_of_the_place_is_changed() -> None:
    """Istio reads only that one; its other variables stay."""
    own = istio("networking", "ProxyConfig", "ours", "istio-system", {"environmentVariables": {"A": "b"}})
    plan = settled(cluster(mesh(own)), scope="mesh")
    assert changed(plan, "ProxyConfig")["metadata"]["name"] == "ours"
    assert variables(plan, "istio-system") == {"A": "b", PORT: "15092", CLOSED: "true"}


def test_a_default_of_the_mesh_configuration_is_enough() -> None:
    """What meshConfig.defaultConfig says already needs no object."""
    plane = control_plane(mesh={"defaultConfig": {"proxyMetadata": SECURE}})
    objects = [*plane, injected_namespace(), deployment(), service(), *plain_prometheus()]
    plan = settled(cluster(objects), scope="mesh", harden=False)
    assert "ProxyConfig" not in {change.ref.kind for change in plan.changes}


@pytest.mark.parametrize(
    ("other", "code"),
    [
        (deployment("other", "shop", port=15092), "port-taken"),
        (deployment("other", "shop", annotations={"inject.istio.io/templates": "grpc-agent"}), "no-envoy"),
    ],
)
def test_one_workload_that_a_default_harms_holds_back_its_scope(other: Any, code: str) -> None:
    """The other namespace goes on when the scope is the namespace; with the mesh as scope, nothing does."""
    plan = settled(cluster(mesh(other)), scope="namespace")
    assert {c.ref.namespace for c in plan.changes if c.ref.kind == "ProxyConfig"} == {"default"}
    assert code in codes(plan)
    assert {each.namespace for each in plan.outcome.held} == {"shop"}
    whole = settled(cluster(mesh(other)), scope="mesh")
    assert "ProxyConfig" not in {change.ref.kind for change in whole.changes}
    assert code in codes(whole)


def test_a_default_does_not_reach_a_sidecar_that_was_injected_by_hand() -> None:
    """Its settings were written when `istioctl kube-inject` ran, so nothing can harm it."""
    other = deployment("other", "shop", port=15092)
    sidecar = {"name": "istio-proxy", "image": "istio/proxyv2:1.31.0", "args": ["proxy", "sidecar"]}
    other["spec"]["template"]["spec"]["containers"].append(sidecar)
    plan = settled(cluster(mesh(other)), scope="namespace")
    assert {c.ref.namespace for c in plan.changes if c.ref.kind == "ProxyConfig"} == {"default", "shop"}
    assert "manually-injected" in codes(plan)


def test_a_workload_that_opts_out_lets_the_others_go_on() -> None:
    """Its own annotation beats every default."""
    other = deployment("other", "shop", port=15092, annotations=proxy_config({PORT: "0"}))
    plan = settled(cluster(mesh(other)), scope="mesh", harden=False)
    assert len(plan.outcome.secured) == 4
    assert [each.name for each in plan.outcome.left] == ["other"]


def test_a_port_that_must_stay_open_keeps_the_default_open() -> None:
    """A job that no plan moves reads one workload: no default closes the ports of the mesh."""
    job = envoy_stats()
    job["kubernetes_sd_configs"][0]["namespaces"] = {"names": ["shop"]}
    stray = config_map(
        "stray", {"prometheus.yml": yaml.safe_dump({"scrape_configs": [job]})}, None, "monitoring"
    )
    plan = settled(cluster(mesh(stray)), scope="mesh")
    assert variables(plan, "istio-system") == {PORT: "15092"}
    assert {"plaintext-reader", "scope-waits"} <= codes(plan)
    alone = settled(cluster(mesh(stray)), scope="namespace")
    assert variables(alone, "default") == {PORT: "15092", CLOSED: "true"}
    assert variables(alone, "shop") == {PORT: "15092"}


def test_gateways_of_the_root_namespace_keep_their_own_settings() -> None:
    """A ProxyConfig there would be the mesh's."""
    gateway = own_proxy("gw", namespace="istio-system", labels={"sidecar.istio.io/inject": "true"},
                        annotations={"inject.istio.io/templates": "gateway"})  # fmt: skip
    plan = settled(cluster(mesh(gateway)), scope="namespace")
    assert changed_workloads(plan) == {"istio-system/gw"}
    assert {c.ref.namespace for c in plan.changes if c.ref.kind == "ProxyConfig"} == {"default", "shop"}


def test_an_injected_gateway_gets_the_default_of_its_namespace() -> None:
    """The injector fills in its proxy, so a ProxyConfig reaches it."""
    gateway = own_proxy("gw", namespace="shop", labels={"sidecar.istio.io/inject": "true"},
                        annotations={"inject.istio.io/templates": "gateway"})  # fmt: skip
    plan = settled(cluster(mesh(gateway)), scope="namespace")
    assert changed_workloads(plan) == set()
    assert "gw" in {each.name for each in plan.outcome.secured}


def test_workloads_that_join_the_mesh_get_the_default() -> None:
    """They need a label, and no other change."""
    plain = [*control_plane(), *plain_prometheus(), deployment(), service()]
    plan = settled(cluster(plain), scope="namespace", inject=True, namespaces=("default",))
    (change,) = (c for c in plan.changes if c.ref == ref("Deployment", "httpbin"))
    assert change.phase == "injection"
    assert variables(plan, "default") == {PORT: "15092", CLOSED: "true"}


def test_an_override_keeps_its_ports_under_a_default_of_the_mesh() -> None:
    """Two listeners on one port: Istio's own one is turned off on that workload."""
    objects = mesh()
    before = cluster(objects)
    first = planned(before, mode="bootstrap", namespaces=("shop",), harden=False)
    plan = settled(first.apply(before), scope="mesh", harden=False)
    off = annotations(plan, name="one")["proxy.istio.io/config"]
    assert f'{PORT}: "0"' in off
    assert changed_workloads(plan) == {"shop/one", "shop/two"}


def test_plan_and_observe_list_pods_without_the_default() -> None:
    """A default restarts nothing: the pods that run are named until they are recreated."""
    objects = mesh()
    one = next(each for each in objects if each["kind"] == "Deployment" and each["metadata"]["name"] == "one")
    pod = pod_of(one)
    before = cluster([*objects, pod])
    plan = settled(before, scope="mesh", harden=False)
    assert [note.ref.name for note in plan.notes if note.code == "pods-follow" and note.ref] == ["one"]
    after = plan.apply(before)
    again = planned(after, scope="mesh", harden=False)
    assert "pods-follow" in codes(again)
    assert again.changes == ()
    found = observed([each.data for each in after])
    assert [
        pitfall.ref.name for pitfall in found.pitfalls if pitfall.code == "pods-stale" and pitfall.ref
    ] == ["one"]
    assert ("listeners", "create", "ProxyConfig/meshscrape-defaults") in refs(plan)


def test_a_gateway_by_the_gateway_api_gets_its_settings_from_its_overlay() -> None:
    """istiod does not make its Deployment anew when a ProxyConfig changes."""
    gateway, made = rendered_gateway("shop")
    plan = settled(cluster(mesh(gateway, made)), scope="mesh")
    overlay = changed(plan, "ConfigMap", f"meshscrape-{gateway['metadata']['name']}")["data"]["deployment"]
    (proxy,) = yaml.safe_load(overlay)["spec"]["template"]["spec"]["containers"]
    assert {each["name"]: each["value"] for each in proxy["env"]} == {PORT: "15092", CLOSED: "true"}


def test_the_plan_says_that_the_webhook_follows_later() -> None:
    """The kubelet writes the injector's changed ConfigMap into istiod's pod after a while."""
    strict = peer_authentication("STRICT", "istio-system")
    assert "injector-follows" in codes(planned(cluster(mesh(strict)), scope="mesh"))
