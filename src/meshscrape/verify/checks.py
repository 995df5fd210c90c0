"""Judging, purely: what was expected, what was seen, and so what is wrong and what to do.

`CHECKS` names every check of a port; `judge` applies one to the observations of its cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509

from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import identity_of
from meshscrape.verify import exposed, scraped
from meshscrape.verify.findings import CheckResult, Outcome, Severity
from meshscrape.verify.matrix import Case, Expectation, PlannedCheck
from meshscrape.verify.observations import (
    CLOSED_BY_PEER,
    Answered,
    Negotiated,
    NotObserved,
    Observation,
    Presented,
    Refused,
    TimedOut,
    TlsAlert,
    TlsFailed,
    Unreachable,
    describe,
    printable,
)

_SHOWN_CASES = 4
_WORST_FIRST: tuple[Outcome, ...] = ("failed", "skipped", "noted", "passed")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one case; `seen` says what was seen in the words of the check."""

    outcome: Outcome
    seen: str


Judge = Callable[[Sequence[Observation], Expectation, datetime], Verdict]


@dataclass(frozen=True, slots=True)
class Check:
    """What a check expects in words, what to do when it is not so, and how one case is judged.

    `together` judges take all observations at once; the others are applied to each case alone.
    """

    expected: str
    remedy: str
    severity: Severity
    judge: Judge
    together: bool = False


def judge(planned: PlannedCheck, seen: Sequence[Observation], now: datetime) -> CheckResult:
    """The result of one planned check, given what its cases observed (in their order) and when."""
    check = CHECKS[planned.check]
    if planned.expectation.unable:
        verdict = Verdict("skipped", f"could not be checked: {planned.expectation.unable}")
    elif planned.expectation.looked:
        verdict = Verdict("passed", planned.expectation.looked)
    elif check.together:
        verdict = check.judge(seen, planned.expectation, now)
    else:
        judged = [
            (case, check.judge([each], planned.expectation, now))
            for case, each in zip(planned.cases, seen, strict=True)
        ]
        verdict = _combine(judged)
    return CheckResult(
        planned.check, planned.workload, planned.target, verdict.outcome, verdict.seen, check.expected,
        check.remedy, check.severity, len(planned.cases),
    )  # fmt: skip


def settle(results: Iterable[CheckResult]) -> tuple[CheckResult, ...]:
    """The results, with those that could not be checked marked "blocked" where another finding explains it.

    A port that does not even admit the scraper is one finding, not one per check that needs it. Without
    that finding among `results` (it was left out, say) they stay what they are: nothing passes silently.
    """
    everything = tuple(results)
    gates = {
        each.target for each in everything if each.check in _GATES and each.outcome in ("failed", "skipped")
    }
    return tuple(
        replace(each, outcome="blocked")
        if each.outcome == "skipped" and each.target in gates and each.check not in _GATES
        else each
        for each in everything
    )


def _combine(judged: Sequence[tuple[Case, Verdict]]) -> Verdict:
    """The worst outcome of all cases, with what was seen in those that had it."""
    if len(judged) > 1 and all(verdict.outcome == "passed" for _, verdict in judged):
        times = Counter(verdict.seen for _, verdict in judged)
        return Verdict("passed", ", ".join(f"{number} x {seen}" for seen, number in times.items()))
    for outcome in _WORST_FIRST:
        worst = [(case.label, verdict.seen) for case, verdict in judged if verdict.outcome == outcome]
        if worst:
            return Verdict(outcome, _listed(worst, len(judged)))
    raise ValueError("a check without a case has nothing to judge")


def _listed(cases: Sequence[tuple[str, str]], out_of: int) -> str:
    """What was seen, the same thing once, with the first cases in which it was."""
    by_seen: dict[str, list[str]] = {}
    for label, seen in cases:
        by_seen.setdefault(seen, []).append(label)
    return "; ".join(f"{_labels(labels, out_of)}{seen}" for seen, labels in by_seen.items())


def _labels(labels: Sequence[str], out_of: int) -> str:
    if len(labels) == out_of:
        return f"all {out_of}: " if out_of > 1 else ""
    more = len(labels) - _SHOWN_CASES
    return ", ".join(labels[:_SHOWN_CASES]) + (f" and {more} more: " if more > 0 else ": ")


def _unanswered(seen: Observation) -> Verdict | None:
    """Nobody was there to refuse anything: no proof either way."""
    match seen:
        case Refused() | Unreachable() | TimedOut() | NotObserved():
            return Verdict("skipped", f"could not be checked: {describe(seen)}")
        case _:
            return None


