"""Results of checks as plain data, and the whole report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Literal, TypeAlias

from meshscrape.verify.mesh_status import MeshStatus

Outcome: TypeAlias = Literal["passed", "failed", "skipped", "blocked", "noted"]
Severity: TypeAlias = Literal["hole", "broken", "skipped"]
Role: TypeAlias = Literal["server", "scraper", "root"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of one target.

    `outcome` is "passed", "failed", "skipped" (could not be made, which is a finding too), "blocked" (could
    not be made, which another finding on the same target explains) or "noted" (worth knowing, no finding).
    `cases` counts the probes.
    """

    check: str
    workload: str
    target: str
    outcome: Outcome
    seen: str
    expected: str
    remedy: str = ""
    severity: Severity = "hole"
    cases: int = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `severity` is "hole" (a client gets what it must not), "broken" or "skipped"."""

    check: str
    workload: str
    target: str
    seen: str
    expected: str
    remedy: str
    severity: Severity


@dataclass(frozen=True, slots=True)
class SeenCertificate:
    """A certificate as it was seen in use; times in UTC, `serial` in hexadecimal.

    `role` is "server" (presented at `target`), "scraper" (verification's own) or "root" (of the bundle).
    `name` is its SPIFFE ID, or its subject where it has none.
    """

    role: Role
    workload: str
    target: str
    name: str
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one verification of `mesh` found; it `started` (UTC) and took `seconds`."""

    checks: tuple[CheckResult, ...]
    scraper: str
    started: datetime
    seconds: float
    certificates: tuple[SeenCertificate, ...] = ()
    mesh: MeshStatus | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the findings: failed and skipped checks, in the order of the checks."""
        return tuple(finding_of(result) for result in self.checks if result.outcome in ("failed", "skipped"))

    @property
    def notes(self) -> tuple[CheckResult, ...]:
        """Return the results that are worth knowing but are not findings."""
        return tuple(result for result in self.checks if result.outcome == "noted")

    @property
    def exit_code(self) -> int:
        """Return 0 without findings, else 1."""
        return 1 if self.findings else 0


def finding_of(result: CheckResult) -> Finding:
    """Return the finding for a failed or skipped result."""
    severity: Severity = "skipped" if result.outcome == "skipped" else result.severity
    return Finding(
        result.check, result.workload, result.target, result.seen, result.expected, result.remedy, severity
    )


def count(results: Iterable[CheckResult], outcome: Outcome) -> int:
    """Return how many of `results` ended as `outcome`."""
    return sum(1 for result in results if result.outcome == outcome)


def grouped(results: Iterable[CheckResult]) -> list[tuple[str, list[CheckResult]]]:
    """Return the results by workload, in the order in which workloads first appear."""
    order: dict[str, int] = {}
    listed = tuple(results)
    for result in listed:
        order.setdefault(result.workload, len(order))
    arranged = sorted(listed, key=lambda result: order[result.workload])
    return [(name, list(group)) for name, group in groupby(arranged, key=lambda result: result.workload)]
