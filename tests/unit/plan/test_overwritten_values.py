"""The record of overwritten values in the annotation of an object."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshscrape.istio.names import MANAGED_BY, OVERWRITTEN
from meshscrape.kube.objects import LAST_APPLIED
from meshscrape.plan.inverse.record import forget, overwritten_in, with_record
from meshscrape.plan.model import MANAGER


def recorded(before: Any, after: Any) -> Any:
    """What a change of `spec` would record; None if it records nothing."""
    made = with_record({"spec": before}, {"spec": after})
    text = made.get("metadata", {}).get("annotations", {}).get(OVERWRITTEN)
    return None if text is None else json.loads(text)


@pytest.mark.parametrize("old", ["text", 5, True])
def test_records_a_single_value_that_changes(old: Any) -> None:
    assert recorded({"a": {"b": old}}, {"a": {"b": "new"}}) == {"/spec/a/b": old}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": "same"}, {"a": "same"}),
        ({"a": "gone"}, {}),
        ({}, {"a": "added"}),
        ({"a": "two\nlines"}, {"a": "other\nlines"}),
        ({"a": [1]}, {"a": [2]}),
        ({"a": {"b": "c"}}, {"a": "now a text"}),
    ],
    ids=["same", "removed", "added", "several lines", "list", "mapping"],
)
def test_records_nothing_else(old: Any, new: Any) -> None:
    assert recorded(old, new) is None


def test_a_text_in_the_place_of_a_mapping_is_recorded() -> None:
    assert recorded({"a": "text"}, {"a": {"b": "c"}}) == {"/spec/a": "text"}


def test_objects_of_meshscrape_need_no_record() -> None:
    """They are deleted on the way back."""
    before = {"metadata": {"labels": {MANAGED_BY: MANAGER}}, "spec": {"a": "old"}}
    after = {**before, "spec": {"a": "new"}}
    assert with_record(before, after) is after


def test_an_older_record_stays() -> None:
    """Its value is the user's; that of today is an earlier plan's. The keys are in order."""
    notes = {OVERWRITTEN: json.dumps({"/spec/a": "first"})}
    before = {"metadata": {"annotations": notes}, "spec": {"b": "old", "a": "second"}}
    made = with_record(before, {"metadata": {"annotations": notes}, "spec": {"b": "new", "a": "third"}})
    assert made["metadata"]["annotations"][OVERWRITTEN] == '{"/spec/a": "first", "/spec/b": "old"}'


def test_the_last_applied_value_counts_if_nothing_is_recorded() -> None:
    """If it is a single value that differs from today's."""
    applied = {"spec": {"a": "mine", "b": "same", "c": [1], "d": {"e": 1}}}
    notes = {LAST_APPLIED: json.dumps(applied), OVERWRITTEN: json.dumps({"/spec/f": "recorded"})}
    before = overwritten_in({"metadata": {"annotations": notes}})
    today = {"a": "ours", "b": "same", "c": [2], "d": {"e": 2}, "f": "ours"}
    assert {key: before.value(("spec", key), value) for key, value in today.items()} == {
        "a": "mine", "b": None, "c": None, "d": None, "f": "recorded",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "no JSON", "[1]"])
def test_an_unreadable_record_is_empty(text: str) -> None:
    before = overwritten_in({"metadata": {"annotations": {OVERWRITTEN: text}}})
    assert before.value(("spec", "a"), "today") is None


def test_forgets_only_its_own_annotation() -> None:
    """Annotations that are empty then go with it, and those that were empty stay."""
    for notes, left in (
        ({OVERWRITTEN: "{}"}, None),
        ({OVERWRITTEN: "{}", "other": "x"}, {"other": "x"}),
        ({}, {}),
        ({"other": "x"}, {"other": "x"}),
    ):
        data: Any = {"metadata": {"annotations": dict(notes)}}
        forget(data)
        assert data["metadata"].get("annotations") == left
    bare: Any = {"metadata": {}}
    forget(bare)
    assert bare == {"metadata": {}}
