"""Which of meshscrape's own objects a way back deletes, and in which phase."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshscrape.istio.names import MANAGED_BY
from meshscrape.kube.objects import Ref
from meshscrape.observe import observe
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.edited_objects import EditedObjects
from meshscrape.plan.inverse.owned import delete_owned, is_owned
from meshscrape.plan.model import INVERSE_PHASES, MANAGER, Intent
from meshscrape.plan.workloads import Context
from support.objects import (
    Object,
    cluster,
    config_map,
    control_plane,
    deployment,
    injected_namespace,
    own_proxy,
    pod_of,
)

OURS = {MANAGED_BY: MANAGER}
OVERRIDE = "meshscrape-bootstrap"


def owned(api: str, kind: str, name: str = "meshscrape-web", namespace: str = "default") -> Object:
    """An object with meshscrape's label."""
    metadata = {"name": name, "namespace": namespace, "labels": OURS}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": {}}


ISTIO, SECURITY, NETWORK = "networking.istio.io/v1", "security.istio.io/v1", "networking.k8s.io/v1"
MONITORING = "monitoring.coreos.com/v1"


@pytest.mark.parametrize(
    ("name", "labels", "answer"),
    [
        ("meshscrape-web", OURS, True),
        ("monitoring-prometheus-scrape-proxy", OURS, True),
        ("istio-system-meshscrape-web", OURS, True),
        ("web", OURS, False),
        ("meshscrape-web", {MANAGED_BY: "Helm"}, False),
        ("meshscrape-web", {}, False),
        (None, OURS, False),
    ],
)
def test_an_object_is_meshscrapes_by_its_label_and_name(name: Any, labels: Any, answer: bool) -> None:
    assert is_owned({"metadata": {"name": name, "labels": labels}}) is answer


MESH = [control_plane(), injected_namespace(), injected_namespace("other")]
WORKLOADS = observe(
    cluster(*MESH, deployment("web"), deployment("api"), deployment("web", "other"))
).workloads


def workload(name: str, namespace: str = "default", **changes: Any) -> ObservedWorkload:
    """A workload as it is observed, with changes."""
    made = next(one for one in WORKLOADS if (one.name, one.namespace) == (name, namespace))
    return replace(made, **changes)


def placed(made: ObservedWorkload, namespace: str, **changes: Any) -> ObservedWorkload:
    """The workload in a namespace."""
    return replace(made, ref=replace(made.ref, namespace=namespace), **changes)


def deleted(
    objects: list[Object],
    leaving: list[ObservedWorkload],
    staying: list[ObservedWorkload],
    *,
    whole: bool = False,
    more: Any = (),
) -> tuple[list[tuple[str, str]], EditedObjects]:
    """The phase and the name of each object that goes, and the draft."""
    inventory = cluster(*MESH, objects, *more)
    observation = observe(inventory)
    draft = EditedObjects(inventory, INVERSE_PHASES)
    context = Context(observation, inventory, Intent(), draft, observation)
    delete_owned(context, leaving, staying, whole=whole)
    changes = draft.changes()
    assert all(change.action == "delete" for change in changes)
    return [
        (change.phase, f"{change.ref.kind} {change.ref.namespace}/{change.ref.name}") for change in changes
    ], draft


OF_WORKLOAD = [
    owned(ISTIO, "Gateway"),
    owned(ISTIO, "Sidecar"),
    owned(ISTIO, "VirtualService"),
    owned(ISTIO, "DestinationRule"),
    owned(SECURITY, "PeerAuthentication"),
    owned(SECURITY, "AuthorizationPolicy", "meshscrape-web-allow"),
    owned(NETWORK, "NetworkPolicy"),
    config_map("meshscrape-web", {}, OURS, "default"),
]
OF_ALL = [
    owned(MONITORING, "PodMonitor"),
    owned(MONITORING, "ServiceMonitor"),
    owned(MONITORING, "Prometheus"),
    owned("gateway.networking.k8s.io/v1", "Gateway"),
    owned("elsewhere.io/v1", "PodMonitor"),
    owned("apps/v1", "Deployment"),
]
NOT_OURS = [owned(ISTIO, "Sidecar", "web"), {**owned("apps/v1", "Deployment", "aaa"), "spec": {}}]


def test_deletes_the_objects_of_workloads_that_leave() -> None:
    """The ports of legacy mode first. Objects of other namespaces and other workloads stay."""
    others = [
        owned(ISTIO, "Sidecar", "meshscrape-api"),
        owned(ISTIO, "Sidecar", namespace="other"),
        config_map(OVERRIDE, {}, OURS, "other"),
    ]
    changes, _ = deleted([*OF_WORKLOAD, *OF_ALL, *NOT_OURS, *others], [workload("web")], [workload("api")])
    assert changes == [
        ("listeners", "Gateway default/meshscrape-web"),
        ("listeners", "Sidecar default/meshscrape-web"),
        ("listeners", "VirtualService default/meshscrape-web"),
        ("removal", "DestinationRule default/meshscrape-web"),
        ("removal", "NetworkPolicy default/meshscrape-web"),
        ("removal", "AuthorizationPolicy default/meshscrape-web-allow"),
        ("removal", "PeerAuthentication default/meshscrape-web"),
        ("removal", "ConfigMap default/meshscrape-web"),
    ]


def test_a_workload_of_the_same_name_needs_the_objects() -> None:
    """A StatefulSet beside a Deployment, for example."""
    assert deleted(OF_WORKLOAD, [workload("web")], [workload("web")])[0] == []


