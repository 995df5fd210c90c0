"""Write a report as JUnit XML (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from meshscrape.observe.reporting.junit import xml_text
from meshscrape.verify.findings import CheckResult, Report, count, grouped


def junit(report: Report) -> str:
    """Return a report as JUnit XML: a suite for each workload, a test case for each check."""
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
        for result in results:
            _test_case(suite, name, result)
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
