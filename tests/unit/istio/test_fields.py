"""YAML documents: safe, strict, and with the place of everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio.fields import Document, Field, load_documents, spell


def test_documents_are_plain_data_with_their_first_line() -> None:
    """Empty documents are left out; numbers as keys become strings, timestamps stay text."""
    documents = load_documents(
        "# comment\n---\na: 1\n---\n---\nb: [x, 2026-01-01, true, null, 1.5]\n9080: {c: 'yes'}\n", "m.yaml"
    )
    assert [(d.data, d.where) for d in documents] == [
        ({"a": 1}, "m.yaml:3"),
        ({"b": ["x", "2026-01-01", True, None, 1.5], "9080": {"c": "yes"}}, "m.yaml:6"),
    ]
    assert load_documents("", "m.yaml") == []


def test_every_field_knows_its_line() -> None:
    """The line of the key; of the nearest field around it when it is missing; within literal blocks."""
    (document,) = load_documents(
        "\na:\n  b:\n    - c: 1\n    - d: |\n        first\n        second\n", "m.yaml"
    )
    root = Field.of(document, "Thing x/y")
    assert root.where == "m.yaml:2: Thing x/y"
    assert root.at("a").items("b")[0].at("c").where == "m.yaml:4: Thing x/y: a.b[0].c"
    assert root.at("a").at("nowhere").where == "m.yaml:2: Thing x/y: a.nowhere"
    block = root.at("a").items("b")[1].at("d")
    assert str(document.place_of(block.path, within=2)) == "m.yaml:7"
    assert str(document.place_of(("a", "b", 0, "c"), within=2)) == "m.yaml:4"


def test_a_document_from_elsewhere_needs_no_lines() -> None:
    """Objects that an API returned have a place all the same."""
    document = Document({"spec": {"replicas": 2}}, "cluster")
    assert Field.of(document, "Deployment a/b").at("spec").where == "cluster: Deployment a/b: spec"


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        ("a: 1\nb: [\n", "m.yaml:3", "not-yaml"),
        ("a: 1\n\tb: 2\n", "m.yaml:2", "not-yaml"),
        ("a: 1\nb: 2\na: 3\n", "m.yaml:3", "repeated-key"),
        ("x:\n  y:\n    a: 1\n    a: 1\n", "m.yaml:4", "repeated-key"),
        ("- 1\n", "m.yaml:1", "no-object"),
        ("---\na: 1\n---\njust text\n", "m.yaml:4", "no-object"),
        ("a: !!python/object/apply:os.system [x]\n", "m.yaml:1", "yaml-type"),
        ("a: 1\nb: !custom 2\n", "m.yaml:2", "yaml-type"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "m.yaml:3", "merge-key"),
        ("? [a]\n: b\n", "m.yaml:1", "not-a-string"),
        ("a: 1\non: 2\n", "m.yaml:2", "not-a-string"),
        ("a: !!int x\n", "m.yaml:1", "yaml-type"),
        ("a: !!bool maybe\n", "m.yaml:1", "yaml-type"),
        ("a: *nobody\n", "m.yaml:1", "not-yaml"),
        ("a: \x00\n", "m.yaml", "not-yaml"),
        ("a: \ud800\n", "m.yaml", "not-yaml"),
        ("a: &a [*a]\n", "m.yaml:1", "endless-alias"),
        ("[" * 100_000, "m.yaml:1", "too-deep"),
        ("a:\n  " + "{b: " * 200, "m.yaml:2", "too-deep"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_line(text: str, place: str, code: str) -> None:
    """One line, the file's name and the line first."""
    with pytest.raises(InputError) as caught:
        load_documents(text, "m.yaml")
    assert (str(caught.value.place), caught.value.code) == (place, code)
    assert "\n" not in str(caught.value)


def test_aliases_cannot_make_a_small_file_huge() -> None:
    """Four to the twelfth nodes are refused; an honest alias is fine."""
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 4)}]\n" for i in range(12)
    )
    with pytest.raises(InputError) as caught:
        load_documents(bomb, "m.yaml")
    assert caught.value.code == "too-large"
    (document,) = load_documents("a: &x {b: 1}\nc: *x\n", "m.yaml")
    assert document.data == {"a": {"b": 1}, "c": {"b": 1}}


def test_paths_are_spelled_as_people_read_them() -> None:
    """Dots, indexes, and quotes where a key has dots of its own."""
    assert spell(("spec", "containers", 0, "ports")) == "spec.containers[0].ports"
    assert spell(("metadata", "annotations", "a/b")) == "metadata.annotations['a/b']"
    assert spell(()) == ""


@given(st.text() | st.text("-:[]{}&*!|>'\"#%@`ab \n\t0", max_size=60))
def test_arbitrary_text_is_documents_or_an_input_error(text: str) -> None:
    """No file breaks the loader."""
    try:
        documents = load_documents(text, "m.yaml")
    except InputError as error:
        assert str(error).startswith("m.yaml")
        return
    assert all(isinstance(document.data, dict) for document in documents)
