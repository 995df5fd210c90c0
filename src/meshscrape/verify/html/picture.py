"""Draw a mesh as SVG: who scrapes whom, how that is checked, and what all other clients get (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from meshscrape.istio.host_port import host_port
from meshscrape.verify.check import Side
from meshscrape.verify.findings import CheckResult, Report, grouped
from meshscrape.verify.html.markup import Markup, element, fit, join
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload
from meshscrape.verify.registry import CHECKS, port_check

State: TypeAlias = Literal["ok", "bad", "unsure", "warn", "none"]

_WRONG: tuple[State, ...] = ("bad", "unsure")
_WIDTH, _BOX, _BOX_WIDTH = 1120, 430, 420
_RIGHT = _BOX + _BOX_WIDTH
_ACTOR, _TRUNK = 200, 226
_ADDRESS = 112
_HEAD, _ROW, _GAP, _TOP, _TALL, _LEAST = 50, 46, 18, 44, 74, 260
_MOST = 60
_MARK: Mapping[State, str] = {"ok": "✓", "bad": "✗", "unsure": "?", "warn": "!", "none": "-"}


@dataclass(frozen=True, slots=True)
class Row:
    """One port of a workload: its name, the scraper's result there, and the result of other clients."""

    port: str
    what: str
    scrape: State
    scrape_words: str
    others: State
    others_words: str


def picture(report: Report, mesh: MeshStatus) -> Markup:
    """Return the whole picture. Of a large mesh, workloads with findings come first; the rest is counted."""
    checks = dict(grouped(report.checks))
    rows = {
        workload.title: tuple(_rows(workload, checks.get(workload.title, ()))) for workload in mesh.workloads
    }
    shown = [workload for workload in mesh.workloads if rows[workload.title]]
    shown.sort(key=lambda workload: _worst(rows[workload.title]) not in _WRONG)
    height, parts, ways = _TOP, list[Markup](), list[float]()
    for workload in shown[:_MOST]:
        own = rows[workload.title]
        parts += _workload(workload, own, height, bool(mesh.scrape_proxy))
        ways += [_middle(height, number) for number, row in enumerate(own) if row.scrape != "none"]
        height += _HEAD + _ROW * len(own) + _GAP
    if left := shown[_MOST:]:
        wrong = sum(_worst(rows[workload.title]) in _WRONG for workload in left)
        words = f"and {len(left)} more workloads, {wrong} of them with findings: see “Every check”"
        parts.append(_text(_BOX, height + 14, words, "soft"))
        height += 30
    height = max(height, _LEAST)
    title = f"Who scrapes whom in the mesh {mesh.trust_domain}"
    drawn = (element("title", title), _headings(), *_actors(report, mesh, ways), *parts)
    return element("svg", *drawn, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=title)


def _middle(top: float, number: int) -> float:
    """Return the middle of the row `number` of a workload that is drawn at `top`."""
    return top + _HEAD + _ROW * number + _ROW / 2


def _headings() -> Markup:
    return join(
        (
            _text(0, 22, "WHO SCRAPES", "small soft strong"),
            _text(_TRUNK + 14, 22, "OVER WHAT, HOW CHECKED", "small soft strong"),
            _text(_BOX + 14, 22, "WORKLOAD AND PORT", "small soft strong"),
            _text(_RIGHT + 20, 22, "EVERYBODY ELSE", "small soft strong"),
        )
    )


def _actors(report: Report, mesh: MeshStatus, ways: Sequence[float]) -> Iterator[Markup]:
    """Yield Prometheus, the scrape proxy if there is one, and the line from which the ways to ports start."""
    y = _TOP
    title = "Prometheus" if mesh.prometheus_workload else "the scraper"
    yield _actor(y, title, mesh.prometheus_workload, report.scraper)
    if mesh.scrape_proxy:
        yield element("line", class_="trunk", x1=28, y1=y + _TALL, x2=28, y2=y + _TALL + 44)
        yield _text(38, y + _TALL + 27, "http on loopback, token", "small soft")
        y += _TALL + 44
        yield _actor(y, "scrape proxy", "checks each SPIFFE ID", mesh.scrape_proxy)
    if ways:
        middle = y + _TALL / 2
        ends = f"M{_TRUNK} {min(*ways, middle)} V{max(*ways, middle)}"
        yield element("path", class_="trunk", d=f"M{_ACTOR} {middle} H{_TRUNK} {ends}")


