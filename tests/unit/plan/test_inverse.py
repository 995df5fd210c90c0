"""The plan that takes meshscrape's changes back, from today's objects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshscrape.istio.names import OVERWRITTEN
from meshscrape.kube.manifests import load_manifests
from meshscrape.kube.objects import Inventory, Manifest, Ref, annotations, load_inventory, stable
from meshscrape.observe import observe
from meshscrape.plan.edited_objects import clone
from meshscrape.plan.inverse.evidence import Evidence
from meshscrape.plan.inverse.planner import InverseIntent, plan_inverse
from meshscrape.plan.inverse.record import with_record
from meshscrape.plan.model import INVERSE_PHASES, Plan
from support.defaulting import defaulted
from support.objects import cluster, control_plane, deployment, injected_namespace, own_proxy
from support.planning import codes, planned, ref, refs
from support.scraping_objects import plain_prometheus

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
MODES = ("native", "bootstrap", "legacy")
WEB = ref("Deployment", "web")


def shop(*more: Any) -> Inventory:
    """A mesh with one workload and an add-on Prometheus that reads it in plaintext."""
    return cluster(control_plane(), injected_namespace(), deployment("web"), plain_prometheus(), *more)


def taken(inventory: Inventory, **intent: Any) -> Plan:
    """Observe and plan the way back."""
    return plan_inverse(observe(inventory), inventory, InverseIntent(**intent))


def recorded(inventory: Inventory) -> Evidence:
    """Every object of an inventory as a recorded original."""
    return Evidence({each.ref: each.data for each in inventory})


def differences(one: Inventory, other: Inventory) -> list[str]:
    """The objects that differ, apart from empty annotations, which an API server drops."""
    first, second = ({each.ref: bare(stable(each.data)) for each in found} for found in (one, other))
    return [str(each) for each in sorted(first.keys() | second.keys()) if first.get(each) != second.get(each)]


def bare(value: Any) -> Any:
    """A value without empty annotations."""
    if isinstance(value, dict):
        return {key: bare(each) for key, each in value.items() if (key, each) != ("annotations", {})}
    return [bare(each) for each in value] if isinstance(value, list) else value


def edited(inventory: Inventory, target: Ref, change: Any) -> Inventory:
    """The inventory after somebody changed an object."""
    manifest = inventory.get(target)
    assert manifest is not None
    data = clone(manifest.data)
    change(data)
    return inventory.replace(Manifest(target, data))


@pytest.mark.parametrize("prometheus", ["existing", "addon", "operator"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_takes_every_example_back(file: Path, mode: Any, prometheus: Any) -> None:
    """Planned, applied in memory, also with an API server's defaults, taken back: byte for byte the input."""
    with file.open() as lines:
        inventory = load_inventory(load_manifests(lines, file.name))
    found = planned(inventory, mode=mode, prometheus=prometheus, inject=True)
    after = found.apply(inventory)
    back = taken(after, evidence=recorded(inventory), unscraped=True)
    assert differences(back.apply(after), inventory) == []
    stored = defaulted(after)
    again = taken(stored, evidence=recorded(inventory), unscraped=True).apply(stored)
    assert differences(again, defaulted(inventory)) == []
    assert [INVERSE_PHASES.index(each.phase) for each in back.changes] == sorted(
        INVERSE_PHASES.index(each.phase) for each in back.changes
    )
    assert taken(back.apply(after), evidence=recorded(inventory)).changes == ()


@pytest.mark.parametrize("mode", MODES)
def test_takes_back_without_a_record_what_only_a_plan_writes(mode: Any) -> None:
    """Without originals and managed fields, the input comes back; a note says so."""
    inventory = shop()
    after = planned(inventory, mode=mode, network_policy=True).apply(inventory)
    back = taken(after)
    assert differences(back.apply(after), inventory) == []
    assert "no-record" in codes(back)


@pytest.mark.parametrize("prometheus", ["existing", "operator"])
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_takes_the_scrape_proxy_back(file: Path, prometheus: Any) -> None:
    """Its containers, volumes, token, jobs and rights."""
    with file.open() as lines:
        inventory = load_inventory(load_manifests(lines, file.name))
    found = planned(
        inventory, prometheus=prometheus, inject=True, scrape_proxy=True, proxy_image="example.com/m:1"
    )
    after = found.apply(inventory)
    back = taken(after, evidence=recorded(inventory), unscraped=True)
    assert differences(back.apply(after), inventory) == []


@pytest.mark.parametrize("source", ["istiod", "csi-driver-spiffe"])
def test_takes_the_scrape_proxy_back_without_a_record(source: str) -> None:
    inventory = shop()
    found = planned(
        inventory, mode="native", scrape_proxy=True, proxy_image="example.com/m:1", proxy_certificates=source
    )
    assert "ClusterRole/monitoring-prometheus-scrape-proxy" in [name for _, _, name in refs(found)]
    after = found.apply(inventory)
    assert differences(taken(after).apply(after), inventory) == []


