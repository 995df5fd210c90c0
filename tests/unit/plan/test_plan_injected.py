"""Bootstrap mode by an injection template of Istio's chart, for a namespace or for the mesh."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from meshscrape.kube.objects import Inventory, Manifest, Ref
from meshscrape.observe import observe
from meshscrape.observe.injection_template import InjectionTemplate, read_template
from meshscrape.plan.inverse.planner import InverseIntent, plan_inverse
from meshscrape.plan.model import Plan
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    peer_authentication,
    pod_of,
    proxy_config,
    service,
)
from support.planning import annotations, codes, harm, planned, settled
from support.scraping_objects import plain_prometheus

CHECKSUM = "meshscrape.io/bootstrap-checksum"
TEMPLATES = "inject.istio.io/templates"
EXCLUDE = "traffic.sidecar.istio.io/excludeInboundPorts"
SCOPED = {"mode": "bootstrap", "scope": "namespace"}


def mesh(*more: Any, version: str = "1.31.0") -> Inventory:
    """Two namespaces with two workloads each, their pods, and a Prometheus outside the mesh."""
    found = [*control_plane(version), *plain_prometheus()]
    for space in ("default", "shop"):
        found.append(injected_namespace(space))
        for name in ("one", "two"):
            workload = deployment(name, space)
            found += [workload, service(name, space), pod_of(workload, version)]
    return cluster([*found, *more])


def upgraded(inventory: Inventory, plan: Plan) -> Inventory:
    """The objects after the plan's ConfigMaps are applied, and Istio's chart with the plan's values."""
    (values,) = map(yaml.safe_load, plan.chart_values.values())
    after = plan.apply(inventory)
    ref = Ref("", "ConfigMap", "istio-system", "istio-sidecar-injector")
    injector = after.get(ref)
    assert injector is not None
    webhook = values["sidecarInjectorWebhook"]
    config = {"defaultTemplates": webhook["defaultTemplates"], "templates": webhook["templates"]}
    data = {**injector.data["data"], "config": yaml.safe_dump(config)}
    if "global" in values:
        told = json.loads(data["values"])
        told["global"].setdefault("proxy", {}).update(values["global"]["proxy"])
        data["values"] = json.dumps(told)
    return after.changed([Manifest(ref, {**injector.data, "data": data})], ())


def restarted(inventory: Inventory, space: str = "shop", name: str = "one") -> Inventory:
    """The objects with a pod that the template has reached."""
    owner = inventory.get(Ref("apps", "Deployment", space, name))
    assert owner is not None
    template = observe(inventory).control_planes[0].override_template
    assert template is not None
    written = {
        **owner.data["spec"]["template"]["metadata"].get("annotations", {}),
        CHECKSUM: template.checksums[space],
        "prometheus.istio.io/secure-port": str(template.merged_port),
    }
    pod = pod_of(owner.data, annotations=written)
    ref = Ref("", "Pod", space, pod["metadata"]["name"])
    return inventory.changed([Manifest(ref, pod)], ())


def changed_workloads(plan: Plan) -> set[str]:
    """The workloads of applications whose template the plan changes."""
    found = {change.ref for change in plan.changes if change.ref.kind == "Deployment"}
    return {f"{each.namespace}/{each.name}" for each in found if each.namespace != "monitoring"}


def test_the_first_plan_writes_config_maps_and_names_the_values() -> None:
    """Nothing moves before the injector has the template: Istio's chart is its owner."""
    plan = settled(mesh(), **SCOPED)
    assert {
        (c.phase, c.ref.kind, c.ref.namespace) for c in plan.changes if c.ref.namespace != "monitoring"
    } == {
        ("listeners", "ConfigMap", "default"),
        ("listeners", "ConfigMap", "shop"),
    }
    assert {each.name for each in plan.outcome.held} == {"one", "two"}
    assert "template-missing" in codes(plan)
    assert changed_workloads(plan) == set()
    values = yaml.safe_load(plan.chart_values["default"])
    assert values["sidecarInjectorWebhook"]["defaultTemplates"] == ["sidecar", "meshscrape"]
    template = read_template(values["sidecarInjectorWebhook"]["templates"]["meshscrape"])
    assert template is not None
    assert set(template.checksums) == {"default", "shop"}
    assert "optional: true" in template.text()


@pytest.mark.parametrize("scope", ["namespace", "mesh"])
def test_scrapes_move_once_the_injector_has_the_template(scope: str) -> None:
    """No pod template changes. Ports close when a running pod shows that the webhook uses the template."""
    before = mesh()
    first = settled(before, mode="bootstrap", scope=scope)
    after = upgraded(before, first)
    second = settled(after, mode="bootstrap", scope=scope)
    assert second.chart_values == {}
    assert changed_workloads(second) == set()
    assert "scrape" in {change.phase for change in second.changes}
    assert "hardening" not in {change.phase for change in second.changes}
    assert {"template-unproven", "pods-follow"} <= codes(second)
    third = settled(restarted(second.apply(after)), mode="bootstrap", scope=scope)
    assert "template-unproven" not in codes(third)
    closed = {c.ref.namespace for c in third.changes if c.ref.kind == "ProxyConfig"}
    assert closed == {"default", "shop"}


def test_the_values_of_the_mesh_exclude_the_port() -> None:
    """The chart's only place for excluded ports is for the whole mesh."""
    before = mesh(peer_authentication("STRICT", "istio-system"))
    plan = settled(before, mode="bootstrap", scope="mesh")
    values = yaml.safe_load(plan.chart_values["default"])
    assert values["global"]["proxy"]["excludeInboundPorts"] == "15092"
    assert changed_workloads(settled(upgraded(before, plan), mode="bootstrap", scope="mesh")) == set()


