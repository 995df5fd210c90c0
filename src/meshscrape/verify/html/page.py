"""Write a report as one self-contained HTML page: no script, no request, a strict policy (pure)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from meshscrape.verify.findings import (
    CheckResult,
    Finding,
    Outcome,
    Report,
    Role,
    SeenCertificate,
    count,
    grouped,
)
from meshscrape.verify.html.markup import Child, Markup, element
from meshscrape.verify.html.picture import picture

_BAR, _INSET = 320.0, 5.0
_RESULTS: dict[Outcome, tuple[str, str]] = {
    "passed": ("✓ ok", "ok"),
    "failed": ("✗ FAILED", "bad"),
    "skipped": ("? UNCHECKED", "warn"),
    "blocked": ("- blocked", "soft"),
    "noted": ("! note", "warn"),
}
_SEVERITIES = {"hole": "✗ HOLE", "broken": "✗ BROKEN", "skipped": "? UNCHECKED"}
_ROLES = {"server": "server", "scraper": "scraper", "root": "root of the trust bundle"}
_SOON = 0.1


def page(report: Report, now: datetime, style: str, failure: str = "") -> str:
    """Return the page for `report`, with the style sheet `style`.

    `failure` says why a later run could not be made.
    """
    allowed = f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'"
    policy = f"default-src 'none'; style-src {allowed}; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"meshscrape verify: {_verdict(report, failure)[1]}"),
        element("style", Markup(style)),
    )
    body = element("body", element("main", *_body(report, now, failure)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _body(report: Report, now: datetime, failure: str) -> Iterator[Markup]:
    kind, words = _verdict(report, failure)
    yield element("h1", "meshscrape verify")
    yield element("div", words, class_=f"verdict {kind}", role="status")
    yield _facts(report)
    if report.mesh is not None:
        yield element("h2", "The mesh")
        yield element("div", picture(report, report.mesh), class_="scroll")
        yield _legend()
    yield element("h2", f"Findings ({len(report.findings)})")
    yield from (_finding(finding) for finding in report.findings)
    if not report.findings:
        yield element("p", "None: everything that was expected was seen." if report.checks else "None known.")
    if report.notes:
        yield element("h2", f"Notes ({len(report.notes)})")
        yield from (_note(note) for note in report.notes)
    if report.certificates:
        yield element("h2", "Certificates")
        yield element(
            "p",
            "Each bar is one certificate's whole life; the marker is the moment of this page.",
            class_="soft",
        )
        yield from _lives(report.certificates, now)
    yield element("h2", "Every check")
    yield from (_workload(title, results) for title, results in grouped(report.checks))


def _verdict(report: Report, failure: str) -> tuple[str, str]:
    if failure:
        return "bad", f"? The last run could not be made: {failure}. What follows is older."
    if report.findings:
        number = len(report.findings)
        return "bad", f"✗ {number} finding{'s' if number > 1 else ''}"
    return "ok", "✓ No findings"


def _facts(report: Report) -> Markup:
    passed, noted = count(report.checks, "passed"), len(report.notes)
    facts = (
        ("Verified", f"{report.started:%Y-%m-%d %H:%M:%S} UTC, in {report.seconds:.1f} s"),
        ("As", report.scraper),
        ("Trust domain", report.mesh.trust_domain if report.mesh else ""),
        ("Checks", f"{len(report.checks)}: {passed} ok, {len(report.findings)} findings, {noted} notes"),
    )
    rows = (element("div", element("dt", name), element("dd", words)) for name, words in facts if words)
    return element("dl", *rows, class_="facts")


def _legend() -> Markup:
    words = (
        "✓ as it should be · ✗ a finding · ? could not be checked, a finding too · ! worth knowing. "
        "A line with an arrowhead gets through, one that ends at a bar is refused. “Everybody else” has no "
        "certificate, one of another CA, an expired one, speaks no TLS, or is not on the allow list."
    )
    return element("p", words, class_="soft")


def _finding(finding: Finding) -> Markup:
    kind = "warn" if finding.severity == "skipped" else "bad"
    return _card(
        finding.severity, element("span", _SEVERITIES[finding.severity], class_=f"tag {kind}"), finding.check,
        finding.workload, finding.target,
        (("seen", finding.seen), ("expected", finding.expected), ("do", finding.remedy)),
    )  # fmt: skip


def _note(note: CheckResult) -> Markup:
    tag = element("span", "! NOTE", class_="tag warn")
    return _card(
        "note", tag, note.check, note.workload, note.target, (("seen", note.seen), ("do", note.remedy))
    )


def _card(
    kind: str, tag: Markup, check: str, workload: str, target: str, rows: Sequence[tuple[str, str]]
) -> Markup:
    place = element("span", f"{workload} {target}".strip(), class_="mono")
    listed: list[Child] = []
    for name, words in rows:
        if words:
            listed += [element("dt", name), element("dd", words)]
    return element(
        "section", element("h3", tag, f" {check} ", place), element("dl", *listed), class_=f"card {kind}"
    )


def _workload(title: str, results: Sequence[CheckResult]) -> Markup:
    wrong = sum(result.outcome in ("failed", "skipped") for result in results)
    state = f"✗ {wrong} of {len(results)} with findings" if wrong else f"✓ {len(results)} ok"
    head = element(
        "tr", *(element("th", heading, scope="col") for heading in ("target", "check", "result", "seen"))
    )
    rows = []
    for result in results:
        word, kind = _RESULTS[result.outcome]
        rows.append(
            element(
                "tr", element("td", result.target, class_="mono"), element("td", result.check),
                element("td", word, class_=kind), element("td", result.seen),
            )
        )  # fmt: skip
    table = element("table", element("thead", head), element("tbody", *rows))
    summary = element("summary", f"{title or 'the mesh as a whole'}: {state}")
    opened = {"open": "open"} if wrong else {}
    return element("details", summary, table, **opened)


def _lives(certificates: Iterable[SeenCertificate], now: datetime) -> Iterator[Markup]:
    """Yield one bar per certificate, the earliest end first. Several ports may share a certificate."""
    places: dict[tuple[Role, str], list[str]] = {}
    distinct: dict[tuple[Role, str], SeenCertificate] = {}
    for certificate in certificates:
        key = (certificate.role, certificate.serial)
        distinct.setdefault(key, certificate)
        if certificate.target:
            places.setdefault(key, []).append(certificate.target)
    for key in sorted(distinct, key=lambda one: distinct[one].not_after):
        yield _life(distinct[key], places.get(key, []), now)


def _life(certificate: SeenCertificate, places: Sequence[str], now: datetime) -> Markup:
    whole = (certificate.not_after - certificate.not_before).total_seconds()
    passed = (now - certificate.not_before).total_seconds() / whole if whole > 0 else 1.0
    kind, words = _age(certificate, passed, now)
    about = f"{_ROLES[certificate.role]}{', ' + ', '.join(places) if places else ''}"
    dates = f"{certificate.not_before:%Y-%m-%d %H:%M:%S} to {certificate.not_after:%Y-%m-%d %H:%M:%S} UTC"
    return element(
        "div",
        element("div", element("div", certificate.name), element("div", about, class_="soft mono")),
        _bar(min(max(passed, 0.0), 1.0), passed, f"{certificate.name}: {words}"),
        element("div", element("div", words, class_=kind), element("div", dates, class_="soft mono")),
        class_="life",
    )


def _bar(shown: float, passed: float, words: str) -> Markup:
    x = _INSET + shown * _BAR
    parts = [
        element("title", words),
        element("rect", class_="left", x=_INSET, y=9, width=_BAR, height=13),
        element("rect", class_="elapsed", x=_INSET, y=9, width=round(shown * _BAR, 1), height=13),
        element("line", class_="now", x1=round(x, 1), y1=6, x2=round(x, 1), y2=25),
        element("path", class_="nowhead", d=f"M{x - 5:.1f} 1 h10 l-5 6 Z"),
    ]
    if not 0 <= passed < 1:
        parts.append(element("rect", class_="over", x=_INSET, y=9, width=_BAR, height=13))
    return element("svg", *parts, viewBox="0 0 330 26", role="img", aria_label=words)


def _age(certificate: SeenCertificate, passed: float, now: datetime) -> tuple[str, str]:
    if passed >= 1:
        return "bad", f"✗ ended {_span(now - certificate.not_after)} ago"
    if passed < 0:
        return "bad", f"✗ begins in {_span(certificate.not_before - now)}"
    left = f"{_span(certificate.not_after - now)} left ({1 - passed:.0%})"
    return ("warn", f"! {left}: renewal is overdue") if passed > 1 - _SOON else ("ok", f"✓ {left}")


def _span(time: timedelta) -> str:
    seconds = int(time.total_seconds())
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // smaller}{small_unit}"
    return f"{seconds}s"


def empty_page(reason: str, now: datetime, style: str) -> str:
    """Return the page for the time before the first run that could be made."""
    return page(Report((), "", now, 0.0), now, style, reason)