@pytest.mark.parametrize("mode", MODES)
def test_takes_a_partial_apply_back(mode: Any) -> None:
    """After each single write of a plan, the way back leads to the input."""
    inventory = shop()
    found = planned(inventory, mode=mode, network_policy=True)
    for count in range(len(found.changes) + 1):
        partly = replace(found, changes=found.changes[:count]).apply(inventory)
        back = taken(partly, evidence=recorded(inventory))
        assert differences(back.apply(partly), inventory) == [], count


@pytest.mark.parametrize("mode", MODES)
def test_goes_on_after_a_partial_removal(mode: Any) -> None:
    """After each single write of the way back, a new way back leads to the input."""
    inventory = shop()
    after = planned(inventory, mode=mode, network_policy=True).apply(inventory)
    back = taken(after)
    for count in range(len(back.changes) + 1):
        partly = replace(back, changes=back.changes[:count]).apply(after)
        again = taken(partly)
        assert differences(again.apply(partly), inventory) == [], count


def test_opens_plaintext_first_and_closes_secure_ports_after_the_jobs_moved() -> None:
    after = planned(shop(), mode="bootstrap").apply(shop())
    assert [(phase, kind) for phase, _, kind in refs(taken(after))] == [
        ("hardening", "Deployment/web"),
        ("scrape", "ConfigMap/prometheus"),
        ("listeners", "Deployment/web"),
        ("credentials", "Deployment/prometheus"),
        ("removal", "ConfigMap/meshscrape-bootstrap"),
    ]


def test_keeps_what_others_wrote_since() -> None:
    """An edit of the same annotation, of the same configuration, and of the same template stays."""
    inventory = shop()
    after = planned(inventory, mode="native").apply(inventory)

    def trace(data: Any) -> None:
        notes = data["spec"]["template"]["metadata"]["annotations"]
        notes["proxy.istio.io/config"] += "tracing:\n  sampling: 10\n"
        notes["traffic.sidecar.istio.io/excludeInboundPorts"] = "15092,9999"
        data["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 5

    def add_job(data: Any) -> None:
        data["data"]["prometheus.yml"] += "- job_name: mine\n  static_configs: []  # a comment\n"

    config = next(each.ref for each in after.of_kind("ConfigMap") if each.ref.name == "prometheus")
    back = taken(edited(edited(after, WEB, trace), config, add_job))
    result = back.apply(edited(edited(after, WEB, trace), config, add_job))
    template = result.get(WEB).data["spec"]["template"]  # type: ignore[union-attr]
    notes = template["metadata"]["annotations"]
    assert yaml.safe_load(notes["proxy.istio.io/config"]) == {"tracing": {"sampling": 10}}
    assert notes["traffic.sidecar.istio.io/excludeInboundPorts"] == "9999"
    assert template["spec"]["terminationGracePeriodSeconds"] == 5
    text = result.get(config).data["data"]["prometheus.yml"]  # type: ignore[union-attr]
    before = inventory.get(config).data["data"]["prometheus.yml"]  # type: ignore[union-attr]
    assert text == before + "- job_name: mine\n  static_configs: []  # a comment\n"


def kept_out(**annotations: str) -> Inventory:
    """The shop, whose Prometheus its owner keeps out of the mesh, as Istio's own add-on is."""
    things = plain_prometheus(labels={"app": "prometheus", "sidecar.istio.io/inject": "false"})
    things[0]["metadata"]["annotations"] = annotations
    return cluster(control_plane(), injected_namespace(), deployment("web"), things)


def test_restores_values_that_a_run_has_overwritten_from_its_record() -> None:
    inventory = kept_out()
    found = planned(inventory, mode="native")
    changes = tuple(
        replace(each, after=with_record(each.before, each.after)) if each.before and each.after else each
        for each in found.changes
    )
    after = replace(found, changes=changes).apply(inventory)
    prometheus = after.get(ref("Deployment", "prometheus", "monitoring"))
    assert prometheus is not None
    assert "meshscrape.io/overwritten" in prometheus.data["metadata"]["annotations"]
    # A Deployment's controller copies the annotation, and owns the copy.
    made = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": "prometheus-1",
            "namespace": "monitoring",
            "annotations": prometheus.data["metadata"]["annotations"],
            "ownerReferences": [{"kind": "Deployment", "name": "prometheus", "controller": True}],
        },
        "spec": {"replicas": 0},
    }
    copied = Manifest(ref("ReplicaSet", "prometheus-1", "monitoring"), made)
    back = taken(after.changed([copied], ()))
    assert differences(back.apply(after), inventory) == []
    assert {each.ref.kind for each in back.changes} == {"Deployment", "ConfigMap"}


