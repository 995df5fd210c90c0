"""Single fields that are taken back from an object, and what stays there."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from meshscrape.kube.objects import LAST_APPLIED
from meshscrape.plan.inverse.evidence import FieldPath
from meshscrape.plan.inverse.record import overwritten_in
from meshscrape.plan.inverse.taking import Taking, anything, one_of

CONFIG = "proxy.istio.io/config"
OURS: dict[str, Any] = {"ours": one_of("1")}


def after(
    data: Any, take: Callable[[Taking], None], original: Any = None, written: bool | None = None, **more: Any
) -> tuple[Any, list[str]]:
    """Return the data that is left, and the names of what was kept."""
    taking = Taking(copy.deepcopy(data), original, lambda _: written, **more)
    take(taking)
    return taking.data, taking.kept


def test_accepts_one_of_several_values() -> None:
    assert [one_of("a", "b")(value) for value in ("a", "b", "c")] == [True, True, False]


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ({"a": {"key": 1, "other": 2}}, {"a": {"other": 2}}),
        ({"a": {"key": 1}}, {"a": {}}),
        ({"a": "a key"}, {"a": "a key"}),
        ({"a": {"other": 2}}, {"a": {"other": 2}}),
        ({"a": {"key": 3}}, {"a": {"key": 3}}),
        ({}, {}),
    ],
    ids=["beside another", "alone", "a text", "absent", "another value", "nothing"],
)
def test_takes_a_value_of_its_own(data: Any, left: Any) -> None:
    assert after(data, lambda taking: taking.key(("a",), "key", lambda value: value == 1)) == (left, [])


@pytest.mark.parametrize(
    ("data", "path", "left"),
    [
        ({"labels": {"key": 1}}, ("labels",), {}),
        ({"podMetadata": {"labels": {"key": 1}}}, ("podMetadata", "labels"), {}),
        ({"spec": {"labels": {"key": 1}}}, ("spec", "labels"), {"spec": {}}),
        (
            {"podMetadata": {"labels": {"key": 1}, "x": 1}},
            ("podMetadata", "labels"),
            {"podMetadata": {"x": 1}},
        ),
        ({"key": 1}, (), {}),
    ],
    ids=["at the top", "both", "the inner one", "beside another", "no mapping"],
)
def test_mappings_that_nothing_needs_empty_go_with_their_last_value(data: Any, path: Any, left: Any) -> None:
    assert after(data, lambda taking: taking.key(path, "key")) == (left, [])


@pytest.mark.parametrize(
    ("original", "left"),
    [({"a": {"key": 0}}, {"a": {"key": 0}}), ({"a": {}}, {"a": {}}), ({}, {"a": {}})],
    ids=["another value", "absent", "nothing"],
)
def test_an_original_tells_what_a_value_was(original: Any, left: Any) -> None:
    """Also where managed fields say that another manager wrote it."""
    result = after({"a": {"key": 1}}, lambda taking: taking.key(("a",), "key"), original, False)
    assert result == (left, [])


@pytest.mark.parametrize(
    ("written", "others_recorded", "needs_proof", "goes"),
    [
        (True, False, False, True),
        (True, True, True, True),
        (None, False, False, True),
        (None, False, True, False),
        (None, True, False, False),
        (False, False, False, False),
    ],
)
def test_without_an_original_the_managed_fields_decide(
    written: bool | None, others_recorded: bool, needs_proof: bool, goes: bool
) -> None:
    """If they tell nothing, the value goes, unless a proof is needed or other objects have originals."""
    left, kept = after(
        {"a": {"key": 1}},
        lambda taking: taking.key(("a",), "key", recorded=needs_proof),
        written=written,
        recorded=others_recorded,
    )
    assert (left, kept) == (({"a": {}}, []) if goes else ({"a": {"key": 1}}, ["key"]))


def test_an_overwritten_value_comes_back() -> None:
    applied = {"metadata": {"annotations": {LAST_APPLIED: json.dumps({"a": {"key": "old"}})}}}
    result = after(
        {"a": {"key": "new"}}, lambda taking: taking.key(("a",), "key"), overwritten=overwritten_in(applied)
    )
    assert result == ({"a": {"key": "old"}}, [])


@pytest.mark.parametrize(
    ("text", "original", "written", "left", "kept"),
    [
        ("15091, 15092", None, None, {}, []),
        ("15091,80", None, True, {}, []),
        ("15091, 80, 443", None, None, {"annotations": {"ports": "80,443"}}, []),
        ("15091,80", None, False, {"annotations": {"ports": "15091,80"}}, ["ports"]),
        ("80, 443", None, False, {"annotations": {"ports": "80, 443"}}, []),
        (15091, None, None, {"annotations": {"ports": 15091}}, []),
        ("15091, 15092,80", "15091", False, {"annotations": {"ports": "15091,80"}}, []),
        ("80,15092", "80", None, {"annotations": {"ports": "80"}}, []),
        ("15091, 443", "15091", None, {"annotations": {"ports": "15091, 443"}}, []),
        ("15091, ,443", None, None, {"annotations": {"ports": "443"}}, []),
        ("15091,443", "", False, {"annotations": {"ports": "443"}}, []),
    ],
    ids=[
        "only ours", "with what the mesh excludes", "with others", "another's", "not ours", "no text",
        "one was there", "others were there", "nothing is new", "an empty part", "nothing was there",
    ],
)  # fmt: skip
def test_takes_ports_out_of_a_list(text: Any, original: Any, written: Any, left: Any, kept: Any) -> None:
    """The list goes if only those are left with which meshscrape began it."""
    before = None if original is None else {"annotations": {"ports": original} if original else {}}
    result = after(
        {"annotations": {"ports": text}},
        lambda taking: taking.ports(("annotations",), "ports", ("15091", "15092"), ("80",)),
        before,
        written,
    )
    assert result == (left, kept)


def configured(text: Any, **more: Any) -> tuple[Any, list[str]]:
    """Return the annotation after variables and a field were taken out of it, and what was kept."""
    original = more.pop("original", None)
    left, kept = after(
        {"annotations": {CONFIG: text, "other": "x"}},
        lambda taking: taking.proxy_config(("annotations",), OURS, {"hold": lambda value: value is True}),
        None if original is None else {"annotations": original},
        **more,
    )
    assert left["annotations"]["other"] == "x"
    return left["annotations"].get(CONFIG), kept


@pytest.mark.parametrize("spelling", ["proxyMetadata", "proxy_metadata"])
def test_takes_variables_out_of_the_configuration_of_a_proxy(spelling: str) -> None:
    """In either spelling of Istio's; comments and other settings stay."""
    text = f"hold: true\n# mine\nconcurrency: 2\n{spelling}:\n  ours: '1'\n  theirs: x\n"
    left, kept = configured(text)
    assert yaml.safe_load(left) == {"concurrency": 2, spelling: {"theirs": "x"}}
    assert "# mine\n" in left and kept == []
    assert configured(f"hold: true\n{spelling}:\n  ours: '1'\n") == (None, [])
    assert configured(f"hold: false\n{spelling}:\n  ours: '2'\n")[0] is not None


