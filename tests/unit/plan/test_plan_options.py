"""Options of `plan` and `render` that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from meshscrape.cli.plan import command
from meshscrape.errors import InputError
from support.examples import plain


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--namespace", "shpo"], "--namespace: no object is in namespace 'shpo'"),
        (["--selector", "app=htpbin"], "--selector: the selector matches"),
        (
            ["--namespace", "istio-system", "--selector", "app=httpbin"],
            "--selector: the selector matches",
        ),
        (["--istio-version", "banana"], "--istio-version: 'banana' is not a version"),
        (["--prometheus", "addon", "--prometheus-namespace", "A_B"], "--prometheus-namespace: 'A_B'"),
    ],
)
def test_misspelt_option_is_an_error(tmp_path: Path, arguments: list[str], said: str) -> None:
    """One line, not `nothing to do`, which a pipeline would take for success."""
    dump = tmp_path / "dump.yaml"
    dump.write_text(yaml.safe_dump_all(plain()))
    failed = CliRunner().invoke(command, ["-f", str(dump), *arguments])
    assert failed.stdout == ""
    assert isinstance(failed.exception, InputError)
    result = CliRunner().invoke(command, ["-f", str(dump), *arguments, "--detailed-exitcode"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "port"), [([], 15020), (["--legacy-source", "envoy"], 15090)])
def test_the_source_of_legacy_mode(tmp_path: Path, arguments: list[str], port: int) -> None:
    """Merged unless Envoy's statistics alone are asked for."""
    dump = tmp_path / "dump.yaml"
    dump.write_text(yaml.safe_dump_all(plain()))
    scraper = "spiffe:spiffe://cluster.local/ns/istio-system/sa/prometheus"
    command_line = ["-f", str(dump), "--mode", "legacy", "--scraper", scraper, *arguments]
    assert f'defaultEndpoint: "127.0.0.1:{port}"' in CliRunner().invoke(command, command_line).stdout


@pytest.mark.parametrize(("namespace", "missing"), [("observability", True), ("default", False)])
def test_a_new_prometheus_needs_its_namespace(tmp_path: Path, namespace: str, missing: bool) -> None:
    """Nothing else makes it, and its objects cannot be applied before."""
    dump = tmp_path / "dump.yaml"
    dump.write_text(yaml.safe_dump_all(plain()))
    arguments = ["-f", str(dump), "--prometheus", "addon", "--prometheus-namespace", namespace]
    told = CliRunner().invoke(command, arguments).stdout
    assert ("kubectl create namespace" in told) is missing
