"""Remember the results of verifications from run to run, and show them as metric families (pure).

A green result needs further runs: it is withdrawn when a run could not be made or is overdue. A red result
stays until a later run disproves it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, TypeAlias

from meshscrape.exposition.health import Family, render_families
from meshscrape.verify.findings import CheckResult, Finding, Report, SeenCertificate
from meshscrape.verify.registry import CHECKS, port_check

RunResult: TypeAlias = Literal["clean", "findings", "failed"]
_RESULTS: tuple[RunResult, ...] = ("clean", "findings", "failed")
_OVERDUE = 3  # intervals without the end of a run


@dataclass(frozen=True, slots=True)
class History:
    """The state that is kept from run to run. Times are UTC; None means that it has not happened yet.

    `report` belongs to the last run that could be made. `failure` says why the latest run could not be made.
    """

    interval: float
    runs: Mapping[RunResult, int] = field(default_factory=lambda: dict.fromkeys(_RESULTS, 0))
    report: Report | None = None
    ended: datetime | None = None
    failure: str = ""

    def after_report(self, report: Report, ended: datetime) -> History:
        """Return the history after a run that was made."""
        result: RunResult = "findings" if report.findings else "clean"
        return replace(self, runs=self._counted(result), report=report, ended=ended, failure="")

    def after_failure(self, reason: str) -> History:
        """Return the history after a run that could not be made."""
        return replace(self, runs=self._counted("failed"), failure=reason)

    @property
    def number(self) -> int:
        """Return how many runs there were."""
        return sum(self.runs.values())

    @property
    def exit_code(self) -> int:
        """Return the exit code of the latest run."""
        if self.failure or self.report is None:
            return 2
        return self.report.exit_code

    def _counted(self, result: RunResult) -> dict[RunResult, int]:
        return {**self.runs, result: self.runs[result] + 1}


@dataclass(frozen=True, slots=True)
class Changes:
    """The findings of a run that the previous run did not have, and the findings that are gone."""

    new: tuple[Finding, ...]
    gone: tuple[Finding, ...]


def changes(before: Report | None, now: Report) -> Changes:
    """Return how the findings of two runs differ. A finding whose text has changed counts as the same."""
    old = {_key(finding): finding for finding in (before.findings if before else ())}
    new = {_key(finding): finding for finding in now.findings}
    return Changes(
        tuple(finding for key, finding in new.items() if key not in old),
        tuple(finding for key, finding in old.items() if key not in new),
    )


def render(history: History, now: datetime) -> bytes:
    """Return the families as text exposition 0.0.4."""
    return render_families(families(history, now))


def is_stale(history: History, now: datetime) -> bool:
    """Return whether the last report is too old to tell anything about the present."""
    if history.failure or history.report is None or history.ended is None:
        return True
    overdue = _OVERDUE * history.interval + history.report.seconds
    return (now - history.ended).total_seconds() > overdue


def families(history: History, now: datetime) -> Iterator[Family]:
    """Yield every family. Label values are names of checks and names from the status document only."""
    yield Family(
        "meshscrape_verify_runs_total", "counter", "Verifications that ended, by result.",
        [({"result": result}, history.runs[result]) for result in _RESULTS],
    )  # fmt: skip
    yield _gauge("meshscrape_verify_interval_seconds", "Seconds between two verifications.", history.interval)
    if history.number:
        made = 0 if history.failure else 1
        yield _gauge(
            "meshscrape_verify_last_run_success", "Whether the last verification could be made.", made
        )
    if history.report is None or history.ended is None:
        return
    yield _gauge(
        "meshscrape_verify_last_run_timestamp_seconds",
        "When the last verification that could be made ended, in Unix time.", history.ended.timestamp(),
    )  # fmt: skip
    yield _gauge(
        "meshscrape_verify_last_run_duration_seconds",
        "How long the last verification that could be made took.", history.report.seconds,
    )  # fmt: skip
    stale = is_stale(history, now)
    yield from _checks(history.report.checks, stale=stale)
    yield _exposed(history.report.checks, stale=stale)
    yield _certificates(history.report.certificates)


def _checks(results: Sequence[CheckResult], *, stale: bool) -> Iterator[Family]:
    """Yield 0 or 1 by check and workload: the worst of its ports. A stale report yields only red results."""
    failed: dict[tuple[str, str], bool] = defaultdict(bool)
    skipped: dict[tuple[str, str], bool] = defaultdict(bool)
    for result in results:
        key = (result.check, result.workload)
        failed[key] |= result.outcome in ("failed", "skipped")
        skipped[key] |= result.outcome == "skipped"
    shown = [key for key in failed if failed[key] or not stale]
    yield Family(
        "meshscrape_check_failed", "gauge",
        "Whether a check of a workload found something, or could not be made.",
        [({**_check_labels(key), "severity": _severity(key[0])}, failed[key]) for key in shown],
    )  # fmt: skip
    yield Family(
        "meshscrape_check_skipped", "gauge", "Whether a check of a workload could not be made.",
        [(_check_labels(key), skipped[key]) for key in shown],
    )  # fmt: skip


def _exposed(results: Sequence[CheckResult], *, stale: bool) -> Family:
    """Return how many ports anyone can read; `announced` are those that the status document names."""
    ports: dict[tuple[str, str, str], set[str]] = {}
    for result in results:
        check = port_check(result.check)
        if check and (kind := check.exposes) and result.workload:
            for announced in ("false", "true"):
                ports.setdefault((result.workload, kind, announced), set())
            if result.outcome == "failed":
                ports[result.workload, kind, "false"].add(result.target)
            elif result.outcome == "noted":
                ports[result.workload, kind, "true"].add(result.target)
    return Family(
        "meshscrape_plaintext_exposed", "gauge",
        "Ports of a workload's pod addresses that serve metrics or the admin API to any client without TLS.",
        [
            ({**_labels(workload), "kind": kind, "announced": announced}, len(targets))
            for (workload, kind, announced), targets in ports.items()
            if targets or not stale
        ],
    )  # fmt: skip


def _certificates(certificates: Sequence[SeenCertificate]) -> Family:
    ends: dict[tuple[str, str], float] = {}
    for certificate in certificates:
        key, end = (certificate.workload, certificate.role), certificate.not_after.timestamp()
        ends[key] = min(ends.get(key, end), end)
    return Family(
        "meshscrape_verify_certificate_not_after_seconds", "gauge",
        "When the certificate that was seen last ends, in Unix time; the earliest of the workload's ports.",
        [({**_labels(workload), "role": role}, end) for (workload, role), end in ends.items()],
    )  # fmt: skip


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(name, "gauge", text, [({}, value)])


def _labels(workload: str) -> dict[str, str]:
    namespace, _, name = workload.rpartition("/")
    return {"namespace": namespace, "workload": name}


def _check_labels(key: tuple[str, str]) -> dict[str, str]:
    return {"check": key[0], **_labels(key[1])}


def _severity(check: str) -> str:
    """Return the check's severity. A result's own would change, and a changed label makes a new series."""
    known = CHECKS.get(check)
    return known.severity if known else "broken"


def _key(finding: Finding) -> tuple[str, str, str]:
    return (finding.check, finding.workload, finding.target)
