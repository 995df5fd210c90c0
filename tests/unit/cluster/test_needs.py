"""The rights that a run asks for before its first write."""

from __future__ import annotations

from meshscrape.cluster.kinds import Resource
from meshscrape.cluster.needs import absent_namespaces, created_namespaces, rights_of, rights_of_run
from meshscrape.kube.objects import Inventory, Manifest, Ref
from meshscrape.plan.model import Change

RESOURCES = [
    Resource("apps", "v1", "deployments", "Deployment"),
    Resource("", "v1", "namespaces", "Namespace"),
]
WEB = {"apiVersion": "apps/v1", "kind": "Deployment"}
SPACE = {"apiVersion": "v1", "kind": "Namespace"}


def created(kind: str, namespace: str, name: str) -> Change:
    """The creation of an object."""
    group, data = ("apps", WEB) if kind == "Deployment" else ("", SPACE)
    return Change("create", Ref(group, kind, namespace, name), None, data, "a reason", (), "scrape")


def test_a_run_needs_to_write_to_follow_to_hold_the_lease_and_to_ask_prometheus() -> None:
    web = Ref("apps", "Deployment", "shop", "web")
    changes = [
        Change("update", web, WEB, WEB, "a reason", (), "listeners"),
        Change("delete", web, WEB, None, "a reason", (), "removal"),
    ]
    pod = Ref("", "Pod", "monitoring", "prometheus-0")
    assert {str(right) for right in (*rights_of(changes, RESOURCES), *rights_of_run([pod]))} == {
        "patch deployments.apps in shop",
        "get deployments.apps in shop",
        "delete deployments.apps in shop",
        "get leases.coordination.k8s.io in istio-system",
        "create leases.coordination.k8s.io in istio-system",
        "update leases.coordination.k8s.io in istio-system",
        "get pods/proxy in monitoring",
    }


def test_a_namespace_is_absent_unless_it_exists_or_the_plan_creates_it() -> None:
    there = Inventory([Manifest(Ref("", "Namespace", "", "shop"), SPACE)])
    changes = [
        created("Deployment", "shop", "a"),
        created("Namespace", "", "fresh"),
        created("Deployment", "fresh", "b"),
        created("Deployment", "absent", "c"),
    ]
    assert absent_namespaces(changes, there) == {"absent"}
    assert created_namespaces(changes) == {"fresh"}