def _actor(y: float, title: str, second: str, third: str) -> Markup:
    return element(
        "g",
        element("title", f"{title}: {second} {third}"),
        element("rect", class_="actor", x=1, y=y, width=_ACTOR - 1, height=_TALL, rx=8),
        _text(14, y + 24, title, "strong"),
        _text(14, y + 43, fit(second, _ACTOR - 24), "small"),
        _text(14, y + 61, fit(third, _ACTOR - 24), "small soft"),
    )


def _workload(workload: MeshWorkload, rows: Sequence[Row], top: int, proxied: bool) -> Iterator[Markup]:
    worst = _worst(rows)
    bad = f" {worst}" if worst in _WRONG else ""
    height = _HEAD + _ROW * len(rows)
    yield element("rect", class_=f"box{bad}", x=_BOX, y=top, width=_BOX_WIDTH, height=height, rx=8)
    name = element("title", f"{workload.title} {workload.spiffe_id}")
    yield element(
        "g", name,
        _text(_BOX + 14, top + 22, fit(workload.title, _BOX_WIDTH - 28, 14.5), "strong"),
        _text(_BOX + 14, top + 39, fit(str(workload.spiffe_id), _BOX_WIDTH - 28 - _ADDRESS), "small soft"),
        _text(_RIGHT - 14, top + 39, fit(workload.addresses[0], _ADDRESS - 8), "small soft", anchor="end"),
    )  # fmt: skip
    for number, row in enumerate(rows):
        yield from _row(row, _middle(top, number), proxied)


def _row(row: Row, y: float, proxied: bool) -> Iterator[Markup]:
    yield element(
        "line", class_="trunk", x1=_BOX, y1=y - _ROW / 2, x2=_RIGHT, y2=y - _ROW / 2, stroke_opacity="0.25"
    )
    yield _text(_BOX + 14, y + 4, row.port, "strong")
    yield _text(_BOX + 74, y + 4, fit(row.what, _BOX_WIDTH - 88), "small")
    if row.scrape != "none":
        dashed = "" if row.scrape == "ok" else " dashed"
        yield element("path", class_=f"way {row.scrape}{dashed}", d=f"M{_TRUNK} {y} H{_BOX - 9}")
        if row.scrape != "unsure":
            yield _arrow(_BOX, y, row.scrape, 1)
        how = "mutual TLS, identity checked" if proxied else "mutual TLS, server unchecked"
        yield _text(_TRUNK + 14, y - 6, how if row.scrape == "ok" else "mutual TLS", "small")
        yield _text(
            _TRUNK + 14,
            y + 15,
            fit(f"{_MARK[row.scrape]} {row.scrape_words}", _BOX - _TRUNK - 24),
            f"small {row.scrape}",
        )
    yield from _others(row, y)


def _others(row: Row, y: float) -> Iterator[Markup]:
    """Yield the other clients' way, which ends at a bar (refused) or arrives (open)."""
    if row.others == "none":
        return
    if row.others == "ok":
        yield element(
            "path", class_="way", d=f"M{_RIGHT + 40} {y} H{_RIGHT + 14} M{_RIGHT + 12} {y - 8} V{y + 8}"
        )
    else:
        dashed = "" if row.others == "bad" else " dashed"
        yield element("path", class_=f"way {row.others}{dashed}", d=f"M{_RIGHT + 40} {y} H{_RIGHT + 9}")
        if row.others != "unsure":
            yield _arrow(_RIGHT, y, row.others, -1)
    words = fit(f"{_MARK[row.others]} {row.others_words}", _WIDTH - _RIGHT - 52)
    yield _text(_RIGHT + 48, y + 4, words, f"small {row.others}")


