"""docs/pitfalls.md and the code have the same pitfalls, and each has a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import meshscrape.observe.pitfalls as observed_pitfalls

ROOT = Path(__file__).parents[3]
CODE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")


def codes_in_the_source() -> set[str]:
    """First arguments of Pitfall(...), and the tables and variables that give them."""
    found: set[str] = set()
    folder = Path(observed_pitfalls.__file__).parent
    for path in (*folder.glob("*.py"), folder.parent / "refusals.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Pitfall", "PodRefusal")
            ):
                found |= constants(node.args[0])
            elif isinstance(node, ast.Tuple) and len(node.elts) == 3:
                found |= {text for text in constants(node.elts[0]) if CODE.fullmatch(text)}
            elif isinstance(node, ast.Assign) and name_of(node.targets[0]) == "code":
                found |= constants(node.value) - {"endpointslices"}
    return found


def constants(node: ast.expr) -> set[str]:
    return {
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def codes_in_the_documentation() -> set[str]:
    text = (ROOT / "docs/pitfalls.md").read_text()
    return set(re.findall(r"^### (\S+)$", text, re.MULTILINE))


def test_every_documented_pitfall_is_in_the_source() -> None:
    """No documentation of what is not found any more; and nothing found that is not documented."""
    assert codes_in_the_documentation() == codes_in_the_source()


def test_every_pitfall_has_a_test() -> None:
    """Each code is in a test of this folder."""
    here = Path(__file__)
    tests = "".join(path.read_text() for path in here.parent.glob("test_pitfalls_*.py") if path != here)
    assert sorted(code for code in codes_in_the_documentation() if f'"{code}"' not in tests) == []


def test_every_pitfall_is_documented_in_full() -> None:
    """The problem, how it is found, what to do."""
    text = (ROOT / "docs/pitfalls.md").read_text()
    for section in text.split("\n### ")[1:]:
        for word in ("Problem", "Found by", "Remedy"):
            assert f"- **{word}:** " in section, section.splitlines()[0]