def test_restores_values_that_kubectl_applied() -> None:
    """Without a record, kubectl's own annotation tells what a field was."""
    applied = {"spec": kept_out().get(ref("Deployment", "prometheus", "monitoring")).data["spec"]}  # type: ignore[union-attr]
    inventory = kept_out(**{"kubectl.kubernetes.io/last-applied-configuration": json.dumps(applied)})
    after = planned(inventory, mode="native").apply(inventory)
    assert differences(taken(after).apply(after), inventory) == []


def managed(*entries: tuple[str, str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Managed fields: manager, time and fieldsV1 of each entry."""
    return [
        {"manager": manager, "operation": "Update", "time": time, "fieldsV1": fields}
        for manager, time, fields in entries
    ]


NOTES = {"f:spec": {"f:template": {"f:metadata": {"f:annotations": {"f:proxy.istio.io/config": {}}}}}}


def test_keeps_fields_that_another_manager_wrote_before() -> None:
    """A workload that its owner opened by hand is not meshscrape's to close."""
    by_hand = deployment(
        "web",
        annotations={
            "proxy.istio.io/config": 'proxyMetadata:\n  ENVOY_SECURE_MERGED_METRICS_PORT: "15092"\n',
            "prometheus.istio.io/secure-port": "15092",
        },
    )
    by_hand = {
        **by_hand,
        "metadata": {
            **by_hand["metadata"],
            "managedFields": managed(("kubectl", "2026-01-01T00:00:00Z", NOTES)),
        },
    }
    inventory = cluster(control_plane(), injected_namespace(), by_hand)
    back = taken(inventory)
    assert back.changes == ()
    assert "not-recorded" in codes(back)


def test_holds_back_a_workload_that_no_plaintext_job_would_read() -> None:
    """Unless the user gives its scrapes up."""
    inventory = cluster(control_plane(), injected_namespace(), deployment("web"))
    after = planned(inventory, mode="native", prometheus="addon").apply(inventory)
    held = taken(after)
    assert held.changes == ()
    (gate,) = held.gates
    assert (gate.phase, gate.workloads, gate.planned) == ("hardening", (WEB,), False)
    assert [missing.code for missing in gate.waits_for] == ["unread-in-plaintext"]
    assert (held.outcome.held, held.outcome.removed) == ((WEB,), ())
    assert differences(taken(after, unscraped=True).apply(after), inventory) == []


def test_a_choice_of_workloads_leaves_the_jobs_of_the_others() -> None:
    inventory = shop(deployment("other", namespace="elsewhere"), injected_namespace("elsewhere"))
    after = planned(inventory, mode="bootstrap").apply(inventory)
    back = taken(after, namespaces=("elsewhere",))
    assert {each.ref.namespace for each in back.changes} == {"elsewhere"}
    assert back.outcome.removed == (ref("Deployment", "other", "elsewhere"),)
    assert "jobs-stay" in codes(back)
    partly = back.apply(after)
    rest = taken(partly)
    assert differences(rest.apply(partly), inventory) == []


def test_forgets_the_records_of_the_workloads_that_leave() -> None:
    """Those of the others are needed later."""
    inventory = shop(deployment("other", namespace="elsewhere"), injected_namespace("elsewhere"))
    after = planned(inventory, mode="native").apply(inventory)
    other = ref("Deployment", "other", "elsewhere")
    for target in (WEB, other):
        record = {"annotations": {OVERWRITTEN: "{}"}}
        after = edited(after, target, lambda data, record=record: data["metadata"].update(record))
    left = taken(after, namespaces=("elsewhere",)).apply(after)
    assert {each.ref for each in left if OVERWRITTEN in annotations(each.data)} == {WEB}
    everything = taken(after)
    assert not [each for each in everything.apply(after) if OVERWRITTEN in annotations(each.data)]
    assert everything.inverse and not everything.apart
    assert everything.outcome.removed == (WEB, other)


def test_nothing_is_removed_where_nothing_was_written() -> None:
    back = taken(shop())
    assert (back.changes, back.outcome.removed) == ((), ())


def test_objects_of_asm_belong_to_its_own_api_server() -> None:
    image = "registry-vpc.cn-hangzhou.aliyuncs.com/acs/proxyv2:v1.18.0.1-g1a2b3c4-aliyun"
    gateway = own_proxy("istio-ingressgateway", namespace="istio-system", labels={"istio": "g"}, image=image)
    assert taken(cluster(gateway)).apart


def test_keeps_an_override_that_a_rollback_needs() -> None:
    inventory = shop()
    after = planned(inventory, mode="bootstrap").apply(inventory)
    web = after.get(WEB)
    assert web is not None
    old = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "web-1", "namespace": "default"},
        "spec": {"replicas": 0, "template": web.data["spec"]["template"]},
    }
    back = taken(after.changed(load_inventory([Manifest(ref("ReplicaSet", "web-1"), old)]), ()))
    assert "ConfigMap/meshscrape-bootstrap" not in [name for _, _, name in refs(back)]
    assert "override-in-use" in codes(back)


