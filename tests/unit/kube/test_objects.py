"""Objects, references and the inventory."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Ref, load_inventory, manifest_of, stable
from support.objects import cluster, deployment, namespace, observed, pod_of, service


def test_reference_identifies_its_object() -> None:
    """A reference reads as group, kind, namespace and name; cluster-wide kinds have no namespace."""
    assert str(manifest_of(deployment()).ref) == "Deployment.apps default/httpbin"
    assert str(manifest_of(namespace("a")).ref) == "Namespace a"
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "p", "namespace": "x"},
    }
    assert manifest_of(role).ref.namespace == ""


def test_namespace_defaults_to_default() -> None:
    """A namespaced object without a namespace is in `default`."""
    app = deployment()
    del app["metadata"]["namespace"]
    assert manifest_of(app).ref.namespace == "default"


@pytest.mark.parametrize("name", ["a\nkind: Role", "a\x1b[31m", "a\u202eb", "a\x00"])
@pytest.mark.parametrize("field", ["name", "namespace"])
def test_name_with_control_characters_is_refused(field: str, name: str) -> None:
    """Names stand in comments of rendered files and on terminals: line ends and escapes are refused."""
    data = deployment()
    data["metadata"][field] = name
    with pytest.raises(InputError, match="control characters in its name") as caught:
        manifest_of(data, "dump.yaml:3")
    assert str(caught.value).isprintable()


def test_owner_with_an_invalid_name_is_ignored() -> None:
    """Whoever makes a pod may write anything as its owner: such a pod stands for itself."""
    app = deployment()
    pod = pod_of(app)
    pod["metadata"]["ownerReferences"][0]["name"] = "x\x1b[2J\n"
    (found,) = [each for each in observed(pod).workloads if each.standalone]
    assert found.ref == manifest_of(pod).ref


@pytest.mark.parametrize(
    "data", [{}, {"apiVersion": "v1"}, {"apiVersion": "v1", "kind": "Pod"}, {"apiVersion": 1, "kind": "Pod"}]
)
def test_data_that_is_not_an_object_is_refused(data: dict[str, Any]) -> None:
    """An object has apiVersion, kind and a name; the error says where."""
    with pytest.raises(InputError) as caught:
        manifest_of(data, "mesh.yaml:7")
    assert caught.value.where == "mesh.yaml:7"


def test_lists_are_taken_apart() -> None:
    """`kind: List`, typed lists (whose items have no kind) and lists in lists give their items."""
    text = """
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: a}}
- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: ServiceAccount, metadata: {name: b}}]}
---
apiVersion: v1
kind: PodList
items:
- {metadata: {name: c}}
"""
    found = load_inventory(load_documents(text, "dump.yaml"))
    assert [str(each.ref) for each in found] == [
        "Pod default/c", "ServiceAccount default/a", "ServiceAccount default/b",
    ]  # fmt: skip


def test_the_same_object_twice_must_be_the_same() -> None:
    """Equal objects count once, whatever their status; different ones are refused with both places."""
    one, other = deployment(), deployment()
    other["status"] = {"replicas": 1}
    other["metadata"] |= {"resourceVersion": "5", "managedFields": []}
    assert len(cluster(one, other)) == 1
    other["spec"]["replicas"] = 2
    with pytest.raises(InputError, match="differs"):
        cluster(one, other)


def test_iteration_does_not_depend_on_the_order_of_reading() -> None:
    """The inventory is ordered by reference."""
    parts = [service("b"), deployment("b"), deployment("a"), namespace("n")]
    assert [each.ref for each in cluster(parts)] == [each.ref for each in cluster(parts[::-1])]


def test_kinds_are_told_apart_by_group() -> None:
    """Istio's Gateway and the Gateway API's are different kinds."""
    found = cluster(
        {"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "a"}},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "b"}},
    )
    assert len(found.of_kind("Gateway")) == 2
    assert [each.ref.name for each in found.of_kind("Gateway", "networking.istio.io")] == ["a"]
    assert [each.ref.name for each in found.in_namespace("default", "Gateway", "networking.istio.io")] == [
        "a"
    ]


def test_changes_make_a_new_inventory() -> None:
    """replace and remove leave the inventory that they were asked of as it was."""
    before = cluster(deployment(), service())
    changed = deployment()
    changed["spec"]["replicas"] = 3
    after = before.replace(manifest_of(changed))
    ref = Ref("apps", "Deployment", "default", "httpbin")
    found, kept = after.get(ref), before.get(ref)
    assert found is not None and found.data["spec"]["replicas"] == 3
    assert kept is not None and "replicas" not in kept.data["spec"]
    assert ref not in before.remove(ref) and ref in before
    assert after.of_kind("Deployment")[0].data["spec"]["replicas"] == 3


def test_many_changes_at_once() -> None:
    """Removals come first, so a reference can be removed and added anew."""
    before = cluster(deployment("a"), deployment("b"))
    after = before.changed([manifest_of(deployment("a"))], [each.ref for each in before])
    assert [each.ref.name for each in after] == ["a"]
    assert len(Inventory()) == 0


def test_stable_omits_volatile_fields() -> None:
    """Status, managed fields and kubectl's own annotation do not make two readings differ."""
    app = deployment()
    dumped = copy.deepcopy(app)
    dumped["status"] = {}
    dumped["metadata"] |= {
        "uid": "1", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }  # fmt: skip
    assert stable(app) == stable(dumped)
    dumped["metadata"]["annotations"]["a"] = "b"
    assert stable(app) != stable(dumped)


def test_dig_never_raises() -> None:
    """Paths through absent, null and wrongly typed values give the default."""
    data = {"a": {"b": [{"c": 1}, None]}, "n": None}
    assert objects.dig(data, "a", "b", 0, "c") == 1
    assert objects.dig(data, "a", "b", 1, "c", default=7) == 7
    assert objects.dig(data, "a", "b", 5) is None
    assert objects.dig(data, "n", "x") is None
    assert objects.dig("text", "x", default=()) == ()


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, True),
        (None, False),
        ({"matchLabels": {"app": "a"}}, True),
        ({"matchLabels": {"app": "b"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}, True),
        ({"matchExpressions": [{"key": "x", "operator": "In", "values": [None]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}, False),
        ({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["a"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Near", "values": ["a"]}]}, False),
        ({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
    ],
)
def test_selectors_match_labels(selector: Any, expected: bool) -> None:
    """Label selectors as Kubernetes matches them: empty is everything, null is nothing."""
    assert objects.selects(selector, {"app": "a"}) is expected


def test_pod_templates_of_all_owners_are_found() -> None:
    """Deployment, Job and CronJob keep their template in different places; a Pod is its own."""
    template: dict[str, Any] = {"spec": {"containers": []}}
    base = {"apiVersion": "batch/v1", "metadata": {"name": "j"}}
    assert objects.pod_template({**base, "kind": "Job", "spec": {"template": template}}) == template
    cron = {"spec": {"jobTemplate": {"spec": {"template": template}}}}
    assert objects.pod_template({**base, "kind": "CronJob", **cron}) == template
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    assert objects.pod_template(pod) == pod
    assert objects.pod_template({"kind": "Service"}) is None
