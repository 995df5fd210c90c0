"""Judge what one visit saw: passed, failed, noted, or not checked (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import identity_of
from meshscrape.verify import scraped
from meshscrape.verify.check import CheckVerdict, JudgeOne, Visit
from meshscrape.verify.observations import (
    CLOSED_BY_PEER,
    Answered,
    ConnectionRefused,
    Negotiated,
    NotObserved,
    Observation,
    Presented,
    TimedOut,
    TlsAlert,
    TlsFailed,
    Unreachable,
    describe,
    printable,
)
from meshscrape.verify.ports import Port

_ENVOY = ("envoy_",)
_MERGED = ("envoy_", "istio_agent_", scraped.SOURCE_UP)
_LEAST_RSA_BITS = 2048
_REDIRECTS = (301, 302, 307, 308)


def admitted(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass a whole answer with status 200."""
    match observation:
        case Answered(status=200, end="whole"):
            return CheckVerdict("passed", "HTTP 200")
        case Answered(status=200, end="limit", body=body):
            return _unchecked(f"more than {len(body)} bytes")
        case NotObserved() as unable:
            return _unchecked(describe(unable))
        case other:
            return CheckVerdict("failed", describe(other))


def refused_below_http(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass when the server ends the connection before any HTTP answer."""
    if verdict := _unanswered(observation):
        return verdict
    if isinstance(observation, CLOSED_BY_PEER):
        return CheckVerdict("passed", describe(observation))
    if isinstance(observation, TlsFailed):
        return _unchecked(describe(observation))
    return CheckVerdict("failed", describe(observation))


def expired_refused(visits: Sequence[Visit], port: Port, now: datetime) -> CheckVerdict:
    """Pass when a certificate that was accepted while valid is refused after it has expired."""
    control, expired = (visit.observation for visit in visits)
    verdict = refused_below_http(expired, port, now)
    if verdict.outcome != "passed" or expired == TlsAlert("certificate expired"):
        return verdict
    if isinstance(control, Answered):
        return verdict
    return _unchecked(f"the certificate was refused while it was valid too ({describe(control)})")


def forbidden(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass HTTP 403."""
    match observation:
        case Answered(status=403):
            return CheckVerdict("passed", "HTTP 403")
        case Answered() as other:
            return CheckVerdict("failed", describe(other))
        case other:
            return _unchecked(describe(other))


def unauthorized(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass HTTP 401."""
    match observation:
        case Answered(status=401):
            return CheckVerdict("passed", "HTTP 401")
        case Answered() as other:
            return CheckVerdict("failed", describe(other))
        case other:
            return _unchecked(describe(other))


def path_refused(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass a client error, or a connection that the server ends.

    Istio's own listeners redirect some paths to their normal form, which is no answer with content. Istio's
    bootstrap lets Envoy ignore a fragment: then the metrics themselves are served, which is a note.
    """
    if port.istio_listeners and isinstance(observation, Answered) and observation.status in _REDIRECTS:
        return CheckVerdict("passed", f"HTTP {observation.status}")
    if port.istio_agent and _serves_metrics(observation):
        return CheckVerdict("noted", "HTTP 200 with the metrics themselves")
    return _refused_request(observation, port, now)


def method_refused(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass a client error, or a connection that the server ends. Istio's own listeners ignore the method."""
    if port.istio_listeners and _serves_metrics(observation):
        return CheckVerdict("noted", "HTTP 200 with the metrics: Istio's listeners ignore the method")
    return _refused_request(observation, port, now)


def _serves_metrics(observation: Observation) -> bool:
    return (
        isinstance(observation, Answered) and observation.status == 200 and scraped.is_exposition(observation)
    )


def _refused_request(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    if isinstance(observation, Answered) and observation.status in (400, 403, 404, 405, 501):
        return CheckVerdict("passed", f"HTTP {observation.status}")
    return refused_below_http(observation, port, now)


def closed(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass when nothing accepts a connection. Istio's agent accepts it, and answers its own pod only."""
    match observation:
        case Answered(status=403) if port.istio_agent and port.role == "merged":
            return CheckVerdict("passed", "HTTP 403: Istio's agent answers its own pod only")
        case ConnectionRefused() | Unreachable() | TimedOut(phase="connect") as nobody:
            return CheckVerdict("passed", describe(nobody))
        case NotObserved() as unable:
            return _unchecked(describe(unable))
        case other:
            return CheckVerdict("failed", f"something listens: {describe(other)}")


def open_to_everyone(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Note an answer without TLS."""
    match observation:
        case Answered() as answer:
            return CheckVerdict("noted", f"anyone can read it without TLS: {describe(answer)}")
        case other:
            return CheckVerdict("passed", describe(other))


def deadline_kept(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass when the server closes a connection on which the client sends nothing."""
    match observation:
        case TimedOut(phase="silence"):
            return CheckVerdict("failed", "a connection without a handshake stays open")
        case other:
            return refused_below_http(other, port, now)


def server_certificate(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass a valid certificate with the port's own SPIFFE ID and a chain to the trust bundle."""
    return certificate_verdict(observation, port.spiffe_id, now)


def certificate_verdict(observation: Observation, expected: str, now: datetime) -> CheckVerdict:
    """Judge the certificate of a server that must have the SPIFFE ID `expected`."""
    if not isinstance(observation, Presented):
        return _unanswered(observation) or _unchecked(describe(observation))
    try:
        leaf = x509.load_der_x509_certificate(observation.leaf)
        identity = str(identity_of(leaf))
        begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        key = leaf.public_key()
    except (ValueError, InputError) as error:
        return CheckVerdict(
            "failed", f"the certificate does not belong to a workload: {printable(str(error))}"
        )
    faults = []
    if identity != expected:
        faults.append(f"the identity {identity} instead of {expected}")
    if observation.distrust:
        faults.append(f"a chain that does not lead to the trust bundle ({observation.distrust})")
    if now >= end:
        faults.append(f"a certificate that ended {end:%Y-%m-%d %H:%M:%S} UTC")
    if now < begin:
        faults.append(f"a certificate that begins {begin:%Y-%m-%d %H:%M:%S} UTC")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        faults.append(f"an RSA key of {key.key_size} bits, less than {_LEAST_RSA_BITS}")
    return CheckVerdict("failed", "; ".join(faults)) if faults else CheckVerdict("passed", identity)


def legacy_refused(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass when the server does not agree to an outdated version of TLS."""
    if isinstance(observation, Negotiated):
        return CheckVerdict("failed", describe(observation))
    return refused_below_http(observation, port, now)


def not_resumed(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
    """Pass when the second connection needed a full handshake."""
    match observation:
        case Answered(resumed=True) if port.istio_listeners:
            return CheckVerdict(
                "noted", "the second connection resumed the session of the first, as Istio's listeners allow"
            )
        case Answered(resumed=True):
            return CheckVerdict("failed", "the second connection resumed the session of the first")
        case Answered():
            return CheckVerdict("passed", "a full handshake each time")
        case other:
            return _unchecked(describe(other))


def _of_exposition(judge_body: Callable[[Answered, Port], tuple[str, str]]) -> JudgeOne:
    """Return a judge of the scraper's 200; without one there is nothing to judge.

    `judge_body` returns what is wrong (or empty text), and what was seen.
    """

    def of_answer(observation: Observation, port: Port, now: datetime) -> CheckVerdict:
        match observation:
            case Answered(status=200, end="whole") as answer:
                wrong, right = judge_body(answer, port)
                return CheckVerdict("failed", wrong) if wrong else CheckVerdict("passed", right)
            case other:
                return _unchecked(describe(other))

    return of_answer


def _content_type(answer: Answered, port: Port) -> tuple[str, str]:
    return scraped.content_type_fault(answer, versioned=port.role == "secure-merged")


def _exposition(answer: Answered, port: Port) -> tuple[str, str]:
    return scraped.exposition_fault(answer.body)


def _families(answer: Answered, port: Port) -> tuple[str, str]:
    return scraped.missing_families(answer.body, _MERGED if port.role == "secure-merged" else _ENVOY)


def _sources(answer: Answered, port: Port) -> tuple[str, str]:
    return scraped.sources_down(answer.body, port.sources)


content_type = _of_exposition(_content_type)
exposition = _of_exposition(_exposition)
families = _of_exposition(_families)
sources = _of_exposition(_sources)


def _unanswered(observation: Observation) -> CheckVerdict | None:
    """Return "skipped" when no server was there: then a missing answer proves nothing."""
    match observation:
        case ConnectionRefused() | Unreachable() | TimedOut() | NotObserved():
            return _unchecked(describe(observation))
        case _:
            return None


def _unchecked(reason: str) -> CheckVerdict:
    return CheckVerdict("skipped", f"could not be checked: {reason}")
