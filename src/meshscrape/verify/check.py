"""Define checks, plan them for the ports of a mesh, and judge what their probes saw (pure).

`registry` has every check. A check of ports asks a question of each port that it concerns, and judges the
answers; a check of Prometheus judges what its API says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypeAlias

from meshscrape.verify.findings import CheckResult, Outcome, Severity
from meshscrape.verify.observations import Observation
from meshscrape.verify.ports import Port
from meshscrape.verify.probe import Case

_SHOWN_CASES = 4
_WORST_FIRST: tuple[Outcome, ...] = ("failed", "skipped", "noted", "passed")

# Where the picture of a mesh shows a check: on the scraper's line or on the line of all other clients.
# "either" is on the scraper's line of a port that the scraper reads, and on the other line of other ports.
Side: TypeAlias = Literal["scraper", "either", "others"]
Exposes: TypeAlias = Literal["", "metrics", "admin"]


@dataclass(frozen=True, slots=True)
class CheckVerdict:
    """The judgement of a check or of one case; `seen` describes what was seen."""

    outcome: Outcome
    seen: str


@dataclass(frozen=True, slots=True)
class Visit:
    """A case, and what its probe saw."""

    case: Case
    observation: Observation


@dataclass(frozen=True, slots=True)
class Question:
    """What a check asks of one port: its cases, or a verdict that needs none."""

    cases: tuple[Case, ...] = ()
    decided: CheckVerdict | None = None


Ask: TypeAlias = Callable[[Port], Question | None]
Judge: TypeAlias = Callable[[Sequence[Visit], Port, datetime], CheckVerdict]
JudgeOne: TypeAlias = Callable[[Observation, Port, datetime], CheckVerdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a check proves, what to do when it fails, how severe a failure is, and where it is drawn.

    A failed check with `gate` explains why other checks of the same target could not be made.
    """

    name: str
    proves: str
    remedy: str
    severity: Severity
    side: Side = "others"
    gate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PortCheck(Check):
    """A check of ports. `ask` returns None for a port that it does not concern.

    `refusal` is the word for a port that passes, in the picture. `exposes` names what anyone can read when
    the check fails or is noted. `needs_scan` checks are about ports that are not announced.
    """

    ask: Ask
    judge: Judge
    refusal: str = ""
    exposes: Exposes = ""
    needs_scan: bool = False


@dataclass(frozen=True, slots=True)
class PlannedCheck:
    """One check of one port."""

    check: PortCheck
    port: Port
    cases: tuple[Case, ...] = ()
    decided: CheckVerdict | None = None

    @property
    def target(self) -> str:
        """Return the target's `host:port`."""
        return self.port.target

    @property
    def workload(self) -> str:
        """Return the NAMESPACE/NAME of the port's workload, empty for a process beside the mesh."""
        return self.port.workload


def plan(ports: Iterable[Port], checks: Sequence[PortCheck]) -> Iterator[PlannedCheck]:
    """Yield each check of each port that it concerns."""
    for port in ports:
        for check in checks:
            if question := check.ask(port):
                yield PlannedCheck(check, port, question.cases, question.decided)


def judge(planned: PlannedCheck, observations: Sequence[Observation], now: datetime) -> CheckResult:
    """Return the result of a planned check from what its cases saw, in their order."""
    visits = [Visit(case, observation) for case, observation in zip(planned.cases, observations, strict=True)]
    verdict = planned.decided or planned.check.judge(visits, planned.port, now)
    return result_of(planned.check, planned.workload, planned.target, verdict, cases=len(planned.cases))


def result_of(check: Check, workload: str, target: str, verdict: CheckVerdict, cases: int = 1) -> CheckResult:
    """Return the verdict with the check's name, texts and target."""
    return CheckResult(
        check.name, workload, target, verdict.outcome, verdict.seen, check.proves, check.remedy,
        check.severity, cases,
    )  # fmt: skip


def settle(results: Iterable[CheckResult], gates: frozenset[str]) -> tuple[CheckResult, ...]:
    """Return the results, with "blocked" instead of "skipped" where another finding explains them.

    A port that does not admit the scraper is one finding, not one for each check that needs the scraper.
    `gates` are the names of the checks that explain others. Without such a finding among `results` (the check
    was left out, for example) the others stay findings, so that nothing passes silently.
    """
    everything = tuple(results)
    shut = {
        result.target
        for result in everything
        if result.check in gates and result.outcome in ("failed", "skipped")
    }
    return tuple(
        replace(result, outcome="blocked")
        if result.outcome == "skipped" and result.target in shut and result.check not in gates
        else result
        for result in everything
    )


def each_alone(judge_one: JudgeOne) -> Judge:
    """Return a judge that applies `judge_one` to every case and reports the worst outcome."""

    def judge_all(visits: Sequence[Visit], port: Port, now: datetime) -> CheckVerdict:
        return _combine([(visit.case, judge_one(visit.observation, port, now)) for visit in visits])

    return judge_all


def _combine(judged: Sequence[tuple[Case, CheckVerdict]]) -> CheckVerdict:
    if len(judged) > 1 and all(verdict.outcome == "passed" for _, verdict in judged):
        times = Counter(verdict.seen for _, verdict in judged)
        return CheckVerdict("passed", ", ".join(f"{number} x {text}" for text, number in times.items()))
    for outcome in _WORST_FIRST:
        worst = [(case.label, verdict.seen) for case, verdict in judged if verdict.outcome == outcome]
        if worst:
            return CheckVerdict(outcome, _listed(worst, len(judged)))
    raise ValueError("a check without a case has nothing to judge")


def _listed(cases: Sequence[tuple[str, str]], out_of: int) -> str:
    """Return what was seen, each text once, with the first cases that saw it."""
    by_seen: dict[str, list[str]] = {}
    for label, text in cases:
        by_seen.setdefault(text, []).append(label)
    return "; ".join(f"{_labels(labels, out_of)}{text}" for text, labels in by_seen.items())


def _labels(labels: Sequence[str], out_of: int) -> str:
    if len(labels) == out_of:
        return f"all {out_of}: " if out_of > 1 else ""
    more = len(labels) - _SHOWN_CASES
    return ", ".join(labels[:_SHOWN_CASES]) + (f" and {more} more: " if more > 0 else ": ")
