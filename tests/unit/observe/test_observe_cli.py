"""`meshscrape observe`: files in, table or document out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from meshscrape.cli.observe import command
from meshscrape.errors import InputError
from meshscrape.observe.observation_document import observation_document
from support.examples import CLUSTERS, operated, secured
from support.objects import control_plane, deployment, namespace, observed

ROOT = Path(__file__).parents[3]


def run(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(
        command, arguments, input=stdin, catch_exceptions=False, standalone_mode=False
    )
    assert result.return_value == 0
    return result.output


def write(path: Path, parts: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump_all(parts))
    return path


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    """Both are the versioned document of what was observed."""
    file = str(write(tmp_path / "dump.yaml", operated()))
    document = json.loads(run("-f", file, "-o", "json"))
    assert (document["apiVersion"], document["kind"]) == ("meshscrape.io/v1", "Observation")
    assert yaml.safe_load(run("-f", file, "-o", "yaml")) == document
    assert document == json.loads(json.dumps(observation_document(observed(operated()))))


def test_files_directories_and_standard_input(tmp_path: Path) -> None:
    """Several -f, a directory at any depth, `-`: all their objects together."""
    plane = str(write(tmp_path / "plane.yaml", control_plane()))
    write(tmp_path / "apps/a/one.yml", [namespace("default", istio_injection="enabled")])
    write(tmp_path / "apps/.git/hidden.yaml", [deployment("hidden")])
    (tmp_path / "apps/two.json").write_text(json.dumps(deployment("two")))
    (tmp_path / "apps/readme.txt").write_text("not an object")
    stdin = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [deployment("three")]})
    found = json.loads(run("-f", plane, "-f", str(tmp_path / "apps"), "-f", "-", "-o", "json", stdin=stdin))
    assert {each["object"]["name"]: each["proxy"]["afterRestart"] for each in found["workloads"]} == {
        "two": "1.31.0", "three": "1.31.0",
    }  # fmt: skip


def test_an_unknown_version_is_null(tmp_path: Path) -> None:
    """A version that cannot be told is null, until --istio-version says it."""
    file = str(write(tmp_path / "a.yaml", [namespace("default", istio_injection="enabled"), deployment()]))
    assert json.loads(run("-f", file, "-o", "json"))["workloads"][0]["proxy"]["afterRestart"] is None
    told = json.loads(run("-f", file, "-o", "json", "--istio-version", "1.31.0"))
    assert told["workloads"][0]["proxy"]["afterRestart"] == "1.31.0"


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_table_shows_every_workload_and_pitfall(name: str, tmp_path: Path) -> None:
    """People see each workload and each code of pitfall."""
    parts = CLUSTERS[name]()
    output = run("-f", str(write(tmp_path / "dump.yaml", parts)))
    found = observed(parts)
    for workload in found.workloads:
        assert f"{workload.namespace}/" in output and workload.name in output
    for pitfall in found.pitfalls:
        assert pitfall.code in output


def test_a_dump_without_workloads_says_so(tmp_path: Path) -> None:
    """An empty table would look like a failure."""
    assert "No workloads" in run("-f", str(write(tmp_path / "a.yaml", [namespace("default")])))


def test_the_table_without_pitfalls_says_so(tmp_path: Path) -> None:
    """Silence would look like a failure."""
    assert "No pitfalls found." in run("-f", str(write(tmp_path / "a.yaml", [deployment()])))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["-f", "{}/absent.yaml"], "cannot be read"),
        (["-f", "{}/empty.yaml"], "no object"),
        (["-f", "{}/app.yaml", "--istio-version", "newest"], "not a version"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], what: str, tmp_path: Path) -> None:
    """A missing file, no object at all, a version that is none."""
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    write(tmp_path / "app.yaml", [deployment()])
    with pytest.raises(InputError, match=what):
        run(*[each.format(tmp_path) for each in arguments])


def _keys(data: Any) -> set[str]:
    if isinstance(data, list):
        return set().union(*map(_keys, data)) if data else set()
    if not isinstance(data, dict):
        return set()
    return set(data).union(*(_keys(each) for each in data.values()))


def test_every_key_of_the_document_is_documented() -> None:
    """docs/observe.md names every key that programs may meet."""
    text = (ROOT / "docs/observe.md").read_text()
    words = set(re.findall(r"[A-Za-z]+", text))
    free = {"annotations", "proxyMetadata"}
    for parts in (secured(), operated()):
        document = observation_document(observed(parts))
        for workload in document["workloads"]:
            workload["metrics"]["annotations"] = {}
            workload["mtls"]["ports"] = {}
        assert sorted(key for key in _keys(document) - free if key not in words) == []


def test_the_table_shows_what_objects_say_as_plain_text(tmp_path: Path) -> None:
    """What a tenant wrote is neither an escape of the terminal nor markup of the table."""
    parts = operated()
    for part in parts:
        if part["kind"] == "PodMonitor":
            part["spec"]["scrapeClass"] = "\x1b[2Jnone"
        if part["kind"] == "Namespace":
            part["metadata"]["labels"]["istio.io/rev"] = "[red]x[/nothing]"
    table = run("-f", str(write(tmp_path / "dump.yaml", parts)))
    assert "\x1b" not in table
    assert "?[2Jnone" in table
    assert "[red]x[/nothing]" in table


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_tables_fit_80_columns(name: str, tmp_path: Path) -> None:
    """Everything before the pitfalls fits a narrow terminal."""
    output = run("-f", str(write(tmp_path / "dump.yaml", CLUSTERS[name]())))
    tables = re.split(r"^(?:CRITICAL|ERROR|WARNING|INFO|No pitfalls)", output, flags=re.MULTILINE)[0]
    assert max(map(len, tables.splitlines())) <= 80


def test_a_narrow_table_breaks_no_code_and_no_command() -> None:
    """The steps for the example that comes along: each code and name is whole, or left to the list below."""
    narrow, wide = run("--example"), run("--example", "-o", "wide")
    column = next(line.index("NEXT") for line in narrow.splitlines() if line.startswith("WORKLOAD"))
    table = narrow.partition("WORKLOAD")[2].partition("\n\n")[0].splitlines()[1:]
    words = {word for line in table for word in line[column:].split()}
    assert words
    assert words <= {*wide.split(), "see", "below"}
