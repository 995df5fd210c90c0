"""Write a report as a table, as JSON or as JUnit XML (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from io import StringIO
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.verify.findings import (
    CheckResult,
    Finding,
    Outcome,
    Report,
    SeenCertificate,
    count,
    grouped,
)
from meshscrape.verify.registry import CHECKS

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
            # Imported here, because it takes `observe` along: a fifth of what `verify` imports.
            from meshscrape.verify.junit import junit

            return junit(report)
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
        "findings": [_finding(finding) for finding in report.findings],
        "checks": [_check(result) for result in report.checks],
        "certificates": [_certificate(seen) for seen in report.certificates],
    }


def parse_report(text: str) -> Report:
    """Return the report in the text of a VerifyReport document. Raise ValueError if it is none.

    The remedy and severity of a check that passed are not in the document. They are the registry's.
    """
    try:
        told = json.loads(text)
        found = {
            (finding["check"], finding["workload"], finding["target"]): finding
            for finding in told["findings"]
        }
        if (told["apiVersion"], told["kind"]) != (DOCUMENT_VERSION, "VerifyReport"):
            raise ValueError(f"it is {told['apiVersion']} {told['kind']}")
        return Report(
            tuple(_result(check, found) for check in told["checks"]),
            str(told["scraper"]),
            datetime.fromisoformat(told["started"]),
            float(told["seconds"]),
            tuple(_seen_certificate(certificate) for certificate in told.get("certificates", ())),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no {DOCUMENT_VERSION} VerifyReport ({error!r})") from None


def summary(report: Report) -> str:
    """Return the report in one line."""
    ran = f"{len(report.checks)} checks in {report.seconds:.1f} s as {report.scraper}"
    number = len(report.findings)
    verdict = "no findings" if not number else f"{number} finding{'s' if number > 1 else ''}"
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


def _result(told: Mapping[str, Any], found: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> CheckResult:
    if told["outcome"] not in _WORDS:
        raise ValueError(f"an unknown outcome {told['outcome']!r}")
    check = CHECKS.get(told["check"])
    finding = found.get((told["check"], told["workload"], told["target"]), {})
    return CheckResult(
        str(told["check"]), str(told["workload"]), str(told["target"]), told["outcome"], str(told["seen"]),
        str(told["expected"]), str(finding.get("remedy", check.remedy if check else "")),
        check.severity if check else "broken", int(told["cases"]),
    )  # fmt: skip


def _certificate(seen: SeenCertificate) -> dict[str, object]:
    return {
        "role": seen.role,
        "workload": seen.workload,
        "target": seen.target,
        "name": seen.name,
        "serial": seen.serial,
        "notBefore": seen.not_before.isoformat(timespec="seconds"),
        "notAfter": seen.not_after.isoformat(timespec="seconds"),
    }


def _seen_certificate(told: Mapping[str, Any]) -> SeenCertificate:
    if told["role"] not in ("server", "scraper", "root"):
        raise ValueError(f"an unknown role {told['role']!r}")
    return SeenCertificate(
        told["role"], str(told["workload"]), str(told["target"]), str(told["name"]), str(told["serial"]),
        datetime.fromisoformat(told["notBefore"]), datetime.fromisoformat(told["notAfter"]),
    )  # fmt: skip


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
        for result in results:
            word, style = _WORDS[result.outcome]
            target = result.target if result.target != above else ""
            table.add_row(title, target, result.check, Text(word, style=style if color else ""), result.seen)
            title, above = "", result.target
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
