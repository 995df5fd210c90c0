"""Write a report as a table, as JSON or as JUnit XML (pure)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from io import StringIO
from itertools import groupby
from typing import Literal, TypeAlias
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.observe.reporting.junit import xml_text
from meshscrape.verify.findings import CheckResult, Finding, Outcome, Report, count

Format: TypeAlias = Literal["table", "json", "junit"]

_WORDS: Mapping[Outcome, tuple[str, str]] = {
    "passed": ("ok", "green"),
    "failed": ("FAILED", "bold red"),
    "skipped": ("UNCHECKED", "bold yellow"),
    "blocked": ("blocked", "dim"),
    "noted": ("note", "yellow"),
}


def render(report: Report, form: Format, *, color: bool = False, width: int = 120) -> str:
    """Return the report as text that ends with a newline. `color` and `width` are for the table."""
    match form:
        case "json":
            return json.dumps(document(report), indent=2) + "\n"
        case "junit":
            return _junit(report)
        case "table":
            return _table(report, color, width)


def document(report: Report) -> dict[str, object]:
    """Return the VerifyReport document (docs/verify.md) as data for JSON."""
    return {
        "apiVersion": DOCUMENT_VERSION,
        "kind": "VerifyReport",
        "started": report.started.isoformat(timespec="seconds"),
        "seconds": round(report.seconds, 3),
        "scraper": report.scraper,
        "clean": not report.findings,
        "summary": {outcome: count(report.checks, outcome) for outcome in _WORDS},
        "findings": [_finding(each) for each in report.findings],
        "checks": [_check(each) for each in report.checks],
    }


def summary(report: Report) -> str:
    """Return the report in one line."""
    ran = f"{len(report.checks)} checks in {report.seconds:.1f} s as {report.scraper}"
    found = len(report.findings)
    verdict = "no findings" if not found else f"{found} finding{'s' if found > 1 else ''}"
    notes = f", {len(report.notes)} note{'s' if len(report.notes) > 1 else ''}" if report.notes else ""
    return f"{verdict}{notes}: {ran}"


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "check": finding.check,
        "workload": finding.workload,
        "target": finding.target,
        "severity": finding.severity,
        "seen": finding.seen,
        "expected": finding.expected,
        "remedy": finding.remedy,
    }


def _check(result: CheckResult) -> dict[str, object]:
    return {
        "check": result.check,
        "workload": result.workload,
        "target": result.target,
        "outcome": result.outcome,
        "cases": result.cases,
        "seen": result.seen,
        "expected": result.expected,
    }


def _table(report: Report, color: bool, width: int) -> str:
    out = StringIO()
    console = Console(
        file=out, width=width, force_terminal=color, no_color=not color,
        color_system="standard" if color else None,
        highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold" if color else "")
    for heading in ("WORKLOAD", "TARGET", "CHECK", "RESULT", "SEEN"):
        table.add_column(heading, overflow="fold")
    for workload, results in grouped(report.checks):
        title, above = workload, None
        for each in results:
            word, style = _WORDS[each.outcome]
            target = each.target if each.target != above else ""
            table.add_row(title, target, each.check, Text(word, style=style if color else ""), each.seen)
            title, above = "", each.target
    console.print(table)
    for finding in report.findings:
        console.print(
            f"\n{finding.severity.upper()} {finding.check} {finding.workload} {finding.target}".rstrip()
        )
        console.print(
            f"  seen:     {finding.seen}\n  expected: {finding.expected}\n  do:       {finding.remedy}"
        )
    for note in report.notes:
        console.print(f"\nNOTE {note.check} {note.workload} {note.target}".rstrip())
        console.print(f"  seen:     {note.seen}" + (f"\n  do:       {note.remedy}" if note.remedy else ""))
    console.print(f"\n{summary(report)}")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _junit(report: Report) -> str:
    root = Element(
        "testsuites", _counts(report.checks), name="meshscrape verify", time=f"{report.seconds:.3f}"
    )
    for workload, results in grouped(report.checks):
        name = xml_text(workload or "mesh")
        suite = SubElement(
            root,
            "testsuite",
            _counts(results),
            name=name,
            timestamp=report.started.replace(tzinfo=None).isoformat(timespec="seconds"),
        )
        for each in results:
            _test_case(suite, name, each)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _test_case(suite: Element, workload: str, result: CheckResult) -> None:
    """Add one result. Unchecked ones are errors, because test runners treat skipped tests as harmless."""
    case = SubElement(
        suite, "testcase", name=xml_text(f"{result.check} {result.target}".rstrip()), classname=workload
    )
    detail = xml_text(f"seen: {result.seen}\nexpected: {result.expected}\ndo: {result.remedy}\n")
    match result.outcome:
        case "failed":
            SubElement(case, "failure", message=xml_text(result.seen), type=result.severity).text = detail
        case "skipped":
            SubElement(case, "error", message=xml_text(result.seen), type="unchecked").text = detail
        case "blocked":
            SubElement(case, "skipped", message=xml_text(result.seen))
        case _:
            SubElement(case, "system-out").text = xml_text(f"seen: {result.seen}\n")


def _counts(results: Iterable[CheckResult]) -> dict[str, str]:
    listed = tuple(results)
    return {
        "tests": str(len(listed)),
        "failures": str(count(listed, "failed")),
        "errors": str(count(listed, "skipped")),
        "skipped": str(count(listed, "blocked")),
    }


def grouped(results: Iterable[CheckResult]) -> list[tuple[str, list[CheckResult]]]:
    """Return the results by workload, in the order in which workloads first appear."""
    order: dict[str, int] = {}
    listed = tuple(results)
    for each in listed:
        order.setdefault(each.workload, len(order))
    arranged = sorted(listed, key=lambda each: order[each.workload])
    return [(name, list(group)) for name, group in groupby(arranged, key=lambda each: each.workload)]
