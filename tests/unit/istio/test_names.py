"""Every name that modules share is spelled once, in `istio/names.py`."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import meshscrape
from meshscrape.istio import names

_SOURCE = Path(meshscrape.__file__).parent
_NAMES = Path(names.__file__)
_KNOWN = {value: name for name, value in vars(names).items() if isinstance(value, str) and name.isupper()}
# Text like these is a name of Istio, Kubernetes or meshscrape even if `names.py` does not have it yet.
_MARKS = (
    ".istio.io",
    "istio.io/",
    ".k8s.io",
    "kubernetes.io/",
    "prometheus.io/",
    "meshscrape.io/",
    ".coreos.com",
)


def _literals(source: str) -> list[tuple[str, int]]:
    """Return the string constants of a module with their lines, docstrings left out."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        (node.value, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


@cache
def _places() -> dict[str, list[str]]:
    """Return where each string constant of the package stands, `names.py` left out."""
    places: dict[str, list[str]] = defaultdict(list)
    for file in sorted(_SOURCE.rglob("*.py")):
        if file != _NAMES:
            for text, line in _literals(file.read_text("utf-8")):
                places[text].append(f"{file.relative_to(_SOURCE)}:{line}")
    return places


def test_known_names_are_spelled_in_one_module() -> None:
    """A module that spells a known name again would not follow when the name changes."""
    again = {text: places for text, places in _places().items() if text in _KNOWN}
    assert again == {}, "import these from meshscrape.istio.names"


def test_names_that_two_modules_use_are_known() -> None:
    """A qualified name that stands in two modules belongs into `names.py`."""
    shared = {
        text: places
        for text, places in _places().items()
        if len({place.partition(":")[0] for place in places}) > 1
        and ((" " not in text and any(mark in text for mark in _MARKS)) or text.startswith("MESHSCRAPE_"))
    }
    assert shared == {}, "move these to meshscrape.istio.names"


def test_every_name_has_one_constant() -> None:
    """Two constants of one value would be two names of one thing."""
    constants = [name for name, value in vars(names).items() if isinstance(value, str) and name.isupper()]
    assert len(constants) == len(_KNOWN)


def test_the_search_finds_names_in_code_and_not_in_docstrings() -> None:
    """The check sees the default value, not the docstrings."""
    source = '"""istio.io/rev"""\ndef f(a="istio.io/rev"):\n  """istio.io/rev"""\n  return f"{a}", "a"\n'
    assert [line for text, line in _literals(source) if text == "istio.io/rev"] == [2]
