"""Waves of a phase, time windows, and workloads that serve nothing while they restart."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from meshscrape.cluster.waves import Window, interrupted, unproven, waves_of
from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory, Manifest, Ref
from meshscrape.observe import observe
from meshscrape.plan.model import Action, Change
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    pod_of,
    rendered_gateway,
)


def change(kind: str, namespace: str, name: str, action: Action = "update", restarts: bool = True) -> Change:
    """A change of an object, which restarts pods."""
    ref = Ref("apps", kind, namespace, name)
    return Change(action, ref, {}, {}, "a reason", ("pods",) if restarts else (), "listeners")


def test_waves_begin_with_what_restarts_nothing_and_end_with_deletions() -> None:
    """Canary workloads restart first, then one namespace after the other."""
    changes = [
        change("ConfigMap", "b", "config", restarts=False),
        change("Deployment", "b", "web"),
        change("Deployment", "a", "web"),
        change("Deployment", "a", "canary"),
        change("Sidecar", "a", "old", "delete", restarts=False),
        change("Deployment", "a", "gone", "delete"),
    ]
    told = [
        [f"{each.ref.namespace}/{each.ref.name}" for each in wave] for wave in waves_of(changes, {"a/canary"})
    ]
    assert told == [["b/config"], ["a/canary"], ["a/web"], ["b/web"], ["a/old", "a/gone"]]


def test_there_is_no_wave_without_a_change() -> None:
    """Not even between others."""
    web = change("Deployment", "a", "web")
    assert waves_of([], ()) == []
    assert waves_of([web], ()) == [[web]]


@pytest.mark.parametrize(
    ("window", "clock", "seconds"),
    [
        ("22:00-05:30", "23:00", 0),
        ("22:00-05:30", "05:00", 0),
        ("22:00-05:30", "21:00", 3600),
        ("22:00-05:30", "22:00", 0),
        ("22:00-05:30", "05:30", 16.5 * 3600),
        ("08:00-09:00", "08:00", 0),
        ("08:00-09:00", "08:30", 0),
        ("08:00-09:00", "09:00", 23 * 3600),
    ],
)
def test_a_window_may_pass_midnight(window: str, clock: str, seconds: float) -> None:
    now = datetime.fromisoformat(f"2026-03-01T{clock}:00").replace(tzinfo=UTC)
    assert Window.parse(window).seconds_until(now) == seconds


@pytest.mark.parametrize("text", ["", "8-9", "25:00-26:00", "22:00", "22:00-05:61", "08:00-08:00"])
def test_refuses_other_windows(text: str) -> None:
    with pytest.raises(InputError):
        Window.parse(text)


@pytest.mark.parametrize(
    ("kind", "spec", "named"),
    [
        ("Deployment", {"replicas": 1}, False),
        ("Deployment", {"strategy": {"type": "Recreate"}}, True),
        ("StatefulSet", {}, True),
        ("StatefulSet", {"replicas": 2}, False),
        ("StatefulSet", {"replicas": 2, "updateStrategy": {"type": "OnDelete"}}, True),
        ("DaemonSet", {"updateStrategy": {"type": "OnDelete"}}, True),
        ("DaemonSet", {"strategy": {"type": "Recreate"}}, False),
        ("Deployment", {"updateStrategy": {"type": "OnDelete"}}, False),
    ],
)
def test_names_workloads_that_serve_nothing_while_they_restart(kind: str, spec: Any, named: bool) -> None:
    wanted = change(kind, "shop", "web")
    inventory = Inventory([Manifest(wanted.ref, {"kind": kind, "spec": spec})])
    assert bool(interrupted([wanted], inventory)) is named
    assert not interrupted([change(kind, "shop", "web", restarts=False)], inventory)
    assert not interrupted([wanted], Inventory())


def ready(pod: Any) -> Any:
    """A pod that is ready."""
    status = pod["status"] | {"conditions": [{"type": "Ready", "status": "True"}]}
    return {**pod, "status": status}


def test_a_workload_without_a_ready_pod_is_unproven() -> None:
    web, idle = deployment("web"), deployment("idle")
    inventory = cluster(control_plane(), injected_namespace(), web, idle, ready(pod_of(web)))
    changes = [change("Deployment", "default", "web"), change("Deployment", "default", "idle")]
    found = unproven(changes, observe(inventory), inventory)
    assert {ref.name for ref in found} == {"idle"}


def test_another_condition_does_not_make_a_pod_ready() -> None:
    """Ready may be False while the containers are."""
    web = deployment("web")
    pod = pod_of(web)
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    pod["status"] = pod["status"] | {"conditions": conditions}
    inventory = cluster(control_plane(), injected_namespace(), web, pod)
    wanted = change("Deployment", "default", "web")
    assert unproven([wanted], observe(inventory), inventory) == {wanted.ref}


def test_a_gateway_and_its_overlay_are_unproven_without_a_ready_pod() -> None:
    """A change of the ConfigMap that the Gateway names restarts its pods, too."""
    overlay = Ref("", "ConfigMap", "default", "edge-options")
    gateway, made = rendered_gateway(
        "edge", infrastructure={"parametersRef": {"group": "", "kind": "ConfigMap", "name": overlay.name}}
    )
    owner = Ref("gateway.networking.k8s.io", "Gateway", "default", "edge")
    changes = [Change("update", ref, {}, {}, "a reason", ("pods",), "listeners") for ref in (owner, overlay)]
    idle = cluster(control_plane(), gateway, made)
    assert unproven(changes, observe(idle), idle) == {owner, overlay}
    served = cluster(control_plane(), gateway, made, ready(pod_of(made)))
    assert unproven(changes, observe(served), served) == set()
