"""Judging observations: what passes, what is a finding, what could not be checked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshscrape.verify.check import PlannedCheck, judge, plan, settle
from meshscrape.verify.findings import CheckResult, Outcome
from meshscrape.verify.observations import (
    Answered,
    Closed,
    ConnectionRefused,
    Negotiated,
    NotHttp,
    NotObserved,
    Observation,
    Presented,
    Reset,
    TimedOut,
    TlsAlert,
    TlsFailed,
    Unreachable,
    describe,
)
from meshscrape.verify.ports import Port
from meshscrape.verify.probe import Case
from meshscrape.verify.registry import CHECKS, GATES, PORT_CHECKS
from support.ca import TestCa
from support.forgery import Forge

NOW = datetime(2030, 1, 1, tzinfo=UTC)
IDENTITY = "spiffe://cluster.local/ns/default/sa/x"
PORT = Port("secure-stats", "default/x", "127.9.1.1", 15091, spiffe_id=IDENTITY)
ALERT = TlsAlert("certificate required")
EXPIRED = TlsAlert("certificate expired")
NOBODY: tuple[Observation, ...] = (
    ConnectionRefused(),
    Unreachable("No route to host"),
    TimedOut("connect"),
    TimedOut("answer"),
    NotObserved("no token"),
)
CLOSED: tuple[Observation, ...] = (ALERT, Reset(), Closed())


def result(name: str, *seen: Observation, port: Port = PORT, now: datetime = NOW) -> CheckResult:
    """Judge what the check of this name saw, one case for each observation."""
    (check,) = [each for each in PORT_CHECKS if each.name == name]
    probe = port.probe()
    cases = tuple(Case(replace(probe, path=f"/{number}"), f"case {number}") for number in range(len(seen)))
    return judge(PlannedCheck(check, port, cases), seen, now)


@pytest.mark.parametrize("check", ["plain-http", "no-certificate", "other-ca", "legacy-tls"])
def test_only_an_end_below_http_refuses(check: str) -> None:
    """An alert, a reset and a close refuse; any HTTP answer is a finding, a 403 too."""
    for seen in CLOSED:
        assert result(check, seen).outcome == "passed"
    for status in (200, 400, 403, 503):
        assert result(check, Answered(status)).outcome == "failed"
    assert result(check, NotHttp(b"\x00\x00")).outcome == "failed"


@pytest.mark.parametrize(
    "check",
    ["plain-http", "no-certificate", "other-ca", "legacy-tls", "paths", "methods", "unlisted-workload"],
)
def test_closed_port_proves_no_refusal(check: str) -> None:
    """When nothing answers, a refusal is not proven: the check could not be made."""
    for seen in NOBODY:
        assert result(check, seen).outcome == "skipped"


def test_an_old_version_that_is_agreed_to_is_found() -> None:
    """One of the two is enough."""
    found = result("legacy-tls", TlsAlert("protocol version"), Negotiated("TLS 1.1"))
    assert (found.outcome, found.seen) == ("failed", "case 1: the server agreed to TLS 1.1")


@pytest.mark.parametrize(
    ("control", "expired", "outcome"),
    [
        (Answered(200), EXPIRED, "passed"),
        (TlsAlert("unknown ca"), EXPIRED, "passed"),
        (Answered(200), Reset(), "passed"),
        (Answered(200), TlsAlert("unknown ca"), "passed"),
        (TlsAlert("unknown ca"), TlsAlert("unknown ca"), "skipped"),
        (Answered(403), Reset(), "passed"),
        (Reset(), Reset(), "skipped"),
        (Answered(200), Answered(200), "failed"),
        (Answered(200), Answered(403), "failed"),
        (TlsAlert("unknown ca"), Answered(200), "failed"),
        (NotObserved("no token"), NotObserved("no token"), "skipped"),
        (Answered(200), ConnectionRefused(), "skipped"),
    ],
)
def test_refusal_must_be_for_expiry(control: Observation, expired: Observation, outcome: Outcome) -> None:
    """A certificate that was refused while it was valid too proves nothing about its end."""
    assert result("expired-certificate", control, expired).outcome == outcome


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (Answered(403), "passed"),
        (Answered(200), "failed"),
        (Answered(404), "failed"),
        (Answered(503), "failed"),
        (ALERT, "skipped"),
        (TlsFailed("x"), "skipped"),
    ],
)
def test_a_neighbour_gets_exactly_403(seen: Observation, outcome: Outcome) -> None:
    """Anything else that HTTP answers came from behind the allow list."""
    assert result("unlisted-workload", seen).outcome == outcome


@pytest.mark.parametrize("check", ["paths", "methods"])
def test_one_open_path_is_a_finding(check: str) -> None:
    """A single case that is not refused makes the finding, and is named; redirects and 5xx are no refusal."""
    for status in (200, 204, 301, 307, 500, 502, 503):
        found = result(check, Answered(404), Answered(status), Answered(400), ALERT)
        assert found.outcome == "failed"
        assert found.seen.startswith(f"case 1: HTTP {status}")
    assert result(check, Answered(404), Answered(405), Answered(400), Reset()).outcome == "passed"


def test_many_open_paths_are_summed_up() -> None:
    """The first ones are named, the rest counted."""
    found = result("paths", Answered(404), *(Answered(200) for _ in range(9)))
    assert found.seen == "case 1, case 2, case 3, case 4 and 5 more: HTTP 200"


@pytest.mark.parametrize("check", ["plaintext-closed", "admin-closed"])
def test_closed_port_accepts_no_connection(check: str) -> None:
    """A refused connection passes; whoever accepts one is found, even when it then says nothing."""
    for seen in (ConnectionRefused(), Unreachable("No route to host"), TimedOut("connect")):
        assert result(check, seen).outcome == "passed"
    for listening in (Answered(200), Answered(403), TimedOut("answer"), *CLOSED, NotHttp(b"x")):
        assert result(check, listening).outcome == "failed"


def test_open_plaintext_is_a_note() -> None:
    """Not hardened is a choice, not a fault."""
    assert result("plaintext-open", Answered(200)).outcome == "noted"
    assert result("plaintext-open", ConnectionRefused()).outcome == "passed"


@pytest.mark.parametrize("check", ["scraper-admitted", "application-metrics"])
def test_the_scraper_needs_a_whole_200(check: str) -> None:
    """Everything else breaks the scrape; a body beyond the limit was not judged."""
    assert result(check, Answered(200)).outcome == "passed"
    for seen in (Answered(200, end="cut"), Answered(403), *CLOSED, ConnectionRefused(), TimedOut("answer")):
        assert result(check, seen).outcome == "failed"
    assert result(check, Answered(200, body=b"x", end="limit")).outcome == "skipped"


def test_a_resumed_session_is_found() -> None:
    """In any version of TLS."""
    assert result("session-resumption", Answered(200), Answered(200)).outcome == "passed"
    assert result("session-resumption", Answered(200), Answered(200, resumed=True)).outcome == "failed"
    assert result("session-resumption", Answered(200), ALERT).outcome == "skipped"


AUTHORITY = TestCa()


def presented(identity: str = IDENTITY, issued: timedelta = timedelta(0), distrust: str = "") -> Presented:
    credentials = AUTHORITY.identity(identity, now=datetime.now(UTC) + issued)
    return Presented(credentials.certificate.public_bytes(serialization.Encoding.DER), distrust)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (presented(), ""),
        (presented("spiffe://cluster.local/ns/default/sa/y"), "sa/y instead of"),
        (presented(issued=timedelta(hours=-2)), "ended"),
        (presented(issued=timedelta(hours=1)), "begins"),
        (presented(distrust="unable to get local issuer certificate"), "does not lead"),
        (Presented(b"no certificate"), "does not belong to a workload"),
    ],
)
def test_server_must_have_the_expected_identity(seen: Presented, words: str) -> None:
    """Identity, dates and chain are each judged and named."""
    found = result("server-certificate", seen, now=datetime.now(UTC))
    assert (found.outcome == "passed") is (words == "")
    assert words in found.seen


def test_server_without_spiffe_id_is_not_a_workload() -> None:
    """A certificate of the right CA with a DNS name only is found."""
    leaf = AUTHORITY.server(["productpage.default.svc"]).certificate
    seen = Presented(leaf.public_bytes(serialization.Encoding.DER))
    assert result("server-certificate", seen).outcome == "failed"


def test_a_short_rsa_key_of_a_server_is_a_finding() -> None:
    """Below 2048 bits a key is no proof of an identity."""
    pem = Forge().leaf(IDENTITY, rsa_bits=1024).chain
    seen = Presented(x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER))
    found = result("server-certificate", seen, now=datetime.now(UTC))
    assert (found.outcome, "RSA key of 1024 bits" in found.seen) == ("failed", True)


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (Closed(), "passed"),
        (Reset(), "passed"),
        (ALERT, "passed"),
        (TimedOut("silence"), "failed"),
        (NotHttp(b"220 ready"), "failed"),
        (ConnectionRefused(), "skipped"),
        (TimedOut("connect"), "skipped"),
    ],
)
def test_a_silent_connection_must_be_closed(seen: Observation, outcome: Outcome) -> None:
    """A connection that stays open, or a server that speaks first, is a finding."""
    assert result("silent-connection", seen).outcome == outcome


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (Answered(401), "passed"),
        (Answered(200), "failed"),
        (Answered(403), "failed"),
        (ConnectionRefused(), "skipped"),
    ],
)
def test_proxy_requires_its_token(seen: Observation, outcome: Outcome) -> None:
    """Anything but 401 came from behind the token."""
    assert result("proxy-token", seen).outcome == outcome


def test_unchecked_result_has_a_reason() -> None:
    """A question that cannot be asked is a finding of its own kind."""
    found = [each for each in plan([PORT], PORT_CHECKS) if each.check.name == "unlisted-workload"]
    judged = judge(found[0], [], NOW)
    assert judged.outcome == "skipped"
    assert judged.seen.startswith("could not be checked: every workload")


@pytest.mark.parametrize("check", ["content-type", "exposition", "families", "sources"])
def test_without_a_scrape_there_is_nothing_to_judge(check: str) -> None:
    """The content of a refused scrape could not be checked."""
    assert result(check, Answered(403)).outcome == "skipped"


def test_one_shut_port_is_one_finding() -> None:
    """What could not be checked because the scraper is not let in is explained by that finding."""
    refused = ConnectionRefused()
    results = [
        result("scraper-admitted", refused),
        result("no-certificate", refused),
        result("paths", Answered(200)),
    ]
    settled = settle(results, GATES)
    assert [each.outcome for each in settled] == ["failed", "blocked", "failed"]


def test_absent_finding_explains_nothing() -> None:
    """Left alone, or on another target, what could not be checked stays a finding."""
    elsewhere = replace(result("scraper-admitted", ConnectionRefused()), target="127.9.1.1:15092")
    settled = settle([elsewhere, result("no-certificate", ConnectionRefused())], GATES)
    assert settled[1].outcome == "skipped"
    assert settle([result("exposition", Answered(403))], GATES)[0].outcome == "skipped"


def test_every_check_says_what_it_expects_and_what_to_do() -> None:
    """No check is without words for its reader."""
    for name, check in CHECKS.items():
        assert check.proves, name
        assert check.remedy, name


@pytest.mark.parametrize(
    "seen", [*CLOSED, *NOBODY, Answered(500, body=b"\x1b]0;x\x07\xff\n"), NotHttp(b"\x07\x1b")]
)
def test_descriptions_are_one_harmless_line(seen: Observation) -> None:
    """Whatever a peer sent cannot move a cursor or break a line."""
    assert describe(seen).isprintable()