def test_an_annotation_that_was_the_only_one_goes_with_its_mapping() -> None:
    data = {"annotations": {CONFIG: "proxyMetadata: {ours: '1'}\n"}}
    assert after(data, lambda taking: taking.proxy_config(("annotations",), OURS)) == ({}, [])
    assert after(data, lambda taking: taking.proxy_config(("annotations",), OURS), {}) == ({}, [])


def test_configuration_that_another_wrote_stays() -> None:
    text = "hold: true\nproxyMetadata:\n  ours: '1'\n"
    assert configured(text, written=False) == (text, ["ours", "hold"])
    assert configured(text, recorded=True) == (text, ["ours", "hold"])


@pytest.mark.parametrize("text", ["- a list\n", "{not YAML"])
def test_configuration_that_cannot_be_read_stays(text: str) -> None:
    assert configured(text) == (text, [CONFIG])


def test_annotation_that_is_no_text_stays() -> None:
    assert configured(7) == (7, [])


def test_configuration_is_again_what_its_original_says() -> None:
    """Byte for byte, if nobody has changed it since."""
    original = "proxyMetadata: {ours: '0'}  # mine\n"
    text = "proxyMetadata: {ours: '1'}\n"
    assert configured(text, original={CONFIG: original}) == (original, [])
    since = "proxyMetadata: {ours: '1', theirs: x}\n"
    left, kept = configured(since, original={CONFIG: original}, written=False)
    assert (yaml.safe_load(left), kept) == ({"proxyMetadata": {"ours": "0", "theirs": "x"}}, [])
    for nothing in ({}, {CONFIG: "- a list\n"}):
        assert configured(text, original=nothing, written=False) == (nothing.get(CONFIG), [])


def containers(group: str, *variables: dict[str, Any]) -> Any:
    """A pod specification with the proxy's variables, behind another container."""
    env = copy.deepcopy({"env": list(variables)} if variables else {})
    return {"spec": {group: [{"name": "app", "env": [ONE]}, {"name": "istio-proxy", **env}]}}


ONE, TWO, MINE = ({"name": name, "value": "1"} for name in ("one", "two", "mine"))
WANTED: dict[str, Any] = {"absent": anything, "one": one_of("1"), "two": anything}


def take_env(taking: Taking) -> None:
    taking.env(("spec",), WANTED)


@pytest.mark.parametrize("group", ["containers", "initContainers"])
def test_takes_variables_out_of_the_proxys_container(group: str) -> None:
    """Those of other containers stay, and other variables of the proxy."""
    assert after(containers(group, ONE, MINE, TWO), take_env) == (containers(group, MINE), [])
    assert after(containers(group, ONE, TWO), take_env) == (containers(group), [])
    other = {"name": "one", "value": "2"}
    assert after(containers(group, other), take_env) == (containers(group, other), [])
    assert after(containers(group), take_env) == (containers(group), [])