@pytest.mark.parametrize("scope", ["mesh", "namespace"])
def test_takes_defaults_of_a_scope_back(scope: Any) -> None:
    """Variables first, in the order of the phases; the object that the plan made goes last."""
    before = shop()
    after = planned(before, scope=scope).apply(before)
    found = taken(after)
    left = found.apply(after)
    assert not left.of_kind("ProxyConfig")
    phases = [change.phase for change in found.changes if change.ref.kind == "ProxyConfig"]
    assert phases == ["hardening", "listeners", "removal"]


def test_keeps_a_default_that_another_workload_needs() -> None:
    """The chosen namespace is not all that the default of the mesh reaches."""
    before = shop(injected_namespace("other"), deployment("two", "other"))
    after = planned(before, scope="mesh").apply(before)
    found = taken(after, namespaces=("other",))
    assert not [change for change in found.changes if change.ref.kind == "ProxyConfig"]


def gateway(annotations: dict[str, str], *fields: str) -> dict[str, Any]:
    """A Gateway with annotations for its pods; `fields` are those of them that kubectl wrote."""
    written = {f"f:{field}": {} for field in fields}
    infrastructure = {"f:spec": {"f:infrastructure": {"f:annotations": written}}}
    records = (
        {"managedFields": managed(("kubectl", "2026-01-01T00:00:00Z", infrastructure))} if fields else {}
    )
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "edge", "namespace": "default", "annotations": {"lb": "internal"}, **records},
        "spec": {"gatewayClassName": "istio", "infrastructure": {"annotations": annotations}},
    }


@pytest.mark.parametrize("fields", [(), ("lb",)], ids=["unrecorded", "recorded"])
def test_keeps_annotations_that_a_gateway_has_for_its_pods(fields: tuple[str, ...]) -> None:
    """They equal the Gateway's own, and no plan copied them."""
    assert taken(cluster(control_plane(), gateway({"lb": "internal"}, *fields))).changes == ()


def test_takes_copied_annotations_of_a_gateway_back() -> None:
    """They go with the announcement, unless another manager is shown to have written them."""
    announced = {"lb": "internal", "prometheus.istio.io/secure-port": "15092"}
    inventory = cluster(control_plane(), gateway(announced))
    after = (
        taken(inventory).apply(inventory).get(Ref("gateway.networking.k8s.io", "Gateway", "default", "edge"))
    )
    assert after is not None
    assert "infrastructure" not in after.data["spec"]


def test_keeps_a_bootstrap_override_of_a_gateways_owner() -> None:
    """Its variable names another file, and the volume is not meshscrape's."""
    own = {"name": "ISTIO_BOOTSTRAP_OVERRIDE", "value": "/etc/own/bootstrap.json"}
    proxy = {
        "name": "istio-proxy",
        "image": "docker.io/istio/proxyv2:1.24.0",
        "args": ["proxy", "router"],
        "env": [own],
    }
    labels = {"app": "edge", "istio": "ingressgateway"}
    edge = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "edge", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [proxy]}},
        },
    }
    assert taken(cluster(control_plane(), edge)).changes == ()


def overlaid(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Gateway and the overlay that its owner wrote."""
    parameters = {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "options"}}
    edge = {**gateway({}), "spec": {"gatewayClassName": "istio", "infrastructure": parameters}}
    options = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "options", "namespace": "default"},
        "data": {"deployment": text},
    }
    return edge, options


def test_keeps_empty_fields_of_a_gateways_overlay() -> None:
    """Its owner wrote them; a plan's own settings come and go around them."""
    volume = "{name: scratch, emptyDir: {}}"
    text = f"spec:\n  template:\n    spec:\n      nodeSelector: {{}}\n      volumes: [{volume}]\n"
    before = shop(*overlaid(text))
    options = Ref("", "ConfigMap", "default", "options")
    assert options not in [change.ref for change in taken(before).changes]
    after = planned(before).apply(before)
    assert after.get(options) != before.get(options)
    left = taken(after).apply(after).get(options)
    assert left is not None
    assert yaml.safe_load(left.data["data"]["deployment"]) == yaml.safe_load(text)


def test_an_unreadable_overlay_holds_up_nothing_else() -> None:
    """It is named, and the workloads of others are taken back."""
    before = shop()
    after = planned(before).apply(before)
    back = taken(after.changed(cluster(*overlaid("spec: [")), ()))
    assert "unreadable" in codes(back)
    assert WEB in [change.ref for change in back.changes]