def _admitted(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    match seen[0]:
        case Answered(status=200, end="whole"):
            return Verdict("passed", "HTTP 200")
        case Answered(status=200, end="limit", body=body):
            return Verdict("skipped", f"could not be checked: more than {len(body)} bytes")
        case NotObserved() as unable:
            return Verdict("skipped", f"could not be checked: {describe(unable)}")
        case other:
            return Verdict("failed", describe(other))


def _refused_below_http(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    first = seen[0]
    if verdict := _unanswered(first):
        return verdict
    if isinstance(first, CLOSED_BY_PEER):
        return Verdict("passed", describe(first))
    if isinstance(first, TlsFailed):
        return Verdict("skipped", f"could not be checked: {describe(first)}")
    return Verdict("failed", describe(first))


def _expired_refused(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    """Cases: the short-lived certificate while it is valid (the control), and after its end."""
    control, expired = seen
    verdict = _refused_below_http([expired], expectation, now)
    if verdict.outcome != "passed" or expired == TlsAlert("certificate expired"):
        return verdict
    if isinstance(control, Answered) and control.status == 200:
        return verdict
    reason = f"the certificate was refused while it was valid too ({describe(control)})"
    return Verdict("skipped", f"could not be checked: {reason}")


def _forbidden(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    match seen[0]:
        case Answered(status=403):
            return Verdict("passed", "HTTP 403")
        case Answered() as other:
            return Verdict("failed", describe(other))
        case other:
            return Verdict("skipped", f"could not be checked: {describe(other)}")


def _path_refused(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    first = seen[0]
    if verdict := _unanswered(first):
        return verdict
    if isinstance(first, Answered) and first.status in (400, 403, 404, 405, 501):
        return Verdict("passed", f"HTTP {first.status}")
    if isinstance(first, CLOSED_BY_PEER):
        return Verdict("passed", describe(first))
    if isinstance(first, TlsFailed):
        return Verdict("skipped", f"could not be checked: {describe(first)}")
    return Verdict("failed", describe(first))


def _closed(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    match seen[0]:
        case Refused() | Unreachable() | TimedOut(phase="connect") as nobody:
            return Verdict("passed", describe(nobody))
        case NotObserved() as unable:
            return Verdict("skipped", f"could not be checked: {describe(unable)}")
        case other:
            return Verdict("failed", f"something listens: {describe(other)}")


def _open(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    match seen[0]:
        case Answered() as answer:
            return Verdict("noted", f"anyone can read it without TLS: {describe(answer)}")
        case other:
            return Verdict("passed", describe(other))


def _server_certificate(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    first = seen[0]
    if not isinstance(first, Presented):
        return _unanswered(first) or Verdict("skipped", f"could not be checked: {describe(first)}")
    try:
        leaf = x509.load_der_x509_certificate(first.leaf)
        identity = str(identity_of(leaf))
        begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    except (ValueError, InputError) as error:
        return Verdict("failed", f"a certificate that is no workload's: {printable(str(error))}")
    faults = []
    if identity != expectation.spiffe_id:
        faults.append(f"the identity {identity} instead of {expectation.spiffe_id}")
    if first.distrust:
        faults.append(f"a chain that the trust bundle does not vouch for ({first.distrust})")
    if now >= end:
        faults.append(f"a certificate that ended {end:%Y-%m-%d %H:%M:%S} UTC")
    if now < begin:
        faults.append(f"a certificate that begins {begin:%Y-%m-%d %H:%M:%S} UTC")
    return Verdict("failed", "; ".join(faults)) if faults else Verdict("passed", identity)


def _legacy_refused(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    first = seen[0]
    if isinstance(first, Negotiated):
        return Verdict("failed", describe(first))
    return _refused_below_http(seen, expectation, now)


def _not_resumed(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    match seen[0]:
        case Answered(resumed=True):
            return Verdict("failed", "the second connection resumed the session of the first")
        case Answered():
            return Verdict("passed", "a full handshake each time")
        case other:
            return Verdict("skipped", f"could not be checked: {describe(other)}")


def _of_exposition(judge_body: Callable[[Answered, Expectation], tuple[str, str]]) -> Judge:
    """A judge of the scraper's 200; without one there is nothing to judge.

    `judge_body` returns what is wrong (or nothing) and what was seen when nothing is.
    """

    def of_answer(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
        match seen[0]:
            case Answered(status=200, end="whole") as answer:
                wrong, right = judge_body(answer, expectation)
                return Verdict("failed", wrong) if wrong else Verdict("passed", right)
            case other:
                return Verdict("skipped", f"could not be checked: {describe(other)}")

    return of_answer


_OUTSIDE = "a process beside the mesh listens on every address of this machine"


def _metrics_exposed(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    asked = tuple(zip(expectation.paths, seen, strict=True))
    # An admin API that is open is one finding, not two, though it serves metrics as well.
    if exposed.admin_at(asked):
        return Verdict("passed", "Envoy's admin API: see exposed-admin")
    found = exposed.metrics_at(asked)
    if not found:
        return Verdict("passed", exposed.nothing_at(asked))
    match expectation.exposure:
        case "hidden":
            return Verdict("failed", f"a port that nobody announced: {found}")
        case "announced":
            return Verdict("noted", f"anyone can read an announced port: {found}")
        case "outside":
            return Verdict("noted", f"{_OUTSIDE}: {found}")


def _admin_exposed(seen: Sequence[Observation], expectation: Expectation, now: datetime) -> Verdict:
    asked = tuple(zip(expectation.paths, seen, strict=True))
    found = exposed.admin_at(asked)
    if not found:
        return Verdict("passed", exposed.nothing_at(asked))
    if expectation.exposure == "outside":
        return Verdict("noted", f"{_OUTSIDE}: {found}")
    return Verdict("failed", found)


# What these checks find explains everything that could not be checked on the same target.
_GATES = ("scraper-admitted", "application-metrics")

_LISTENER = "use the listener that meshscrape renders"

CHECKS: Mapping[str, Check] = {
    "scraper-admitted": Check(
        "the scraper's certificate is let in and gets HTTP 200",
        "compare MESHSCRAPE_SCRAPERS with the scraper's SPIFFE ID; see the workload's agent log and "
        "`meshscrape listeners`",
        "broken", _admitted,
    ),
    "content-type": Check(
        "the Content-Type of the text format (Prometheus 3 refuses a scrape without a valid one)",
        "see which program answers on this port: the agent and Envoy send a proper type", "broken",
        _of_exposition(scraped.content_type_fault),
    ),
    "exposition": Check(
        "a valid exposition: no malformed line, no family twice, nothing cut off",
        "look at the lines that are named; for the merged port see meshscrape_* counters of the agent",
        "broken", _of_exposition(scraped.exposition_fault),
    ),
    "families": Check(
        "the families that belong on this port", "see that Envoy and the agent run and answer", "broken",
        _of_exposition(scraped.missing_families),
    ),
    "sources": Check(
        "meshscrape_source_up is 1 for every source", "start the application that is down, or correct the "
        "port and path of its scrape annotation", "broken", _of_exposition(scraped.sources_down),
    ),
    "server-certificate": Check(
        "a certificate of the workload's own SPIFFE ID, in date, that the trust bundle vouches for",
        "see the workload's credential directory and its agent's log; something else may own the port",
        "hole", _server_certificate,
    ),
    "plain-http": Check(
        "plain HTTP is refused before any answer",
        f"the port must speak mutual TLS only: {_LISTENER}", "hole", _refused_below_http,
    ),
    "no-certificate": Check(
        "TLS refuses a client without a certificate",
        "set require_client_certificate on the listener's TLS context", "hole", _refused_below_http,
    ),
    "other-ca": Check(
        "TLS refuses the scraper's SPIFFE ID when another CA signed it",
        "the listener's validation context must trust the mesh's bundle only", "hole", _refused_below_http,
    ),
    "expired-certificate": Check(
        "TLS refuses the scraper's certificate after its end",
        "remove allow_expired_certificate from the listener's validation context; compare clocks", "hole",
        _expired_refused, together=True,
    ),
    "session-resumption": Check(
        "every connection needs a full handshake (a resumed one would outlive the certificate)",
        "set disable_stateless_session_resumption and disable_stateful_session_resumption", "hole",
        _not_resumed,
    ),
    "unlisted-workload": Check(
        "a workload of the mesh that is not on the allow list gets HTTP 403",
        "put the RBAC filter with the allow list (MESHSCRAPE_SCRAPERS) in front of the route", "hole",
        _forbidden,
    ),
    "legacy-tls": Check(
        "TLS 1.0 and 1.1 are refused", "set tls_minimum_protocol_version to TLSv1_2", "hole", _legacy_refused
    ),
    "paths": Check(
        "paths beyond the metrics are refused, however they are spelled (HTTP 400, 403, 404 or 405)",
        "route exact paths only, with normalize_path, merge_slashes and REJECT_REQUEST for escaped slashes",
        "hole", _path_refused,
    ),
    "methods": Check(
        "methods other than GET and HEAD are refused (HTTP 400, 403, 404 or 405)",
        "match GET and HEAD in the route", "hole", _path_refused,
    ),
    "plaintext-closed": Check(
        "under METRICS_LOCALHOST_ACCESS_ONLY the pod address refuses connections to this port",
        "bind the plaintext metrics ports to the inside address only", "hole", _closed,
    ),
    "plaintext-open": Check(
        "plaintext metrics can be read by everyone (not hardened)",
        "set METRICS_LOCALHOST_ACCESS_ONLY=true once nothing scrapes this port any more", "hole", _open,
    ),
    "admin-closed": Check(
        "Envoy's admin API is on no TCP port", "put the admin API on a Unix socket of mode 0600", "hole",
        _closed,
    ),
    "application-metrics": Check(
        "the scraper gets the application's metrics over mutual TLS",
        "see that the application runs and that its declared metrics path is right", "broken", _admitted,
    ),
    exposed.METRICS_CHECK: Check(
        "no port of the pod address serves Prometheus metrics without TLS, announced or not",
        "bind the exporter to the workload's inside address (its localhost), and let the agent merge it: "
        "declare port and path in the scrape annotation; a gateway should not route that path", "hole",
        _metrics_exposed, together=True,
    ),
    exposed.ADMIN_CHECK: Check(
        "no port of the pod address serves Envoy's admin API without TLS",
        "put the admin API on a Unix socket of mode 0600: whoever reaches it reads every secret's name, and "
        "can stop Envoy", "hole", _admin_exposed, together=True,
    ),
}  # fmt: skip
