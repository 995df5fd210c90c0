"""Read from a merged exposition which of its sources are down and what was left out (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from meshscrape.verify.explain.scraper import Step
from meshscrape.verify.observations import Answered, Observation, printable
from meshscrape.verify.scraped import SOURCE_UP, labelled_samples, sources_down

_PREFIX = "meshscrape_source_"
_LONGEST = 160
_DOWN_REMEDY = "start the application, or correct port and path of its scrape annotation"


@dataclass(slots=True)
class SourceReport:
    """What one scrape tells about one source. `hidden` counts families that were left out, by the reason.

    The reason is "prometheus", "agent", "limit" or the name of the source that has the family. `names` are
    the first families that were left out, by the same reason.
    """

    problem: str = ""
    malformed: float = 0
    hidden: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def source_reports(body: bytes) -> dict[str, SourceReport]:
    """Return what a merged exposition tells about its sources, by their names."""
    reports: dict[str, SourceReport] = defaultdict(SourceReport)
    for name, labels, value in labelled_samples(body, _PREFIX):
        report = reports[labels.get("source", "")]
        by = labels.get("by", "")
        match name.removeprefix(_PREFIX):
            case "problem_info":
                report.problem = labels.get("problem", "")
            case "malformed_lines_total":
                report.malformed = value
            case "hidden_families":
                report.hidden[by] = int(value)
            case "hidden_family_info":
                report.names[by].append(labels.get("family", ""))
    return dict(reports)


def drops_lines(observation: Observation | None) -> bool:
    """Return whether lines were dropped since the agent's start; a second scrape tells if they still are."""
    return isinstance(observation, Answered) and any(
        report.malformed for report in source_reports(observation.body).values()
    )


def has_sources(body: bytes) -> bool:
    """Return whether this is a merged exposition."""
    return any(labelled_samples(body, SOURCE_UP))


def source_steps(body: bytes, expected: Sequence[str], again: Observation | None) -> Iterator[Step]:
    """Yield whether every source is up, whether its lines are kept, and which families are left out.

    `again` is a second scrape, made when the first one tells of dropped lines.
    """
    reports = source_reports(body)
    down, up = sources_down(body, expected)
    if down:
        reasons = [
            f"{printable(name)}: {printable(report.problem)}"
            for name, report in reports.items()
            if report.problem
        ]
        words = f"{down}{' (' + '; '.join(reasons) + ')' if reasons else ''}"
        text = f"{words}; the scrape itself succeeds, so Prometheus shows the target as up"
        yield Step("sources", "broken", text, _DOWN_REMEDY)
    else:
        yield Step("sources", "ok", up)
    yield _lines(reports, again)
    yield from _families(reports)


def _lines(reports: Mapping[str, SourceReport], again: Observation | None) -> Step:
    name = "dropped lines"
    before = {source: report.malformed for source, report in reports.items() if report.malformed}
    if not before:
        return Step(name, "ok", "none of any source")
    later = source_reports(again.body) if isinstance(again, Answered) else {}
    still = {
        source: later[source].malformed - count
        for source, count in before.items()
        if source in later and later[source].malformed > count
    }
    if still:
        shown = ", ".join(f"{count:.0f} of {printable(source)}" for source, count in still.items())
        return Step(
            name, "broken", f"malformed, too long or unfinished lines are dropped at every scrape: {shown}",
            "correct what the application exports: the first malformed line is in its agent's log",
        )  # fmt: skip
    shown = ", ".join(f"{count:.0f} of {printable(source)}" for source, count in before.items())
    return Step(name, "note", f"since the agent's start, but not in this scrape: {shown}")


def _families(reports: Mapping[str, SourceReport]) -> Iterator[Step]:
    """Yield a step for each reason why families of a source are left out."""
    for source, report in reports.items():
        for by, count in report.hidden.items():
            names = ", ".join(report.names.get(by, ()))
            shown = f" ({printable(names, _LONGEST)}{', …' if len(report.names.get(by, ())) < count else ''})"
            words = f"{count} of {printable(source)}{shown if names else ''}"
            yield _hidden(by, words)


def _hidden(by: str, words: str) -> Step:
    name = "left-out families"
    match by:
        case "prometheus":
            text = f"{words}: Prometheus adds series of these names to every scrape itself"
            return Step(name, "note", text, "rename them in the application")
        case "limit":
            text = f"{words}: there are more families than one source may have"
            return Step(name, "broken", text, "export fewer families, or raise the limit of the merge")
        case "agent":
            text = f"{words}: the agent has families of these names"
            return Step(name, "note", text, "rename them in the application")
        case other:
            text = f"{words}: {printable(other)} comes earlier and has families of these names"
            return Step(name, "note", text, "give each port of the workload names of its own")
