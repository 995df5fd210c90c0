"""Which resources of an API server are read, and what the items of its lists become."""

from __future__ import annotations

from typing import Any

from meshscrape.cluster.kinds import (
    READ,
    Resource,
    complete,
    groups_to_read,
    reading_rules,
    resources_to_read,
)

PODS = Resource("", "v1", "pods", "Pod")


def group(name: str, version: str) -> dict[str, Any]:
    """A group as `/apis` lists it."""
    return {"name": name, "preferredVersion": {"groupVersion": f"{name}/{version}", "version": version}}


def resource(name: str, kind: str, *verbs: str) -> dict[str, Any]:
    """A resource as a group's document lists it."""
    return {"name": name, "kind": kind, "namespaced": True, "verbs": list(verbs)}


def test_reads_the_core_group_and_the_known_groups_in_their_preferred_versions() -> None:
    served = {"groups": [group("security.istio.io", "v1"), group("apps", "v1"), group("cilium.io", "v2")]}
    assert groups_to_read(served) == [("", "v1"), ("apps", "v1"), ("security.istio.io", "v1")]


def test_reads_no_secrets_and_no_subresources() -> None:
    core = {
        "resources": [
            resource("pods", "Pod", "get", "list", "watch"),
            resource("pods/log", "Pod", "get"),
            resource("secrets", "Secret", "get", "list"),
        ]
    }
    assert resources_to_read("", "v1", core) == [PODS]


def test_reads_all_listable_kinds_of_a_group_of_custom_resources() -> None:
    served = {
        "resources": [
            resource("podmonitors", "PodMonitor", "list"),
            resource("podmonitors/status", "PodMonitor", "list"),
            resource("reviews", "Review", "create"),
        ]
    }
    found = resources_to_read("monitoring.coreos.com", "v1", served)
    assert [each.path for each in found] == ["/apis/monitoring.coreos.com/v1/podmonitors"]


def test_an_item_of_a_list_becomes_an_object_without_managed_fields() -> None:
    item = {"metadata": {"name": "web", "managedFields": [{"manager": "kubectl"}]}, "spec": {}}
    assert complete(item, PODS) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {},
    }
    assert "managedFields" in item["metadata"], "a shared part was changed"


def test_the_rights_to_read_are_to_list_exactly_what_is_read() -> None:
    granted = {
        (name, plural)
        for rule in reading_rules()
        for name in rule["apiGroups"]
        for plural in rule["resources"]
        if rule["verbs"] == ["list"]
    }
    assert granted == {(name, plural) for name, plurals in READ.items() for plural in plurals}
    assert ("", "secrets") not in granted