@pytest.mark.parametrize("group", ["containers", "initContainers"])
def test_variables_of_the_original_come_back(group: str) -> None:
    """As they were, also if their value came from elsewhere; without one, the managed fields decide."""
    elsewhere = {"name": "one", "valueFrom": {"fieldRef": {}}}
    before, today = containers(group, elsewhere), containers(group, ONE, TWO)
    assert after(today, take_env, before, False) == (before, [])
    assert after(today, take_env, written=False) == (today, ["one", "two"])


def test_asks_for_the_path_of_the_field_that_it_takes() -> None:
    """As managed fields spell it: items by their names, mounts by their paths."""
    asked: list[FieldPath] = []
    spec = containers("containers", ONE)["spec"]
    spec["containers"][0]["volumeMounts"] = [{"name": "volume", "mountPath": "/v"}]
    data = {"spec": spec | {"env": [ONE], "volumes": [{"name": "volume"}]}, "notes": {"ports": "1"}}
    data["notes"] |= {CONFIG: "proxyMetadata: {ours: '1'}\n"}
    taking = Taking(data, None, lambda path: bool(asked.append(path)))
    taking.env(("spec",), {"one": anything})
    taking.list_env(("spec",), {"one": anything})
    taking.item(("spec",), "volumes", "volume")
    taking.mount(("spec",), "volume")
    taking.key(("spec",), "volumes")
    taking.ports(("notes",), "ports", ("1",))
    taking.proxy_config(("notes",), OURS)
    assert asked == [
        ("spec", "containers", ("name", "istio-proxy"), "env", ("name", "one")),
        ("spec", "env", ("name", "one")),
        ("spec", "volumes", ("name", "volume")),
        ("spec", "containers", ("name", "app"), "volumeMounts", ("mountPath", "/v")),
        ("spec", "volumes"),
        ("notes", "ports"),
        ("notes", CONFIG),
    ]
    assert taking.kept == ["one", "one", "volume", "/v", "volumes", "ports", "ours"]


def test_takes_variables_out_of_a_list() -> None:
    """Of a mapping that is there."""
    before = {"spec": {"env": [{"name": "one", "value": "0"}]}}

    def take(taking: Taking) -> None:
        taking.list_env(("spec",), WANTED)

    assert after({"spec": {"env": [ONE, TWO]}}, take) == ({"spec": {}}, [])
    assert after({"spec": {"env": [ONE, TWO]}}, take, before) == (before, [])
    assert after({}, take) == ({}, [])


@pytest.mark.parametrize("by", ["name", "mountPath"])
def test_takes_an_item_out_of_a_list(by: str) -> None:
    """Unless the original has it, or another manager wrote it."""
    ours, other = {by: "ours", "x": 1}, {by: "other"}

    def take(taking: Taking) -> None:
        taking.item(("spec",), "list", "ours", by=by)

    assert after({"spec": {"list": [ours, other]}}, take) == ({"spec": {"list": [other]}}, [])
    assert after({"spec": {"list": [ours]}}, take) == ({"spec": {}}, [])
    assert after({"spec": {"list": [ours]}}, take, {"spec": {"list": [other]}}, False) == ({"spec": {}}, [])
    unchanged: list[tuple[Any, Any, list[str]]] = [
        ({"spec": {"list": [ours]}}, {"spec": {"list": [{by: "ours"}]}}, []),
        ({"spec": {"list": [other]}}, None, []),
        ({"spec": {"list": [ours]}}, None, ["ours"]),
        ({"spec": {}}, None, []),
        ({}, None, []),
    ]
    for data, original, kept in unchanged:
        assert after(data, take, original, False) == (data, kept)


@pytest.mark.parametrize("group", ["containers", "initContainers"])
def test_takes_the_mounts_of_a_volume(group: str) -> None:
    """Out of every container; mounts that its original had stay, and those of other volumes."""

    def pod(*mounts: str) -> Any:
        items = [{"name": name, "mountPath": f"/{name}"} for name in mounts]
        return {
            "spec": {
                group: [
                    {"name": "bare"},
                    {"name": "app", "volumeMounts": items} if items else {"name": "app"},
                ]
            }
        }

    def take(taking: Taking) -> None:
        taking.mount(("spec",), "ours")

    assert after(pod("ours", "other"), take) == (pod("other"), [])
    assert after(pod("ours"), take) == (pod(), [])
    assert after(pod("ours"), take, pod("other"), False) == (pod(), [])
    assert after(pod("ours"), take, pod("ours")) == (pod("ours"), [])
    assert after(pod("ours"), take, written=False) == (pod("ours"), ["/ours"])
