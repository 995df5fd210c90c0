"""The requests of a plan's changes: what they change, and what they refuse to overwrite."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.cluster.kinds import Resource
from meshscrape.cluster.writes import merged, write_of
from meshscrape.errors import InputError
from meshscrape.kube.objects import Ref
from meshscrape.plan.model import Action, Change
from meshscrape.plan.patches import json_patch

RESOURCES = [
    Resource("apps", "v1", "deployments", "Deployment"),
    Resource("", "v1", "namespaces", "Namespace"),
]
WEB = Ref("apps", "Deployment", "shop", "web")


def deployment(annotations: dict[str, str], **spec: Any) -> dict[str, Any]:
    """A Deployment as the API server returns it."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "resourceVersion": "7", "uid": "u1", "annotations": annotations},
        "spec": {"replicas": 1, **spec},
        "status": {"replicas": 1},
    }


def change(action: Action, before: Any, after: Any, ref: Ref = WEB) -> Change:
    """A change of an object."""
    return Change(action, ref, before, after, "a reason", (), "listeners")


def applied(patch: list[dict[str, Any]], data: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a JSON Patch makes of an object, None when a test of it fails (RFC 6902, section 5)."""
    for operation in patch:
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        place = data
        for part in parents:
            place = place[part]
        if operation["op"] == "test" and place.get(last) != operation["value"]:
            return None
        if operation["op"] in ("add", "replace"):
            place[last] = operation["value"]
        if operation["op"] == "remove":
            del place[last]
    return data


def test_a_patch_changes_what_differs_and_leaves_the_rest() -> None:
    before = deployment({"a/b": "1", "gone~": "x"}, paused=False)
    after = deployment({"a/b": "2", "new": "y"}, paused=True)
    now = {**deployment({"a/b": "1", "gone~": "x"}, paused=False), "status": {"replicas": 9}}
    assert applied(json_patch(before, after), now) == {**after, "status": {"replicas": 9}}


def test_a_patch_fails_where_another_manager_added_the_same_field() -> None:
    patch = json_patch(deployment({"config": "old"}), deployment({"config": "old", "another": "ours"}))
    assert applied(patch, deployment({"config": "old", "another": "theirs"})) is None
    kept = applied(patch, deployment({"config": "theirs"}))
    assert kept is not None and kept["metadata"]["annotations"] == {"config": "theirs", "another": "ours"}


def test_a_patch_fails_where_another_manager_added_a_mapping_that_was_absent() -> None:
    before, after = deployment({}), deployment({"config": "ours"})
    del before["metadata"]["annotations"]
    assert applied(json_patch(before, after), deployment({"config": "theirs"})) is None


def test_a_patch_fails_where_another_manager_wrote_the_same_field() -> None:
    patch = json_patch(deployment({"config": "old"}), deployment({"config": "ours"}))
    assert applied(patch, deployment({"config": "theirs"})) is None


def test_an_unchanged_object_needs_no_patch() -> None:
    before = deployment({"config": "old"})
    assert json_patch(before, {**before, "status": {}}) == []


def test_an_update_is_a_strict_patch_by_our_field_manager() -> None:
    write = write_of(change("update", deployment({}), deployment({}, paused=True)), RESOURCES)
    assert (write.method, write.path) == ("PATCH", "/apis/apps/v1/namespaces/shop/deployments/web")
    assert dict(write.query) == {"fieldManager": "meshscrape", "fieldValidation": "Strict"}


def test_a_new_object_is_posted_so_that_it_never_overwrites_one() -> None:
    write = write_of(change("create", None, deployment({})), RESOURCES, dry_run=True)
    assert (write.method, write.path) == ("POST", "/apis/apps/v1/namespaces/shop/deployments")
    assert write.query["dryRun"] == "All"


def test_a_deletion_means_the_object_that_was_seen() -> None:
    write = write_of(change("delete", deployment({}), None), RESOURCES)
    assert (write.method, write.body["preconditions"]) == ("DELETE", {"uid": "u1"})


def test_an_object_of_the_cluster_has_no_namespace_in_its_path() -> None:
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    write = write_of(change("create", None, space, Ref("", "Namespace", "", "shop")), RESOURCES)
    assert write.path == "/api/v1/namespaces"


def test_refuses_a_kind_that_the_api_server_does_not_serve() -> None:
    with pytest.raises(InputError) as refused:
        write_of(change("create", None, deployment({}), Ref("apps", "Other", "shop", "web")), RESOURCES)
    assert refused.value.code == "unserved-kind"


def test_a_dry_run_checks_what_the_phases_make_together() -> None:
    made, better = deployment({}), deployment({"later": "y"})
    (one,) = merged([change("create", None, made), change("update", made, better)])
    assert (one.action, one.before, one.after) == ("create", None, better)
    (both,) = merged([change("update", made, better), change("update", better, made)])
    assert (both.before, both.after) == (made, made)
    assert merged([change("create", None, made), change("delete", made, None)]) == []
