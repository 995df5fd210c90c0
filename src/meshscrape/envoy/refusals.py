"""The reasons why the scrape proxy refuses or fails a scrape: one catalogue for Envoy, metrics and `explain`.

Envoy decides by the first condition of the catalogue that is met. It writes the reason into the body and
into the header `REASON_HEADER` of its answer. Sources: Envoy's response flags and details
("Access logging", "Response Code Details"), BoringSSL's error names, all seen with Envoy 1.40.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshscrape.envoy.resources.server_keys import STATUS

REASON_HEADER = "x-meshscrape-refusal"
UNKNOWN_ROUTE = "unknown"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason: the `status` of the answer, `when` it applies (a CEL expression), its meaning and remedy.

    `detail` is what Envoy adds to the body (its command operators). A reason without `when` is not in an
    answer of Envoy: the proxy finds it in the log.
    """

    reason: str
    status: int
    meaning: str
    remedy: str
    when: str = ""
    detail: str = ""


_TLS = "upstream.transport_failure_reason"
_DETAILS = "response.code_details"
_SEEN = " (%UPSTREAM_TRANSPORT_FAILURE_REASON%)"
_DETAIL = " (%RESPONSE_CODE_DETAILS%)"


def _tls(*texts: str) -> str:
    return " || ".join(f"{_TLS}.contains('{text}')" for text in texts)


def _details(*texts: str) -> str:
    return " || ".join(f"{_DETAILS}.contains('{text}')" for text in texts)


CATALOGUE: tuple[Refusal, ...] = (
    Refusal(
        "bad-token", 401,
        "the request does not carry the proxy's bearer token",
        "let the job send it: set authorization.credentials_file as `meshscrape prometheus-config` does",
        "response.code_details == 'rbac_access_denied_matched_policy[none]'",
    ),
    Refusal(
        "bad-method", 405, "the proxy passes GET requests on, nothing else", "scrape with GET",
        "response.code_details == 'rbac_access_denied_matched_policy[method]' || "
        "(response.code == 404 && request.method != 'GET')",
    ),
    Refusal(
        "unknown-target", 404,
        "no target of the proxy has this address",
        "check that discovery announces it; a target that is gone is unknown at once",
        f"response.code == 404 && xds.route_name == '{UNKNOWN_ROUTE}'",
    ),
    Refusal(
        "unknown-path", 404,
        "the target may be known, but not with exactly this path, and never with a query",
        "scrape the path that discovery announces, without parameters",
        "response.code_details in ['route_not_found', 'rbac_access_denied_matched_policy[query]']",
    ),
    Refusal(
        "wrong-identity", 503,
        "the server at the target's address has another SPIFFE ID than the expected one",
        "do not trust that address: check what listens there, and that discovery is up to date",
        _tls("SAN matcher"), _SEEN,
    ),
    Refusal(
        "expired-certificate", 503, "the target's certificate has expired",
        "find out why the target's agent does not renew it (agent's log, CA)",
        _tls("certificate has expired"), _SEEN,
    ),
    Refusal(
        "not-yet-valid-certificate", 503, "the target's certificate is not valid yet",
        "compare the clocks of the target, the CA and this machine",
        _tls("certificate is not yet valid"), _SEEN,
    ),
    Refusal(
        "untrusted-certificate", 503,
        "the target's certificate is not signed by a root of its trust domain's bundle",
        "check that the bundle given for the trust domain is the mesh's current one",
        _tls("CERTIFICATE_VERIFY_FAILED"), _SEEN,
    ),
    Refusal(
        "plaintext-server", 503, "the target does not speak TLS on this port",
        "announce the secure port (15091, 15092), or make the target serve mutual TLS",
        _tls("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE"), _SEEN,
    ),
    Refusal(
        # In TLS 1.3 the refusal comes after the handshake, and Envoy reports only "connection-lost".
        "scraper-not-accepted", 503,
        "the target refuses the scraper's certificate in TLS",
        "check that the scraper's certificate is valid and that the target trusts its root",
        f"{_tls('ALERT')} && !({_tls('ON_CLIENT_HELLO', 'PROTOCOL_VERSION')})", _SEEN,
    ),
    Refusal(
        "no-scraper-certificate", 503, "the proxy's Envoy has no certificate to present",
        "read in the proxy's log why Envoy does not accept the files of the credentials directory",
        _tls("Secret is not supplied"), _SEEN,
    ),
    Refusal(
        "tls-failed", 503, "the TLS handshake with the target failed", "read the message of the failure",
        f"{_TLS} != '' && !{_TLS}.contains('delayed connect error') && !{_TLS}.contains('immediate connect')",
        _SEEN,
    ),
    Refusal(
        "weak-key", 503, "the target's RSA key has fewer than 2048 bits",
        "find out why its CA signs such a key; the target saw the request, but its answer is not passed on",
        f"response.code == {STATUS}",
    ),
    Refusal(
        "unreachable", 503, "nothing answers at the target's address",
        "check that the target runs and that the network lets the proxy reach it",
        _details("connection_failure", "connection_timeout"), _DETAIL,
    ),
    Refusal(
        "timeout", 504, "the target did not answer in time",
        "find out why the target's application is slow; the merged metrics show the health of its sources",
        "response.code == 504", _DETAIL,
    ),
    Refusal(
        "overloaded", 503, "the proxy already has the largest number of concurrent scrapes of this identity",
        "scrape less often, or find out why the targets answer slowly",
        _details("overflow"), _DETAIL,
    ),
    Refusal(
        "malformed-answer", 502, "the target's answer is not HTTP",
        "check what listens on that port", _details("protocol_error"), _DETAIL,
    ),
    Refusal(
        "connection-lost", 503, "the target ended the connection instead of answering",
        "read the target's log: the target is shutting down, or does not accept the scraper's certificate",
        _details("upstream_reset", "connection_termination"), _DETAIL,
    ),
    Refusal(
        "bad-request", 400, "the request is malformed, or asks for something that this proxy does not do",
        "send GET http://TARGET:PORT/PATH",
        "response.code >= 400 && response.code != 404 && response.code < 500", _DETAIL,
    ),
    Refusal(
        "unavailable", 503, "the proxy cannot pass the request on", "see the proxy's log",
        "response.code >= 500", _DETAIL,
    ),
    Refusal("cut-off", 0, "the target's answer ended before it was complete", "see the target's log"),
    Refusal(
        "scraper-gave-up", 0, "the scraper ended its request before the target had answered",
        "the scrape timeout is too short for the target, or the target hangs",
    ),
    Refusal(
        "denied-by-target", 0, "the target accepts the scraper's certificate but does not let it scrape",
        "add the scraper's SPIFFE ID to MESHSCRAPE_SCRAPERS of the target",
    ),
)  # fmt: skip

REASONS = tuple(refusal.reason for refusal in CATALOGUE)
_BY_REASON = {refusal.reason: refusal for refusal in CATALOGUE}


def refusal_of(reason: str) -> Refusal | None:
    """Return the catalogue's entry, None for a word that is not a reason."""
    return _BY_REASON.get(reason)


def classify(status: int, flags: str, reason: str, *, connected: bool) -> str:
    """Return the reason for one line of the proxy's log, empty for a successful scrape.

    `reason` is what Envoy answered in `REASON_HEADER`; `flags` are its response flags; `connected` is whether
    a connection to the target was there.
    """
    if reason in _BY_REASON:
        return reason
    if "DC" in flags.split(","):
        return "scraper-gave-up" if connected else "unreachable"
    if flags and flags != "-":
        return "cut-off"
    return "denied-by-target" if status in (401, 403) else ""
