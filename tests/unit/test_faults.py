"""The faults that `make mutation` makes."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from faults import code_of, faults


def made_in(source: str) -> list[str]:
    """The faults of a source, without their lines."""
    return [str(each).partition(" ")[2] for each in faults(ast.parse(textwrap.dedent(source)))]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a < b", ["f: a < b  ->  a <= b"]),
        ("return a and b", ["f: a and b  ->  b", "f: a and b  ->  a"]),
        ("return not a", ["f: not a  ->  a"]),
        ("return 1 if a else b", ["f: a  ->  not a", "f: 1  ->  2"]),
        ("return a + b", ["f: a + b  ->  a - b"]),
        ("a.append(b)", ["f: a.append(b)  ->  pass"]),
        ("return [each for each in a if each]", ["f: each  ->  True"]),
        ("return 'a-code'", ["f: 'a-code'  ->  'a-codeX'"]),
        ("return 'words for people'", []),
        ("'''Say what it does.'''", []),
        ("return f'{a}: 1'", []),
    ],
)
def test_kinds(body: str, expected: list[str]) -> None:
    """Conditions, operators, constants and effects are broken; what is written for people is not."""
    assert made_in(f"def f(a: int = 1, b: int = 2) -> int:\n    {body}\n") == expected


def test_methods_are_broken_and_tables_are_not() -> None:
    """Functions of modules and of classes, with all that is nested in them."""
    source = """
        TABLE = {"a": 1}

        class Box:
            size = 1

            def twice(self):
                def inner():
                    return 2
                return inner() * self.size
    """
    assert made_in(source) == [
        "Box.twice: 2  ->  3",
        "Box.twice: inner() * self.size  ->  inner() // self.size",
    ]


def test_the_broken_code_runs() -> None:
    """It takes the place of the right code, also in a method."""
    tree = ast.parse("class Box:\n    def large(self, size):\n        return size > 3\n")
    module: dict[str, Any] = {}
    exec(compile(tree, "box", "exec"), module)
    large: Callable[[int], bool] = module["Box"]().large
    assert not large(3)
    fault = faults(tree)[0]
    fault.apply()
    module["Box"].large.__code__ = code_of(compile(tree, "box", "exec"), fault.function)
    assert large(3)
