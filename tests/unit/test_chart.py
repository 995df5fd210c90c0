"""The Helm chart: what the package defines is in it as it is; its values have a schema and a version."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from meshscrape import __version__

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/meshscrape"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def made() -> dict[str, str]:
    """What scripts/chart.py would write."""
    specification = importlib.util.spec_from_file_location("chart", ROOT / "scripts/chart.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    texts: dict[str, str] = module.chart_files()
    return texts


def test_files_are_what_the_package_defines() -> None:
    """Containers, jobs, monitors, rules and dashboard; after a change run `make chart`."""
    written = {file.name: file.read_text() for file in (CHART / "files").iterdir()}
    wanted = made()
    assert sorted(written) == sorted(wanted)
    old = [name for name, text in wanted.items() if written[name] != text]
    assert old == [], "run make chart"


def test_version_is_that_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_defaults_follow_the_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)
    Draft7Validator(SCHEMA).validate(VALUES)


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    """An option that nobody can find is no option, and a key without a schema is not checked."""
    properties = {name: each for name, each in SCHEMA["properties"].items() if name != "global"}
    assert {name: set(each["properties"]) for name, each in properties.items()} == {
        name: set(each) for name, each in VALUES.items()
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"proxi": {}}, {"image": {"repository": "Registry/Name"}}, {"image": {"digest": "sha256:12"}},
        {"prometheus": {**VALUES["prometheus"], "kind": "Pod"}}, {"rules": {"as": "Secret"}},
        {"mesh": {**VALUES["mesh"], "caAddress": "istiod"}}, {"mesh": {**VALUES["mesh"], "caAddress": '":1'}},
        {"mesh": {**VALUES["mesh"], "trustDomain": "spiffe://cluster.local"}},
        {"proxy": {"namespaces": "shop"}}, {"rules": {"without": ["TargetDown"]}},
        {"verifier": {"kind": "Job"}}, {"verifier": {"interval": "5"}}, {"verifier": {"address": "pod"}},
        {"verifier": {"interval": "5m --skip=plain-http"}},
    ],
    ids=str,
)  # fmt: skip
def test_refuses_wrong_values(wrong: dict[str, Any]) -> None:
    assert not Draft7Validator(SCHEMA).is_valid({**VALUES, **wrong})


@pytest.mark.parametrize(
    "right",
    [
        {"verifier": {"kind": "Deployment", "interval": "30s", "address": "[::]"}},
        {"verifier": {"prometheusLabels": {"app": "prometheus"}, "monitorLabels": {"release": "main"}}},
    ],
    ids=str,
)
def test_accepts_values_of_a_verifier_that_stays(right: dict[str, Any]) -> None:
    Draft7Validator(SCHEMA).validate({**VALUES, **right})
