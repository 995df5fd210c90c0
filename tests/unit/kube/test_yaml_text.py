"""Edits of a user's own YAML text."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.kube.yaml_text import dump, load_text, rewrite

CONFIG = """\
# top
global: {scrape_interval: 15s}   # global

scrape_configs:
# first
- job_name: a      # a
  relabel_configs:
  - {action: keep, regex: '$1'}
  # after the rules

- job_name: b
  static_configs: []
text: |
  line one
  # not a comment

# the end
"""


def edited(text: str, **changes: Any) -> str:
    return rewrite(text, yaml.safe_load(text) | changes)


def test_nothing_to_change_changes_nothing() -> None:
    """The same data gives the same bytes."""
    assert rewrite(CONFIG, yaml.safe_load(CONFIG)) == CONFIG


def test_items_are_appended_where_their_list_ends() -> None:
    """All lines of before are still there, in order, with their comments."""
    data = yaml.safe_load(CONFIG)
    data["scrape_configs"][0]["relabel_configs"] += [{"action": "drop"}, {"action": "drop", "regex": "x"}]
    data["scrape_configs"].append({"job_name": "c"})
    written = rewrite(CONFIG, data)
    assert yaml.safe_load(written) == data
    rest = iter(written.splitlines())
    assert all(line in rest for line in CONFIG.splitlines())
    assert written.index("- action: drop") < written.index("# after the rules")


def test_keys_are_added_changed_and_removed() -> None:
    """In block style, in flow style, and where a value was empty."""
    assert edited("a: 1 # one\nb: {c: 2}\n", a=2, b={"c": 2, "d": "3"}) == 'a: 2 # one\nb: {c: 2, "d": "3"}\n'
    assert rewrite("a: 1\nb: 2\nc: 3\n", {"a": 1, "c": 3}) == "a: 1\nc: 3\n"
    assert rewrite("a:\n", {"a": {"b": "1"}}) == 'a: {"b": "1"}\n'


def test_a_changed_list_is_written_anew_in_block_style() -> None:
    """Where items in the middle differ, the list alone is replaced, readably."""
    text = "x: 1 # x\nlist:\n- a\n- b\n# tail\ny: 2\n"
    assert edited(text, list=["c", {"d": 1}]) == "x: 1 # x\nlist:\n- c\n- d: 1\n# tail\ny: 2\n"


@pytest.mark.parametrize("text", ['{"a": {"b": 1}}', '{\n  "a": {\n    "b": 1\n  }\n}'])
def test_json_stays_json(text: str) -> None:
    """Annotations are often JSON; some readers take nothing else."""
    import json

    assert json.loads(rewrite(text, {"a": {"b": 1, "c": "2"}})) == {"a": {"b": 1, "c": "2"}}


def test_places_are_counted_in_characters() -> None:
    """Text beyond ASCII before an edit does not move it."""
    assert (
        edited("a: ü €  # çé 😀\nb: {c: x}\n", b={"c": "x", "d": "y"})
        == 'a: ü €  # çé 😀\nb: {c: x, "d": "y"}\n'
    )


def test_text_that_is_not_yaml_is_refused() -> None:
    """With the place, never silently replaced."""
    with pytest.raises(InputError) as caught:
        load_text("a: [b", "here")
    assert (caught.value.code, caught.value.place.file, caught.value.place.line) == ("not-yaml", "here", 2)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["", "x", "true", "1", "a b", "ü: #", "l1\nl2\n", " "]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcde"), inner, max_size=3),
    max_leaves=12,
)
mappings = st.dictionaries(st.sampled_from("abcde"), values, max_size=4)


@given(mappings, mappings, st.booleans())
def test_rewriting_always_spells_what_is_wanted(old: Any, new: Any, flow: bool) -> None:
    """Whatever the text was, its data is exactly what was wanted afterwards."""
    text = yaml.safe_dump(old, default_flow_style=flow)
    assert yaml.safe_load(rewrite(text, copy.deepcopy(new))) == new


@given(mappings)
def test_dumping_keeps_data(data: Any) -> None:
    """What is written reads back as the same."""
    assert yaml.safe_load(dump(data)) == data


def test_strings_that_look_like_other_types_are_quoted() -> None:
    """Annotations are strings: `"15092"`, `"true"`."""
    assert dump({"a": "15092", "b": "true", "c": "x"}) == 'a: "15092"\nb: "true"\nc: x\n'


def test_long_texts_are_literal_blocks() -> None:
    """As people write them."""
    assert dump({"a": "x: 1\ny: 2\n"}) == "a: |\n  x: 1\n  y: 2\n"


def test_shared_parts_get_no_anchors() -> None:
    """Kubernetes' own readers know aliases, people do not like them."""
    part = {"x": 1}
    assert dump({"a": part, "b": part}) == "a:\n  x: 1\nb:\n  x: 1\n"
