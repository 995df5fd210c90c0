"""Reading manifests and dumps: the fast way gives what the strict way gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.kube.manifests import load_manifests
from support.examples import CLUSTERS
from support.objects import deployment, pod_of, service
from support.upstream import needs_upstream, sample_files


class _Plain(yaml.SafeDumper):
    """As kubectl writes: no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(data: Any) -> str:
    return yaml.dump(data, Dumper=_Plain, default_flow_style=False)


def dumped_list(items: list[Any]) -> str:
    return "apiVersion: v1\nitems:\n" + (dump(items) if items else "") + "kind: List\nmetadata: {}\n"


def read(text: str) -> list[Any]:
    return [each.data for each in load_manifests(text.splitlines(keepends=True), "x.yaml")]


@needs_upstream
@pytest.mark.parametrize("file", sample_files(), ids=lambda file: file.name)
def test_samples_read_as_the_strict_loader_reads_them(file: Path) -> None:
    """Every sample gives the data, and the places, of the strict loader."""
    text = file.read_text()
    strict = load_documents(text, "x.yaml")
    fast = list(load_manifests(text.splitlines(), "x.yaml"))
    assert [each.data for each in fast] == [each.data for each in strict]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_dump_gives_the_objects(name: str) -> None:
    """kubectl's YAML list, a stream of documents and JSON give the same objects."""
    wanted = CLUSTERS[name]()
    assert read(dumped_list(wanted)) == wanted
    assert read("---\n".join(dump(each) for each in wanted)) == wanted
    assert read(json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}, indent=4)) == wanted
    assert read(json.dumps(wanted[0])) == wanted[:1]


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30),
    st.sampled_from([
        "yes", "No", "1e3", "0x1f", "010", "1_000", "12:30:45", "2026-01-02", "~", "null", "=", "a: b", "- x",
        "a #b", "", "10.0.0.1", "  lead", "trail ", "'", '"', "\\", "{}", "[]", "*", "&a", "!t", "%", "@",
        "`", ">", "5Gi", "100m", ".5", "1.5", "0o7", "0b1",
        "on", "y", "a:", ":a", "---", "...", "# a", "? a", "|",
    ]),
    st.sampled_from(
        ["line\nline\n", "a\n\n\nb", "\n", "a\n", "x" * 200, "word " * 40, "|", "a\n---\nb\n", "\ta"]
    ),
)  # fmt: skip
_KEYS = st.one_of(
    st.from_regex(r"[A-Za-z][A-Za-z0-9_./-]{0,12}", fullmatch=True),
    st.sampled_from(
        ["on", "yes", "a.b/c", "f:x", "0", "1.5", "'q'", "a b", "-", "?", "k: v", ".dockerconfigjson"]
    ),
)
_DATA = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=20,
)


@given(st.dictionaries(_KEYS, _DATA, max_size=5))
def test_any_data_in_plain_style_reads_as_it_was_written(data: dict[str, Any]) -> None:
    """Whatever strings, numbers and nesting an object holds, reading gives the data that was dumped."""
    item = {"apiVersion": "example.io/v1", "kind": "Any", "metadata": {"name": "a"}, "data": data}
    other = {**item, "metadata": {"name": "b"}}
    assert read(dumped_list([item, other])) == [item, other]


@given(_DATA)
def test_indented_sequences_and_comments_read_too(data: Any) -> None:
    """The style of hand-written manifests (indented sequences, comments) gives the same data."""
    item = {"apiVersion": "example.io/v1", "kind": "Any", "metadata": {"name": "a"}, "data": {"x": data}}

    class Indented(_Plain):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    text = yaml.dump(item, Dumper=Indented, default_flow_style=False)
    assert read(f"# a comment\n{text}# another\n") == [item]


def test_equal_blocks_are_shared_in_memory() -> None:
    """What pods of a workload have in common is there once: dumps of large clusters fit into memory."""
    app = deployment()
    pods = [pod_of(app, name=f"httpbin-{index}") for index in range(3)]
    first, *others = read(dumped_list(pods))
    for other in others:
        assert other["spec"]["initContainers"] is first["spec"]["initContainers"]
        assert other["metadata"] is not first["metadata"]


def test_json_is_shared_and_read_item_by_item() -> None:
    """A dump in JSON shares equal parts as well, and knows where each item begins."""
    app = deployment()
    pods = [pod_of(app, name=f"httpbin-{index}") for index in range(3)]
    text = json.dumps({"apiVersion": "v1", "items": pods, "kind": "List", "metadata": {}}, indent=4)
    found = list(load_manifests(text.splitlines(), "x.json"))
    assert [each.data for each in found] == pods
    first, *others = found
    for other in others:
        assert other.data["spec"]["initContainers"] is first.data["spec"]["initContainers"]
        number = int(other.where.partition(":")[2].partition(":")[0])
        assert text.splitlines()[number - 1] == "        {"


def test_values_of_different_types_are_not_equal() -> None:
    """1, 1.0 and true are equal for Python, and different data."""
    data = {"a": [1, 1.0, True, 0, False, "1"], "b": [True, 1, 1.0, "1", False, 0]}
    item = {"apiVersion": "example.io/v1", "kind": "Any", "metadata": {"name": "a"}, "data": data}
    (found,) = read(json.dumps({"items": [item], "kind": "List", "apiVersion": "v1"}, indent=2))
    for key, values in data.items():
        assert [(type(each), each) for each in found["data"][key]] == [(type(each), each) for each in values]


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("a: 1\n---\napiVersion: v1\nkind: A\nmetadata: {name: [}\n", "x.yaml:5", "not YAML"),
        ("kind: A\n", "x.yaml:1", "not a Kubernetes object"),
        ("apiVersion: v1\nkind: A\nmetadata:\n  name: a\n b: 1\n", "x.yaml:5", "not YAML"),
        ("\n\napiVersion: v1\nkind: A\nmetadata:\n  name: !!python/object:os.system x\n", "x.yaml:6", "tag"),
        ("apiVersion: v1\nkind: A\nx: &a 1\nmetadata: {<<: *a}\n", "x.yaml:4", "merge key"),
        ("apiVersion: v1\nkind: A\nmetadata: {}\n", "x.yaml:1", "without a name"),
        ('{\n  "items": [\n    {\n      "kind": "A"\n', "x.yaml:", "not YAML"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, place: str, what: str) -> None:
    """Errors name the file's line, in dumps as well."""
    with pytest.raises(InputError, match=what) as caught:
        read(text)
    assert caught.value.where.startswith(place)


def test_objects_have_their_places() -> None:
    """Every object knows the line where it begins, in documents and in lists."""
    text = dump(service()) + "---\n" + dumped_list([deployment("a"), deployment("b")])
    found = list(load_manifests(text.splitlines(), "x.yaml"))
    lines = text.splitlines()
    assert [each.ref.name for each in found] == ["httpbin", "a", "b"]
    for each in found[1:]:
        number = int(each.where.rpartition(":")[2])
        assert lines[number - 1] == "- apiVersion: apps/v1"


def test_deep_nesting_ends_in_an_error() -> None:
    """Nesting without bound is refused, not followed until the stack ends."""
    deep = "".join("  " * depth + "a:\n" for depth in range(300))
    with pytest.raises(InputError, match="nested too deeply"):
        read(
            "apiVersion: v1\nkind: A\nmetadata:\n  name: a\nspec:\n"
            + "\n".join("  " + line for line in deep.splitlines())
        )
    with pytest.raises(InputError):
        read("[" * 100_000)