def test_a_namespace_under_strict_excludes_the_port_in_its_templates() -> None:
    """Istio has no place for excluded ports of a namespace."""
    before = mesh(peer_authentication("STRICT", "shop"))
    first = settled(before, **SCOPED, namespaces=("shop",))
    plan = settled(upgraded(before, first), **SCOPED, namespaces=("shop",))
    assert changed_workloads(plan) == {"shop/one", "shop/two"}
    assert annotations(plan, name="one") == {EXCLUDE: "15092"}


def test_another_namespace_joins_the_template() -> None:
    """The values keep the namespaces that the template has already."""
    before = mesh()
    first = settled(before, **SCOPED, namespaces=("shop",))
    second = settled(upgraded(before, first), **SCOPED, namespaces=("default",))
    template = read_template(
        yaml.safe_load(second.chart_values["default"])["sidecarInjectorWebhook"]["templates"]["meshscrape"]
    )
    assert template is not None
    assert set(template.checksums) == {"default", "shop"}


@pytest.mark.parametrize(
    ("other", "code"),
    [
        (deployment("other", "shop", port=15092), "port-taken"),
        (deployment("other", "shop", annotations=proxy_config({"DISABLE_ENVOY": "true"})), "no-envoy"),
    ],
)
def test_a_workload_that_the_template_harms_holds_back_its_namespace(other: Any, code: str) -> None:
    """The other namespace goes on."""
    plan = settled(mesh(other), **SCOPED)
    assert code in codes(plan)
    template = read_template(
        yaml.safe_load(plan.chart_values["default"])["sidecarInjectorWebhook"]["templates"]["meshscrape"]
    )
    assert template is not None
    assert set(template.checksums) == {"default"}


def test_pods_that_name_their_templates_get_the_annotation() -> None:
    """Default templates do not reach them."""
    own = deployment("own", "shop", annotations={TEMPLATES: "sidecar"})
    plan = settled(mesh(own, service("own", "shop")), **SCOPED)
    assert changed_workloads(plan) == {"shop/own"}
    assert annotations(plan, name="own")["sidecar.istio.io/bootstrapOverride"] == "meshscrape-bootstrap"


def test_an_older_control_plane_is_refused() -> None:
    """Its injector does not know a field that the template reads, and would refuse every pod."""
    plan = settled(mesh(version="1.29.0"), **SCOPED)
    assert "template-too-old" in codes(plan)
    assert plan.chart_values == {}


def test_an_upgrade_backwards_is_warned_about() -> None:
    """The template would make an older injector refuse every pod."""
    before = mesh()
    after = upgraded(before, settled(before, **SCOPED))
    plan = planned(after, **SCOPED, istio_version="1.29.0")
    assert "upgrade-unfit" in codes(plan)


def test_a_missing_config_map_is_an_error_of_its_own() -> None:
    """Pods start without it, but announce ports that nothing opens."""
    before = mesh()
    after = upgraded(before, settled(before, **SCOPED))
    gone = after.changed((), [Ref("", "ConfigMap", "shop", "meshscrape-bootstrap")])
    found = {(each.code, each.severity) for each in observe(gone).pitfalls}
    assert ("template-configmap-missing", "error") in found
    assert not [code for code, _ in found if code == "bootstrap-configmap-missing"]


def test_pods_without_the_template_are_listed_until_they_restart() -> None:
    """A pod that has it is current."""
    before = mesh()
    after = restarted(upgraded(before, settled(before, **SCOPED)))
    stale = {str(each.ref) for each in observe(after).pitfalls if each.code == "pods-stale"}
    assert stale == {"Deployment.apps default/one", "Deployment.apps default/two", "Deployment.apps shop/two"}


def test_a_template_that_somebody_changed_is_not_taken_for_ours() -> None:
    """It is named as an injection template of its own."""
    text = InjectionTemplate(15092, 0, {"shop": "0123456789abcdef"}).text()
    assert read_template(text) == InjectionTemplate(15092, 0, {"shop": "0123456789abcdef"})
    assert read_template(text.replace("optional: true", "optional: false")) is None


def test_istios_own_ports_leave_the_template_out() -> None:
    """Two listeners on one port: Envoy would not start. The template says so, and so does observe."""
    own = deployment("own", "shop", annotations=proxy_config({"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}))
    before = mesh(own, service("own", "shop"))
    after = upgraded(before, settled(before, **SCOPED))
    (seen,) = (each for each in observe(after).workloads if each.name == "own")
    assert seen.metrics.mode == "mixed" or seen.bootstrap_override == "meshscrape-bootstrap"
    assert harm(before, settled(before, **SCOPED), **SCOPED) == []


def test_remove_waits_for_the_chart_and_for_running_pods() -> None:
    """The ConfigMap stays as long as the template names its namespace or a pod runs with it."""
    before = mesh()
    after = restarted(upgraded(before, settled(before, **SCOPED)))
    back = plan_inverse(observe(after), after, InverseIntent())
    assert "template-stays" in codes(back)
    assert not [change for change in back.changes if change.ref.name == "meshscrape-bootstrap"]
    ref = Ref("", "ConfigMap", "istio-system", "istio-sidecar-injector")
    original = before.get(ref)
    assert original is not None
    chart = after.changed([original], ())
    again = plan_inverse(observe(chart), chart, InverseIntent())
    deleted = {c.ref.namespace for c in again.changes if c.ref.name == "meshscrape-bootstrap"}
    assert deleted == {"default"}
    assert "override-in-use" in codes(again)
