"""Break pure modules one small fault at a time, and list the faults that no unit test notices.

Usage: `python scripts/mutation.py [PATTERN…]`, patterns as mutmut takes them: `meshscrape.plan.judge*`.
mutmut makes the faults and runs the tests; pyproject.toml says in which modules.
A fault that changes only the wording of a text is left out, because tests assert codes and data.
Exit status 1 when a fault survives.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

MUTMUT = Path(sys.executable).with_name("mutmut")
SURVIVED = ": survived"


def mutmut(*arguments: str) -> str:
    """Return what a command of mutmut prints."""
    done = subprocess.run([str(MUTMUT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def survivors(results: str) -> list[str]:
    """Return the names of the faults that passed every test, from `mutmut results`."""
    lines = (line.strip() for line in results.splitlines())
    return [line.removesuffix(SURVIVED) for line in lines if line.endswith(SURVIVED)]


def changed_lines(shown: str) -> tuple[str, str]:
    """Return the removed and the added lines of `mutmut show`."""
    body = [line for line in shown.splitlines() if line[:3] not in ("---", "+++")]
    removed, added = (
        "\n".join(line[1:].strip() for line in body if line.startswith(sign)) for sign in ("-", "+")
    )
    return removed, added


def words(line: str) -> list[str]:
    """Return every text constant of a line that holds a space, so that is written for people."""
    try:
        tree = ast.parse(line)
    except SyntaxError:
        try:
            tree = ast.parse(f"({line})")
        except SyntaxError:
            return [line] if line[:1] in ('"', "'") or line[:2] in ('f"', "f'") else []
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [value for value in constants if isinstance(value, str) and " " in value]


def is_wording(shown: str) -> bool:
    """Return whether a fault changes only texts that are written for people."""
    removed, added = changed_lines(shown)
    return words(removed) != words(added)


def main() -> int:
    """Run mutmut, then print each survivor as a diff."""
    subprocess.run([str(MUTMUT), "run", "--max-children", "2", *sys.argv[1:]], check=True)
    left = []
    for name in survivors(mutmut("results")):
        shown = mutmut("show", name)
        if not is_wording(shown):
            left.append(name)
            print(shown)
    print(f"{len(left)} faults survived: {', '.join(left)}" if left else "every fault was noticed")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
