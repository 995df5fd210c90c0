"""What is the same for every verb: files, formats, colours, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from meshscrape.cli import main as entry
from meshscrape.cli import observe as observe_verb
from meshscrape.cli import plan as plan_verb
from meshscrape.errors import InputError
from support.examples import operated

ROOT = Path(__file__).parents[3]


def commands(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its name, those of groups included."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from commands(below, f"{name} {each}".strip())


def dump(path: Path) -> str:
    path.write_text(yaml.safe_dump_all(operated()))
    return str(path)


def observed(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(
        observe_verb.command, arguments, input=stdin, catch_exceptions=False, standalone_mode=False
    )
    return result.output


def on_terminal(*arguments: str, **environment: str) -> str:
    """Return what the command writes when its standard output is a terminal."""
    reading, writing = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-m", "meshscrape", *arguments],
        stdout=writing, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )  # fmt: skip
    os.close(writing)
    parts = []
    while True:
        try:
            part = os.read(reading, 65536)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(reading)
    process.wait(60)
    return b"".join(parts).decode()


def test_files_are_options_or_plain_arguments(tmp_path: Path) -> None:
    """Both are the same, and may be mixed; - is standard input."""
    file = dump(tmp_path / "dump.yaml")
    expected = json.loads(observed("-f", file, "-o", "json"))
    assert json.loads(observed(file, "-o", "json")) == expected
    assert json.loads(observed("-o", "json", "-", stdin=Path(file).read_text())) == expected
    first, *rest = operated()
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    (tmp_path / "rest.yaml").write_text(yaml.safe_dump_all(rest))
    mixed = observed(str(tmp_path / "first.yaml"), "-f", str(tmp_path / "rest.yaml"), "-o", "json")
    assert json.loads(mixed) == expected


def test_yaml_is_offered_wherever_json_is() -> None:
    """Every `-o` that takes json takes yaml."""
    offered = {
        name: tuple(option.type.choices)
        for name, command in commands(entry.meshscrape)
        for option in command.params
        if isinstance(option.type, click.Choice) and "json" in option.type.choices
    }
    assert len(offered) >= 9
    assert [name for name, choices in offered.items() if "yaml" not in choices] == []


def test_version_as_yaml_says_what_json_says() -> None:
    """The two formats hold the same document."""
    shown = [
        subprocess.run(
            [sys.executable, "-m", "meshscrape", "version", "-o", form],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for form in ("json", "yaml")
    ]  # fmt: skip
    assert json.loads(shown[0]) == yaml.safe_load(shown[1])


@pytest.mark.parametrize("verb", ["observe", "plan"])
def test_colours_can_be_switched_off(verb: str, tmp_path: Path) -> None:
    """NO_COLOR, and --no-color before or after the verb, leave no escape sequence; else there are colours."""
    file = dump(tmp_path / "dump.yaml")
    assert "\x1b[" in on_terminal(verb, file)
    assert "\x1b[" in on_terminal(verb, file, NO_COLOR="")
    for arguments in ((verb, file, "--no-color"), ("--no-color", verb, file)):
        assert "\x1b" not in on_terminal(*arguments)
    assert "\x1b" not in on_terminal(verb, file, NO_COLOR="1")


def test_wide_table_has_a_line_per_workload(tmp_path: Path) -> None:
    """`-o wide` folds nothing, and the table fits 80 columns."""
    file = dump(tmp_path / "dump.yaml")
    document = json.loads(observed(file, "-o", "json"))
    wide = observed(file, "-o", "wide")
    for workload in document["workloads"]:
        title = f"{workload['object']['namespace']}/{workload['object']['name']}"
        (line,) = [each for each in wide.splitlines() if each.startswith(f"{title} ")]
        assert workload["kind"] in line
    table = observed(file).split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= 80


def test_example_is_read_alone_and_has_something_to_see() -> None:
    """`--example` needs no file and no cluster; a file beside it is a mistake."""
    document = json.loads(observed("--example", "-o", "json"))
    assert {"strict-intercepts-secure-port", "hardening-not-exact", "pods-stale"} <= {
        each["code"] for each in document["pitfalls"]
    }
    planned = CliRunner().invoke(plan_verb.command, ["--example", "-o", "json"], standalone_mode=False)
    plan = json.loads(planned.stdout)
    assert {"credentials", "listeners", "scrape", "hardening"} <= {each["phase"] for each in plan["changes"]}
    assert plan["outcome"]["heldBack"] == plan["outcome"]["refused"] == []
    with pytest.raises(InputError, match="read alone"):
        observed("--example", "some.yaml")


def test_links_between_pages_lead_somewhere() -> None:
    """Each relative link of a page is a file, and each anchor a heading of it."""
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            name, _, anchor = target.partition("#")
            if "://" in target:
                continue
            path = (page.parent / name).resolve() if name else page
            if not path.exists() or (anchor and anchor not in headings(path)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """Return the anchors that a forge makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_exit_codes_of_every_verb_are_documented() -> None:
    """The table names each verb, and no other."""
    text = (ROOT / "docs/exit-codes.md").read_text()
    first_cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    named = {code.split()[0] for cell in first_cells for code in re.findall(r"`([^`]+)`", cell)}
    assert named == set(entry.VERBS)
