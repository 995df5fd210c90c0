"""Reports for people, programs and test runners."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from meshscrape.verify.findings import CheckResult, Outcome, Report, SeenCertificate
from meshscrape.verify.reports import parse_report, render


def result(
    outcome: Outcome, check: str = "paths", workload: str = "default/x", seen: str = "seen"
) -> CheckResult:
    return CheckResult(check, workload, "127.9.1.1:15091", outcome, seen, "expected", "remedy", "hole", 3)


def report(*results: CheckResult) -> Report:
    scraper = "spiffe://cluster.local/ns/istio-system/sa/prometheus"
    return Report(results, scraper, datetime(2030, 1, 1, tzinfo=UTC), 1.25)


EVERY = report(
    result("passed"), result("failed", "methods"), result("skipped", "other-ca"),
    result("blocked", "families"), result("noted", "plaintext-open", "default/y"),
)  # fmt: skip
HOSTILE = "]]> <a&\"'> \x00\x1b[31m \ud800 \uffff é"


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("noted", 0), ("failed", 1), ("skipped", 1)])
def test_the_exit_code_says_whether_anything_was_found(outcome: Outcome, code: int) -> None:
    """Notes are no findings; what could not be checked is one."""
    assert report(result("passed"), result(outcome)).exit_code == code


def test_json_is_versioned_and_complete() -> None:
    """Kind, summary, every finding with its remedy, every check."""
    document = json.loads(render(EVERY, "json"))
    assert (document["apiVersion"], document["kind"]) == ("meshscrape.io/v1", "VerifyReport")
    assert document["clean"] is False
    assert document["summary"] == {"passed": 1, "failed": 1, "skipped": 1, "blocked": 1, "noted": 1}
    assert [each["severity"] for each in document["findings"]] == ["hole", "skipped"]
    assert document["findings"][0] == {
        "check": "methods",
        "workload": "default/x",
        "target": "127.9.1.1:15091",
        "severity": "hole",
        "seen": "seen",
        "expected": "expected",
        "remedy": "remedy",
    }
    assert len(document["checks"]) == 5


def test_a_report_is_read_back_from_its_document() -> None:
    """Results, certificates and the scraper are the same; a passed check has its registered texts."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    seen = SeenCertificate("server", "default/x", "127.9.1.1:15091", "spiffe://d/ns/x/sa/y", "ab", at, at)
    made = replace(EVERY, certificates=(seen,))
    back = parse_report(render(made, "json"))
    assert back.certificates == (seen,)
    assert back.findings == made.findings
    assert [(each.outcome, each.seen, each.cases) for each in back.checks] == [
        (each.outcome, each.seen, each.cases) for each in made.checks
    ]
    assert (back.scraper, back.started, back.seconds) == (made.scraper, made.started, made.seconds)


@pytest.mark.parametrize(
    "text",
    [
        "", "Traceback", "[]", "{}", "null", '{"apiVersion": "meshscrape.io/v1", "kind": "MeshStatus"}',
        render(EVERY, "json").replace('"passed",', '"splendid",'),
        render(EVERY, "json").replace("VerifyReport", "Plan"),
        render(EVERY, "json")[:-100],
    ],
)  # fmt: skip
def test_a_text_that_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_report(text)


def test_junit_counts_what_it_holds() -> None:
    """Findings are failures, unchecked ones errors; totals and suites agree."""
    root = ElementTree.fromstring(render(EVERY, "junit"))
    assert root.attrib["tests"] == "5"
    assert len(root.findall("testsuite")) == 2
    for tag, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(root.attrib[attribute]) == len(root.findall(f".//{tag}")) == 1
        assert sum(int(suite.attrib[attribute]) for suite in root) == 1
    failure = root.find(".//failure")
    assert failure is not None
    assert "do: remedy" in (failure.text or "")


@pytest.mark.parametrize("outcome", ["passed", "failed", "skipped", "blocked", "noted"])
def test_junit_stays_xml_whatever_was_seen(outcome: Outcome) -> None:
    """Markup is escaped, and what XML cannot hold replaced."""
    text = render(report(result(outcome, workload=HOSTILE, seen=HOSTILE)), "junit")
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert "<a&" in "".join(root.itertext()) + str([each.attrib for each in root.iter()])


def test_the_table_reads_without_colour() -> None:
    """Outcome words, findings with what to do, the summary; no escape sequences."""
    text = render(EVERY, "table")
    assert "\x1b" not in text
    for word in ("ok", "FAILED", "UNCHECKED", "blocked", "note", "do:       remedy", "2 findings, 1 note"):
        assert word in text


def test_the_table_is_coloured_on_request() -> None:
    """Terminals get colours."""
    assert "\x1b[" in render(EVERY, "table", color=True)


def test_table_shows_markup_as_text() -> None:
    """Square brackets of an IPv6 target are not read as styling."""
    text = render(
        report(CheckResult("paths", "default/x", "[::1]:15091", "failed", "[red]x", "e", "r")), "table"
    )
    assert "[::1]:15091" in text
    assert "[red]x" in text


def test_a_long_line_is_folded_not_cut() -> None:
    """A narrow terminal loses nothing of what was seen."""
    seen = " ".join(f"word{number}" for number in range(60))
    text = render(report(result("failed", seen=seen)), "table", width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "word59" in text
