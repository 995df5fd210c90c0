"""What errors about YAML show: a value may be a secret, and a wrong tag must not print it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.kube.yaml_text import load_text

REFUSED = [
    "a: !!int hunter2",
    "a: !!float hunter2",
    "a: !!bool hunter2",
    "a: !hunter2 x",
    "a: !hunter2",
    'a: !!int ""',
    "a: !!binary hunter2",
    "a: !!set hunter2",
    "a: !!str [hunter2]",
    "a: *hunter2",
    "a: hunter2: b",
    'a: "hunter2',
]


@pytest.mark.parametrize("reader", [load_text, load_documents])
@pytest.mark.parametrize("text", REFUSED)
def test_no_value_is_shown(reader: Callable[[str, str], object], text: str) -> None:
    """Each is refused in one line that names the file, without the value."""
    with pytest.raises(InputError) as refused:
        reader(text, "mesh.yaml")
    said = str(refused.value)
    assert "mesh.yaml" in said and "hunter2" not in said and "\n" not in said


@pytest.mark.parametrize("text", ["a: !!timestamp hunter2", "a: 2026-13-45", "a: !!int _", "a: !!float _"])
def test_a_value_that_does_not_fit_its_type_is_an_error_like_others(text: str) -> None:
    """PyYAML raises errors of many kinds for such values; none of them is a traceback."""
    with pytest.raises(InputError, match=r"mesh\.yaml"):
        load_text(text, "mesh.yaml")