def _arrow(x: float, y: float, state: State, direction: int) -> Markup:
    back = x - 10 * direction
    return element("path", class_=f"head {state}", d=f"M{x} {y} L{back} {y - 5} L{back} {y + 5} Z")


def _text(x: float, y: float, words: str, class_: str, anchor: str = "start") -> Markup:
    return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def _worst(rows: Iterable[Row]) -> State:
    states = {state for row in rows for state in (row.scrape, row.others)}
    return next((state for state in ("bad", "unsure", "warn", "ok") if state in states), "none")


def _rows(workload: MeshWorkload, checks: Sequence[CheckResult]) -> Iterator[Row]:
    """Yield the ports of the first address and other open ports, from the `checks` of the workload."""
    address = workload.addresses[0]
    by_target: dict[str, list[CheckResult]] = {}
    for result in checks:
        by_target.setdefault(result.target, []).append(result)
    known = dict(_ports(workload))
    for port, what in known.items():
        yield _judged(str(port), what, by_target.pop(host_port(address, port), []))
    for target, results in by_target.items():
        exposed = [result for result in results if result.outcome in ("failed", "skipped", "noted")]
        if exposed:
            yield _judged(
                target.rpartition(":")[2] if ":" in target else "", _unknown(target, address), exposed
            )


def _unknown(target: str, address: str) -> str:
    return "not announced" if target.startswith(address) else f"at {target}"


def _ports(workload: MeshWorkload) -> Iterator[tuple[int, str]]:
    secure = (
        (workload.secure_merged, "all its metrics, merged"),
        (workload.secure_stats, "Envoy's statistics"),
    )
    yield from ((port, what) for port, what in secure if port is not None)
    for own in workload.application:
        mode = {"STRICT": "mutual TLS only", "PERMISSIVE": "mutual TLS or plain"}.get(own.mtls, "plain")
        yield own.port, f"application, {mode}" + (f", {own.metrics}" if own.metrics else "")
    plain = (
        (workload.merged, "merged metrics, plaintext"),
        (workload.stats, "Envoy's statistics, plaintext"),
    )
    yield from ((port, what) for port, what in plain if port is not None)


def _judged(port: str, what: str, results: Sequence[CheckResult]) -> Row:
    is_scraped = any(_side(result) == "scraper" for result in results)
    sides = ("scraper", "either") if is_scraped else ()
    scrape = [result for result in results if _side(result) in sides]
    others = [result for result in results if _side(result) not in sides]
    return Row(port, what, *_state(scrape, "scraped"), *_state(others, _refusal(others)))


def _side(result: CheckResult) -> Side:
    check = CHECKS.get(result.check)
    return check.side if check else "others"


def _refusal(results: Sequence[CheckResult]) -> str:
    """Return the word for a port whose checks pass."""
    checks = (port_check(result.check) for result in results)
    return next((check.refusal for check in checks if check and check.refusal), "nothing to read")


def _state(results: Sequence[CheckResult], good: str) -> tuple[State, str]:
    """Return the worst state of some checks, and a short text about it."""
    if not results:
        return "none", ""
    failed = [result.check for result in results if result.outcome == "failed"]
    if failed:
        return "bad", ", ".join(failed)
    unsure = [result.check for result in results if result.outcome in ("skipped", "blocked")]
    if unsure:
        return "unsure", f"unchecked: {', '.join(unsure)}"
    noted = [result.check for result in results if result.outcome == "noted"]
    if any(check.exposes for check in map(port_check, noted) if check):
        return "warn", "open to every client"
    if noted:
        return "warn", f"noted: {', '.join(noted)}"
    return "ok", f"{good} ({len(results)} check{'s' if len(results) > 1 else ''})"