def test_deletes_everything_with_the_last_workload() -> None:
    """Jobs that read no pods any more go before the rest."""
    changes, _ = deleted([*OF_ALL, *NOT_OURS], [], [], whole=True)
    assert [change for change in changes if change[0] != "removal"] == [
        ("scrape", "PodMonitor default/meshscrape-web"),
        ("scrape", "ServiceMonitor default/meshscrape-web"),
    ]
    assert len(changes) == len(OF_ALL)


ADMIN = [owned(ISTIO, "ServiceEntry", "meshscrape-gateway-admin", "default"), owned(ISTIO, "Sidecar")]
GATEWAYS = observe(
    cluster(
        *MESH,
        own_proxy(
            "gw",
            labels={"sidecar.istio.io/inject": "true"},
            annotations={"inject.istio.io/templates": "gateway"},
        ),
    )
).workloads


@pytest.mark.parametrize(
    ("gateway", "legacy", "namespace", "goes"),
    [
        (True, True, "default", False),
        (True, False, "default", True),
        (False, True, "default", True),
        (True, True, "other", True),
    ],
)
def test_the_entry_of_legacy_gateways_stays_for_the_others(
    gateway: bool, legacy: bool, namespace: str, goes: bool
) -> None:
    """Of its namespace; what else is there goes."""
    (made,) = GATEWAYS
    stays = placed(made if gateway else workload("api"), namespace, legacy=("a port",) if legacy else ())
    changes, _ = deleted(ADMIN, [], [stays], whole=True)
    entry = [("listeners", "ServiceEntry default/meshscrape-gateway-admin")]
    assert changes == [("listeners", "Sidecar default/meshscrape-web"), *(entry if goes else [])]


def overridden(name: str, namespace: str = "default") -> ObservedWorkload:
    """A workload whose proxy starts with an override."""
    made = workload("api")
    override = type("Override", (), {"config_map": Ref("", "ConfigMap", namespace, name)})()
    return placed(made, namespace, override=override)


OVERRIDES = [config_map(OVERRIDE, {}, OURS, "default"), config_map("meshscrape-web", {}, OURS, "default")]
FIRST, SECOND = ("removal", f"ConfigMap default/{OVERRIDE}"), ("removal", "ConfigMap default/meshscrape-web")


@pytest.mark.parametrize(
    ("leaving", "staying", "whole", "goes"),
    [
        ([], [], True, True),
        ([workload("web")], [workload("api")], False, True),
        ([workload("web")], [overridden("mine")], False, True),
        ([workload("web")], [overridden(OVERRIDE, "other")], False, True),
        ([workload("web")], [overridden(OVERRIDE)], False, False),
        ([workload("web", "other")], [workload("api")], False, False),
        ([], [overridden(OVERRIDE)], True, False),
    ],
    ids=["all", "last", "another's", "elsewhere", "in use", "not here", "in use of all"],
)
def test_the_override_of_a_namespace_goes_with_its_last_user(
    leaving: Any, staying: Any, whole: bool, goes: bool
) -> None:
    changes, _ = deleted(OVERRIDES, leaving, staying, whole=whole)
    assert (FIRST in changes) is goes
    assert (SECOND in changes) is (whole or any(one.namespace == "default" for one in leaving))


def old(kind: str, name: str, path: tuple[str, ...] = ("spec", "template")) -> Object:
    """An object whose pods mount the override."""
    data: Any = {"spec": {"volumes": [{"name": "v", "configMap": {"name": OVERRIDE}}], "containers": []}}
    for step in reversed(path):
        data = {step: data}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "default"}, **data}


def test_an_override_that_a_rollback_needs_stays() -> None:
    """A note names who refers to it. Today's pods do not count: they are replaced."""
    pod = {**old("Pod", "now", ()), "apiVersion": "v1"}
    assert FIRST in deleted(OVERRIDES, [], [], whole=True, more=[pod])[0]
    sets = [old("ReplicaSet", f"web-{number}") for number in range(7)]
    changes, draft = deleted(OVERRIDES, [], [], whole=True, more=[pod, sets])
    assert (FIRST in changes, SECOND in changes) == (False, True)
    (note,) = draft.notes
    assert (note.code, note.ref) == ("override-in-use", Ref("", "ConfigMap", "default", OVERRIDE))
    assert note.text.startswith("7 objects refer to it, and none of their pods starts without it: ReplicaSet")
    assert note.text.endswith("web-4 and 2 more")


@pytest.mark.parametrize(
    ("noted", "template", "namespace", "goes"),
    [
        (True, False, "default", False),
        (False, False, "default", True),
        (True, True, "default", True),
        (True, False, "other", True),
    ],
)
def test_an_override_stays_for_pods_that_a_template_gave_it_to(
    noted: bool, template: bool, namespace: str, goes: bool
) -> None:
    """No change of theirs restarts them, so they would lose their ports at their next start."""
    checksum = {"meshscrape.io/bootstrap-checksum": "0a"}
    app = deployment("app", namespace, annotations=checksum if template else {})
    pod = pod_of(app, annotations=checksum if noted else {})
    changes, draft = deleted(OVERRIDES, [], [], whole=True, more=[app, pod])
    assert (FIRST in changes) is goes
    assert [note.code for note in draft.notes] == ([] if goes else ["override-in-use"])
    assert all("lose their secure ports" in note.text for note in draft.notes)
