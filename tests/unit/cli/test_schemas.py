"""The schemas that are shipped describe the documents that are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from meshscrape.cli.codes import code_document, explanations
from meshscrape.cli.observe import command as observe
from meshscrape.cli.plan import command as plan
from meshscrape.cli.schema import command, kinds, schema
from meshscrape.cli.version import installed
from meshscrape.verify.reports import document
from support.documents import faults
from support.examples import CLUSTERS
from support.reports import mesh_of, report_of


def printed(verb: Any, name: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "dump.yaml"
    file.write_text(yaml.safe_dump_all(CLUSTERS[name]()))
    done = CliRunner().invoke(verb, [str(file), "-o", "json", *arguments], standalone_mode=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CLUSTERS)
def test_observation_follows_its_schema(name: str, tmp_path: Path) -> None:
    """Of every example cluster, with and without suppressed pitfalls; no key is missing in the schema."""
    whole = printed(observe, name, tmp_path)
    assert faults(whole, "Observation") == []
    for code in {each["code"] for each in whole["pitfalls"]}:
        hidden = printed(observe, name, tmp_path, "--suppress", code)
        assert hidden["suppressed"]
        assert faults(hidden, "Observation") == []


@pytest.mark.parametrize("prometheus", ["existing", "addon", "operator"])
@pytest.mark.parametrize("name", CLUSTERS)
def test_plan_follows_its_schema(name: str, prometheus: str, tmp_path: Path) -> None:
    """Of every example cluster, for each kind of Prometheus."""
    assert faults(printed(plan, name, tmp_path, "--prometheus", prometheus), "Plan") == []


def test_report_version_and_explained_code_follow_their_schemas() -> None:
    """The documents that need no cluster and no mesh."""
    assert faults(document(report_of(mesh_of(["web", "shop"]))), "VerifyReport") == []
    assert faults(installed(), "Version") == []
    for each in explanations().values():
        assert faults(code_document(each), "CodeExplanation") == []


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_schema_refuses_another_document(kind: str) -> None:
    """Each is a valid schema that does not accept just anything."""
    Draft202012Validator.check_schema(schema(kind))
    wrong: list[Any] = [{}, {"apiVersion": "meshscrape.io/v1", "kind": "Other"}, [{}]]
    assert not any(Draft202012Validator(schema(kind)).is_valid(each) for each in wrong)
    shown = CliRunner().invoke(command, [kind]).stdout
    assert json.loads(shown) == schema(kind)
    assert kind in CliRunner().invoke(command, []).stdout.split()
