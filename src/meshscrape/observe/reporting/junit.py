"""Write results as JUnit XML: one test case per result, one suite per object."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from meshscrape.observe.model import Severity
from meshscrape.observe.reporting.results import PipelineResult, fails

# Characters that XML 1.0 forbids even when escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """Return text that XML can hold."""
    return _NOT_XML.sub("?", text)


def junit(results: Sequence[PipelineResult], verb: str, severity: Severity) -> str:
    """Return the report. Results of `severity` or worse are failures; suppressed ones are skipped."""
    root = Element("testsuites", {"name": f"meshscrape {verb}", **_counts(results, severity)})
    suites: dict[str, list[PipelineResult]] = {}
    for result in results:
        suites.setdefault(str(result.ref) if result.ref else "cluster", []).append(result)
    for title, members in suites.items():
        suite = SubElement(root, "testsuite", {"name": xml_text(title), **_counts(members, severity)})
        for result in members:
            _case(suite, title, result, severity)
    if not results:
        suite = SubElement(root, "testsuite", name="cluster", tests="1", failures="0", skipped="0")
        SubElement(suite, "testcase", name="nothing found", classname="cluster")
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _case(suite: Element, title: str, result: PipelineResult, severity: Severity) -> None:
    places = {"file": xml_text(result.file), "line": str(result.line)} if result.file else {}
    case = SubElement(suite, "testcase", {"name": result.code, "classname": xml_text(title), **places})
    detail = xml_text(f"{result.severity}: {result.text}\n{result.remedy}\n")
    if result.suppressed:
        SubElement(case, "skipped", message=xml_text(f"suppressed by {result.suppressed}"))
    elif fails([result], severity):
        SubElement(case, "failure", message=xml_text(result.text), type=result.severity).text = detail
    else:
        SubElement(case, "system-out").text = detail


def _counts(results: Sequence[PipelineResult], severity: Severity) -> dict[str, str]:
    return {
        "tests": str(max(len(results), 1)),
        "failures": str(sum(fails([result], severity) for result in results)),
        "skipped": str(sum(bool(result.suppressed) for result in results)),
    }
