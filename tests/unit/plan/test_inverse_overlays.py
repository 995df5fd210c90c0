"""Settings that reach proxies through other objects, taken back from those objects."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from meshscrape.envoy import override
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe import observe
from meshscrape.observe.injection_template import VOLUME
from meshscrape.plan.edited_objects import EditedObjects
from meshscrape.plan.inverse.evidence import Evidence
from meshscrape.plan.inverse.overlays import take_gateway, take_override
from meshscrape.plan.model import INVERSE_PHASES, Intent
from meshscrape.plan.workloads import Context
from support.objects import (
    LOCALHOST_ONLY,
    Object,
    cluster,
    config_map,
    control_plane,
    deployment,
    env,
    injected_namespace,
    own_proxy,
    rendered_gateway,
)
from support.planning import planned

MOUNTED = f"{override.DIRECTORY}/{override.BOOTSTRAP_FILE}"
NAMED: dict[str, Any] = {
    "prometheus": "none",
    "scrapers": parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus"),
}
GATEWAY = Ref("gateway.networking.k8s.io", "Gateway", "default", "gw")
MESH = [control_plane(), injected_namespace()]
PARAMETERS = {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "mine"}}


def context_of(inventory: Inventory) -> Context:
    observation = observe(inventory)
    return Context(observation, inventory, Intent(), EditedObjects(inventory, INVERSE_PHASES), observation)


def taken_back(inventory: Inventory, *phases: bool) -> list[tuple[Ref, Any]]:
    """The objects that change when phases of the only gateway are taken back, and what is left of them."""
    context = context_of(inventory)
    (gateway,) = [workload for workload in context.observation.workloads if workload.is_gateway]
    for listeners in phases:
        take_gateway(context, gateway, Evidence(), listeners=listeners)
    reasons = {change.reason.partition(" ")[0] for change in context.draft.changes()}
    assert reasons <= {"closes" if listeners else "opens" for listeners in phases}
    return [(change.ref, change.after) for change in context.draft.changes()]


@pytest.mark.parametrize("infrastructure", [None, {"labels": {"x": "y"}}], ids=["alone", "beside another"])
def test_an_overlay_of_meshscrape_is_left_by_its_gateway(infrastructure: Any) -> None:
    """The plaintext ports open in the overlay; then the Gateway names it no more. It is deleted later."""
    before = cluster(*MESH, rendered_gateway(infrastructure=infrastructure))
    after = planned(before, **NAMED).apply(before)
    opened = taken_back(after, False)
    assert [ref.name for ref, _ in opened] == ["meshscrape-gw"]
    ((_, overlay), (ref, gateway)) = taken_back(after, False, True)
    assert "METRICS_LOCALHOST_ACCESS_ONLY" not in overlay["data"]["deployment"]
    assert "ENVOY_SECURE_MERGED_METRICS_PORT" in overlay["data"]["deployment"]
    assert (ref, gateway) == (GATEWAY, before.get(GATEWAY).data)  # type: ignore[union-attr]


def test_a_users_own_overlay_stays_with_its_gateway() -> None:
    """Without meshscrape's settings in it."""
    own = config_map("mine", {"deployment": "spec:\n  replicas: 3\n"}, namespace="default")
    before = cluster(*MESH, rendered_gateway(infrastructure=PARAMETERS), own)
    after = planned(before, **NAMED).apply(before)
    ((ref, overlay),) = taken_back(after, False, True)
    assert ref.name == "mine"
    assert yaml.safe_load(overlay["data"]["deployment"]) == {"spec": {"replicas": 3}}


def test_an_overlay_that_is_not_there_changes_nothing() -> None:
    """A Gateway that names one is taken for one that announces a port itself."""
    notes = {"prometheus.istio.io/secure-port": "15091"}
    gateway = rendered_gateway(infrastructure={"annotations": notes, **PARAMETERS})
    inventory = cluster(*MESH, gateway)
    assert taken_back(inventory, False) == []
    ((ref, left),) = taken_back(inventory, True)
    assert (ref, left["spec"]["infrastructure"]) == (GATEWAY, PARAMETERS)
    assert taken_back(cluster(*MESH, rendered_gateway()), False, True) == []


