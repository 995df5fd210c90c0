"""`meshscrape explain --code`: every code that meshscrape shows has an explanation."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import meshscrape.observe
import meshscrape.plan
from meshscrape.cli.codes import explanations
from meshscrape.cli.explain import command
from meshscrape.envoy.refusals import CATALOGUE
from meshscrape.errors import InputError
from meshscrape.prometheus.rules import RuleOptions, rule_groups
from meshscrape.verify.registry import CHECKS

ROOT = Path(__file__).parents[3]
CODE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# Where the code stands among the arguments of these calls.
POSITION = {"Pitfall": 0, "PodRefusal": 0, "Refused": 0, "Missing": 0, "Note": 1, "note": 1}


def codes_in(package: Path) -> Iterator[str]:
    """Yield the codes that the modules of a package write as constants."""
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name not in POSITION or len(node.args) <= POSITION[name]:
                continue
            code = node.args[POSITION[name]]
            if isinstance(code, ast.Constant) and isinstance(code.value, str) and CODE.fullmatch(code.value):
                yield code.value


def explain(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.return_value == 0
    return result.output


@pytest.mark.parametrize("module", [meshscrape.observe, meshscrape.plan], ids=["observe", "plan"])
def test_every_pitfall_and_code_of_a_plan_is_explained(module: object) -> None:
    """A code without an entry in the documentation fails here."""
    codes = set(codes_in(Path(str(getattr(module, "__file__", ""))).parent))
    assert len(codes) > 40
    assert sorted(codes - set(explanations())) == []


def test_every_check_and_refusal_is_explained() -> None:
    """verify's checks and the scrape proxy's reasons."""
    assert {*CHECKS, *(each.reason for each in CATALOGUE)} <= set(explanations())


def test_explanation_says_what_it_means_and_what_to_do() -> None:
    """People get text without the marks of Markdown, programs the same as a document."""
    shown = explain("--code", "half-hardened")
    assert "Remedy: Set both." in shown
    assert "**" not in shown
    document = json.loads(explain("--code", "half-hardened", "-o", "json"))
    assert (document["kind"], document["code"]) == ("CodeExplanation", "half-hardened")
    assert document["text"] in shown
    assert "half-hardened" in explain("--code", "list")


def test_unknown_code_names_near_ones() -> None:
    """A mistyped code is one line with what may have been meant; a target beside a code is refused."""
    with pytest.raises(InputError, match="did you mean half-hardened"):
        explain("--code", "half-harden")
    with pytest.raises(InputError, match="both a target and a code"):
        explain("web", "--code", "half-hardened")
    with pytest.raises(InputError, match="no target and no code given"):
        explain()


def test_every_alert_has_its_section_in_the_runbook() -> None:
    """runbook_url leads to a heading of docs/runbook.md with what it means, how to see it, what to do."""
    alerts = [rule for group in rule_groups(RuleOptions()) for rule in group["rules"]]
    known = explanations()
    assert {rule["alert"] for rule in alerts} == {code for code, each in known.items() if each.of == "alert"}
    for rule in alerts:
        explained = known[rule["alert"]]
        assert rule["annotations"]["runbook_url"] == explained.page
        for words in ("What it means:", "How to see it:", "What to do:"):
            assert words in explained.text, rule["alert"]


def test_runbook_address_can_be_chosen() -> None:
    """Where the page is served, the links lead there."""
    for group in rule_groups(RuleOptions(runbook="https://wiki.example/runbook")):
        for rule in group["rules"]:
            section = f"#{rule['alert'].lower()}"
            assert rule["annotations"]["runbook_url"] == f"https://wiki.example/runbook{section}"


def test_image_is_built_with_the_pages_that_the_package_links_to() -> None:
    """A build that copies the sources alone would have links that lead nowhere."""
    copied = re.findall(r"^COPY (?!--)(.+) \./?\S*$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    places = [ROOT / name for line in copied for name in line.split()]
    links = [path for path in (ROOT / "src").rglob("*") if path.is_symlink()]
    assert len(links) >= 4
    for link in links:
        assert any(link.resolve().is_relative_to(place) for place in places), link
