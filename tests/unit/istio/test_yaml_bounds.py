"""Bounds of YAML, for every reader: depth, aliases, repeated keys."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import yaml

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.istio.yaml_bounds import MAX_DEPTH, check_yaml
from meshscrape.kube.yaml_text import load_text, rewrite


def _bomb(levels: int) -> str:
    """Return YAML whose last key stands for 4 to the power of `levels` nodes."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 4)}]" for i in range(levels)]
    return "\n".join(lines) + "\n"


def _nested(levels: int) -> str:
    return "".join("  " * depth + "a:\n" for depth in range(levels))


def _by_alias(levels: int) -> str:
    """Return YAML that is shallow as written and deep as read."""
    return "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{b: *a{i}}}\n" for i in range(levels))


@pytest.mark.parametrize("read", [load_documents, load_text])
@pytest.mark.parametrize(
    ("text", "line", "code"),
    [
        (_bomb(12), 9, "too-large"),
        ("a: &a [*a]\n", 1, "endless-alias"),
        ("x: 1\na: &a\n  b: {c: *a}\n", 3, "endless-alias"),
        (_nested(MAX_DEPTH + 2), MAX_DEPTH + 1, "too-deep"),
        (_by_alias(MAX_DEPTH + 2), MAX_DEPTH, "too-deep"),
        ("[" * 100_000, 1, "too-deep"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5, "repeated-key"),
        ('{"a": 1,\n "a": 2}\n', 2, "repeated-key"),
        ("a: [{b: 1, b: 2}]\n", 1, "repeated-key"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else str(value),
)
def test_both_readers_refuse_the_same_texts(
    read: Callable[[str, str], object], text: str, line: int, code: str
) -> None:
    """Manifests and the texts inside of annotations and ConfigMaps have the same bounds."""
    with pytest.raises(InputError) as caught:
        read(text, "m.yaml")
    assert caught.value.code == code
    assert (caught.value.place.file, caught.value.place.line) == ("m.yaml", line)


def test_an_alias_bomb_costs_no_time() -> None:
    """What an alias stands for is counted, not made: it took minutes before."""
    began = time.process_time()
    with pytest.raises(InputError):
        rewrite(_bomb(40), {"a0": ["y"]})
    assert time.process_time() - began < 2


def test_aliases_within_the_bound_are_read() -> None:
    """People share parts of a Prometheus configuration by alias."""
    text = "a: &x {b: [1, 2]}\nc: *x\nd: [*x, *x]\n"
    part = {"b": [1, 2]}
    assert load_text(text, "m.yaml") == {"a": part, "c": part, "d": [part, part]}
    check_yaml(_bomb(6), "m.yaml")


def test_a_large_text_without_aliases_is_read() -> None:
    """The bound is about what aliases add; what is written out costs only what it weighs."""
    check_yaml("a:\n" + "- 1\n" * 250_000, "m.yaml")


def test_an_anchor_counts_in_its_own_document_only() -> None:
    """Anchors end with their document, and a second one of the same name takes its place."""
    check_yaml("a: &x 1\nb: *x\n---\na: &x [1, 2]\nb: *x\nc: &x 2\nd: *x\n", "m.yaml")
    with pytest.raises(InputError):
        load_documents("a: &x 1\n---\nb: *x\n", "m.yaml")


def test_what_aliases_add_counts_per_document() -> None:
    """Many documents in one file may each use aliases."""
    part = "a: &a\n" + "- 1\n" * 1000 + "".join(f"b{index}: *a\n" for index in range(150))
    check_yaml(f"{part}---\n{part}", "m.yaml")


def test_repeated_keys_can_be_reported_instead() -> None:
    """Every repetition is told with its line in the file."""
    told: list[tuple[str, int]] = []
    check_yaml(
        "a: 1\nb: {c: 1, c: 2}\na: 3\n",
        "m.yaml",
        first_line=11,
        on_repeated=lambda key, line: told.append((key, line)),
    )
    assert told == [("c", 12), ("a", 13)]


def test_text_that_is_no_yaml_is_left_to_the_loader() -> None:
    """The loader's error says more."""
    with pytest.raises(yaml.YAMLError):
        check_yaml("a: [\n", "m.yaml")