def test_the_settings_of_an_asm_gateway_are_in_its_own_object() -> None:
    """Phase by phase."""
    owner = {
        "apiVersion": "istio.alibabacloud.com/v1beta1",
        "kind": "IstioGateway",
        "metadata": {"name": "ingressgateway", "namespace": "istio-system"},
        "spec": {
            "gatewayType": "ingress",
            "env": env({**LOCALHOST_ONLY, "ISTIO_BOOTSTRAP_OVERRIDE": MOUNTED, "mine": "x"}),
            "configVolumes": [{"name": VOLUME}],
        },
    }
    image = "registry-vpc.cn-hangzhou.aliyuncs.com/acs/proxyv2:v1.18.0.1-g1a2b3c4-aliyun"
    labels = {"istio": "ingressgateway"}
    pod = own_proxy("istio-ingressgateway", namespace="istio-system", labels=labels, image=image)
    inventory = cluster(owner, pod)
    left = {
        phase: gateway["spec"]["env"]
        for phase in (True, False)
        for _, gateway in taken_back(inventory, phase)
    }
    opened = {"ISTIO_BOOTSTRAP_OVERRIDE": MOUNTED}
    assert left == {True: env({**LOCALHOST_ONLY, "mine": "x"}), False: env({**opened, "mine": "x"})}


OURS, THEIRS = {"name": "meshscrape_merged"}, {"name": "theirs"}
LIMIT, THEIR_LAYER = {"name": "meshscrape_limits"}, {"name": "their_layer"}


def without_ours(bootstrap: Any) -> Any:
    """What take_override leaves of an override; None if it changes nothing."""
    text = bootstrap if isinstance(bootstrap, str) else json.dumps(bootstrap)
    notes = {"sidecar.istio.io/bootstrapOverride": "mine"}
    data = {"custom_bootstrap.json": text, "scrapers.json": "{}", "x": "y"}
    override = config_map("mine", data, namespace="default")
    inventory = cluster(*MESH, deployment("web", annotations=notes), override)
    context = context_of(inventory)
    (web,) = [workload for workload in context.observation.workloads if workload.name == "web"]
    assert web.bootstrap_override == "mine"
    take_override(context, web)
    changes = context.draft.changes()
    if not changes:
        return None
    (change,) = changes
    assert change.ref == Ref("", "ConfigMap", "default", "mine") and change.after is not None
    assert set(change.after["data"]) == {"custom_bootstrap.json", "x"}
    return json.loads(change.after["data"]["custom_bootstrap.json"])


@pytest.mark.parametrize(
    ("bootstrap", "left"),
    [
        ({"static_resources": {"listeners": [OURS, THEIRS]}}, {"static_resources": {"listeners": [THEIRS]}}),
        ({"staticResources": {"listeners": [OURS, THEIRS]}}, {"staticResources": {"listeners": [THEIRS]}}),
        ({"static_resources": {"listeners": [OURS], "x": 1}}, {"static_resources": {"x": 1}}),
        ({"static_resources": {"listeners": [OURS]}, "node": {}}, {"node": {}}),
        ({"staticResources": {"listeners": [OURS]}, "node": {}}, {"node": {}}),
        ({"layered_runtime": {"layers": [LIMIT]}, "node": {}}, {"node": {}}),
        (
            {"static_resources": {"listeners": [THEIRS]}, "layeredRuntime": {"layers": [LIMIT, THEIR_LAYER]}},
            {"static_resources": {"listeners": [THEIRS]}, "layeredRuntime": {"layers": [THEIR_LAYER]}},
        ),
    ],
    ids=["both", "camel case", "other resources", "alone", "alone in camel case", "limits", "limits behind"],
)
def test_takes_its_listeners_out_of_a_users_override(bootstrap: Any, left: Any) -> None:
    """Its limits too, in either spelling of Envoy's, and its allow list."""
    assert without_ours(bootstrap) == left


@pytest.mark.parametrize(
    "bootstrap",
    [
        {"static_resources": {"listeners": [THEIRS, {}]}},
        {"static_resources": "no mapping"},
        [OURS],
        "{no JSON",
    ],
    ids=["only theirs", "odd", "a list", "unreadable"],
)
def test_an_override_without_its_listeners_stays(bootstrap: Any) -> None:
    assert without_ours(bootstrap) is None


@pytest.mark.parametrize("name", [None, "meshscrape-bootstrap"], ids=["none", "meshscrape's own"])
def test_an_override_of_meshscrape_is_deleted_elsewhere(name: str | None) -> None:
    text = json.dumps({"static_resources": {"listeners": [OURS, THEIRS]}})
    notes = {"sidecar.istio.io/bootstrapOverride": name} if name else {}
    maps: list[Object] = [
        config_map(each, {"custom_bootstrap.json": text}, namespace="default")
        for each in ("mine", *([name] if name else []))
    ]
    context = context_of(cluster(*MESH, deployment("web", annotations=notes), maps))
    (web,) = [workload for workload in context.observation.workloads if workload.name == "web"]
    take_override(context, web)
    assert context.draft.changes() == ()
