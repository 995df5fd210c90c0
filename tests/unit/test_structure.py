"""The structure of the package: the two lists of pyproject.toml compared with the tree, and unique names."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"

# Ways to read a clock or a file that no import shows: methods of datetime and pathlib, and the built-in open.
EFFECTS = {"now", "utcnow", "today", "open", "read_text", "read_bytes", "write_text", "write_bytes", "exists"}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name; packages are named by themselves."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


@cache
def purity_lists() -> tuple[list[str], list[str]]:
    """Return the pure and the effectful entries as pyproject.toml declares them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each["name"] == "pure modules do no I/O"]
    effectful = [name for name in contract["forbidden_modules"] if name.startswith("meshscrape.")]
    return contract["source_modules"], effectful


def covers(entry: str, module: str) -> bool:
    """Return whether an entry names the module or a package that holds it."""
    return module == entry or module.startswith(f"{entry}.")


def is_documentation_only(path: Path) -> bool:
    """Return whether a module holds a docstring and nothing else."""
    return all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in parsed(path).body
    )


@cache
def pure_modules() -> dict[str, Path]:
    """Return the modules that the pure list covers."""
    pure, _ = purity_lists()
    return {name: path for name, path in modules().items() if any(covers(entry, name) for entry in pure)}


def test_every_module_is_on_exactly_one_list() -> None:
    """A new module is declared pure or effectful; packages of both kinds hold no code themselves."""
    pure, effectful = purity_lists()
    undecided = []
    for name, path in modules().items():
        if name == "meshscrape":
            continue
        sides = [any(covers(entry, name) for entry in entries) for entries in (pure, effectful)]
        if sum(sides) != 1 and not (not any(sides) and is_documentation_only(path)):
            undecided.append(name)
    assert undecided == []


def test_every_entry_names_a_module_that_exists() -> None:
    """The lists hold no name that a move left behind."""
    pure, effectful = purity_lists()
    assert [entry for entry in pure + effectful if entry not in modules()] == []


@pytest.mark.parametrize("name", sorted(pure_modules()))
def test_pure_module_reads_no_clock_and_no_file(name: str) -> None:
    """A pure module calls nothing that reads a clock or a file."""
    calls = [
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in ast.walk(parsed(pure_modules()[name]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
    ]
    assert [called for called in calls if called in EFFECTS] == []


def test_class_names_are_unique() -> None:
    """One word has one meaning: no two public classes of the package share a name."""
    places: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
