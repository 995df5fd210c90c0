"""Who wrote a field, by the API server's record of managers."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.plan.inverse.evidence import wrote

FIRST, THEN = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
AT = ("spec", "template", "spec", "a")
"""A path with one step twice."""


def entry(manager: str, time: str | None, *names: str) -> dict[str, Any]:
    """An entry of managed fields that has these fields of a pod template's specification."""
    fields = {f"f:{name}": {} for name in names}
    return {
        "manager": manager,
        "operation": "Update",
        "fieldsV1": {"f:spec": {"f:template": {"f:spec": fields}}} if names else {},
        **({"time": time} if time else {}),
    }


@pytest.mark.parametrize(
    ("entries", "answer"),
    [
        ([], None),
        ([entry("meshscrape", FIRST, "a")], True),
        ([entry("meshscrape", FIRST, "a"), entry("meshscrape", THEN, "b")], True),
        ([entry("kubectl", FIRST, "a")], False),
        ([entry("meshscrape", FIRST, "b"), entry("kubectl", THEN, "a")], True),
        ([entry("meshscrape", FIRST, "b"), entry("kubectl", FIRST, "a")], True),
        ([entry("meshscrape", THEN, "b"), entry("kubectl", FIRST, "a")], False),
        ([entry("meshscrape", FIRST, "b"), entry("kubectl", THEN, "c")], False),
        ([entry("meshscrape", None, "b"), entry("kubectl", THEN, "a")], False),
        ([entry("meshscrape", None, "b"), entry("kubectl", None, "a")], False),
        ([entry("meshscrape", FIRST)], False),
        ([{"manager": "meshscrape", "time": FIRST}], False),
    ],
    ids=[
        "no record", "meshscrape", "meshscrape twice", "another", "another since",
        "another at the same time", "another before", "another field since", "no time",
        "no times", "no fields", "nothing",
    ],
)  # fmt: skip
def test_managed_fields_show_who_wrote(entries: Any, answer: bool | None) -> None:
    """A field that another manager changed after meshscrape wrote to the object counts as written by it."""
    assert wrote({"metadata": {"managedFields": entries}}, AT) is answer


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"f:spec": {}}, True),
        ({"f:spec": {"f:template": {}}}, True),
        ({"f:spec": {"f:template": {"f:spec": {"f:a": {"f:b": {}}}}}}, True),
        ({"f:spec": {"f:template": {"f:spec": "no mapping"}}}, False),
        ({"f:status": {}}, False),
    ],
    ids=["atomic", "atomic within", "a part of it", "odd", "elsewhere"],
)
def test_whoever_wrote_around_a_field_wrote_it(fields: Any, answer: bool) -> None:
    """An atomic field is one that managed fields do not look into."""
    entries = [{"manager": "meshscrape", "time": FIRST, "fieldsV1": fields}]
    assert wrote({"metadata": {"managedFields": entries}}, AT) is answer


def test_list_items_are_told_apart_by_their_key() -> None:
    variables = {".": {}, 'k:{"name":"A"}': {".": {}, "f:value": {}}, "v:5": {}}
    fields = {"f:spec": {"f:containers": {".": {}, 'k:{"name":"istio-proxy"}': {"f:env": variables}}}}
    data = {"metadata": {"managedFields": [{"manager": "meshscrape", "time": FIRST, "fieldsV1": fields}]}}
    proxy = ("spec", "containers", ("name", "istio-proxy"), "env")
    assert wrote(data, (*proxy, ("name", "A"))) is True
    assert wrote(data, (*proxy, ("name", "B"))) is False
    assert wrote(data, ("spec", "containers", ("name", "app"), "env")) is False


@pytest.mark.parametrize("key", ["k:{bad", "k:[]", "k:"])
def test_a_malformed_record_of_managers_shows_nothing(key: str) -> None:
    """A dump may have been edited."""
    items = {"f:spec": {"f:containers": {key: {"f:env": {}}}}}
    data = {"metadata": {"managedFields": [{"manager": "meshscrape", "fieldsV1": items}]}}
    assert wrote(data, ("spec", "containers", ("name", "istio-proxy"), "env")) is False
