"""Files as people have them: what kubectl reads past is told, what an API server refuses is refused."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.kube.manifests import Notice, load_manifests


def told(text: str) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the objects of a text, and the codes and lines of what is told about it."""
    notices: list[Notice] = []
    found = [str(item.ref) for item in load_manifests(text.splitlines(keepends=True), "x.yaml", notices)]
    lines = [str(notice.place).removeprefix("x.yaml:").partition(":")[0] for notice in notices]
    return found, [(notice.code, int(line)) for notice, line in zip(notices, lines, strict=True)]


_NAMED = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n"
_TWICE = "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: b\n  name: a\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (_TWICE, 5),
        (_NAMED + "kind: ServiceAccount\n", 4),
        ("\n# x\n---\n" + _TWICE, 8),
        ("apiVersion: v1\nitems:\n- " + _TWICE.replace("\n", "\n  ").strip() + "\nkind: List\n", 7),
        ('{"apiVersion": "v1", "kind": "ServiceAccount",\n"metadata": {"name": "b",\n"name": "a"}}\n', 3),
        ("{apiVersion: v1, kind: ServiceAccount,\nmetadata: {name: b, name: a}}\n", 2),
    ],
)
def test_the_last_of_repeated_keys_counts_with_a_notice(text: str, line: int) -> None:
    """As for kubectl; the notice has the line of the repetition, in dumps as well."""
    assert told(text) == (["ServiceAccount default/a"], [("repeated-key", line)])


@pytest.mark.parametrize(
    "text",
    [
        "- op: add\n  path: /spec/x\n  value: 1\n",
        '[{"op": "remove", "path": "/spec/x"}]\n',
        "just text\n",
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes: [{role: control-plane}]\n",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n",
        "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nmetadata: {name: a}\n",
        "apiVersion: v1\nkind: Config\nclusters: []\n",
        "apiVersion: kubeadm.k8s.io/v1beta3\nkind: ClusterConfiguration\n",
        "apiVersion: example.io/v1\nkind: Plan\nsteps: []\n",
        "replicas: 3\nimage: {tag: v1}\n",
        '{"replicas": 3}\n',
    ],
)
def test_document_that_is_not_a_cluster_object_is_skipped_with_a_notice(text: str) -> None:
    """Patches, configurations of tools and values lie beside manifests; the objects around them are read."""
    assert told(text) == ([], [("skipped", 1)])
    found, notices = told(f"{_NAMED}---\n{text}---\n{_NAMED}")
    assert found == ["ServiceAccount default/a"] * 2
    assert notices == [("skipped", 5)]


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: apps/v1\nkind: Deployment\nspec: {}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {}\n",
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nspec: {}\n",
        "apiVersion: monitoring.coreos.com/v1\nkind: PodMonitor\n",
        "kind: Deployment\nmetadata: {name: a}\n",
    ],
)
def test_an_object_without_a_name_or_version_is_refused(text: str) -> None:
    """An API server would refuse it: it must not be passed over."""
    with pytest.raises(InputError):
        told(text)


def test_an_istio_operator_needs_no_name() -> None:
    """istioctl reads it from a file; two of them are two objects, in the root namespace."""
    text = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec: {tag: 1.31.0}\n"
    assert told(f"{text}---\n{text}") == (
        [
            "IstioOperator.install.istio.io istio-system/x.yaml:1",
            "IstioOperator.install.istio.io istio-system/x.yaml:5",
        ],
        [],
    )
    named = text.replace("spec:", "metadata: {name: mine, namespace: mesh}\nspec:")
    assert told(named)[0] == ["IstioOperator.install.istio.io mesh/mine"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("x: &x {a: '1', b: '2'}\nmetadata: {name: a, labels: {<<: *x, b: '3'}}\n", {"a": "1", "b": "3"}),
        ("x: &x {a: '1', b: '2'}\nmetadata: {name: a, labels: {b: '3', <<: *x}}\n", {"a": "1", "b": "3"}),
        (
            "x: &x {a: '1'}\ny: &y {a: '2', b: '2'}\nmetadata: {name: a, labels: {<<: [*x, *y]}}\n",
            {"a": "1", "b": "2"},
        ),
        ("metadata: {name: a, labels: {on: '1', no: '2'}}\n", {"true": "1", "false": "2"}),
    ],
)
def test_merge_keys_and_truth_values_as_keys_are_read(text: str, labels: dict[str, str]) -> None:
    """As by kubectl: own fields before merged ones, the first of several merged mappings before the next."""
    text = f"apiVersion: v1\nkind: ServiceAccount\n{text}"
    (found,) = load_manifests(text.splitlines(), "x.yaml")
    assert found.data["metadata"]["labels"] == labels


_TEMPLATE = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {a: "1"}, labels: {b: "2"}}
spec:
  template:
    metadata:
      annotations: {prometheus.io/port: "9545", none: null}
      labels: {app: web}
    spec:
      containers:
      - {name: web, env: [{name: PORT, value: "80"}, {name: FROM, valueFrom: {}}]}
"""


@pytest.mark.parametrize(
    ("old", "new", "field", "value"),
    [
        ('a: "1"', "a: true", "metadata.annotations.a", "true"),
        ('b: "2"', "b: 2", "metadata.labels.b", "2"),
        ('port: "9545"', "port: 9545", "spec.template.metadata.annotations['prometheus.io/port']", "9545"),
        ("app: web}", "app: 1.10}", "spec.template.metadata.labels.app", "1.1"),
        ("app: web}", "app: [web]}", "spec.template.metadata.labels.app", "['web']"),
        ('value: "80"', "value: 80", "spec.template.spec.containers.web.env.PORT", "80"),
    ],
)
def test_an_unquoted_value_is_refused_by_name(old: str, new: str, field: str, value: str) -> None:
    """The API server would refuse it, and a reader that drops it would see another object."""
    assert told(_TEMPLATE)[0] == ["Deployment.apps default/web"]
    with pytest.raises(InputError) as caught:
        told(_NAMED + "---\n" + _TEMPLATE.replace(old, new))
    assert caught.value.code == "not-a-string"
    assert (caught.value.place.text, caught.value.place.field) == ("x.yaml:5", field)
    assert value in caught.value.what


def test_values_of_a_config_map_are_strings() -> None:
    """Numbers and mappings below `data` are refused as by the API server."""
    with pytest.raises(InputError) as caught:
        told("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {port: 80}\n")
    assert caught.value.place.field == "data.port"
