"""Define on which ports each check is made, and with which probes: one function each (pure).

A function returns None for a port that the check does not concern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from meshscrape.verify.check import Ask, CheckVerdict, Question
from meshscrape.verify.observations import printable
from meshscrape.verify.ports import Port
from meshscrape.verify.probe import (
    ANONYMOUS,
    EXPIRED,
    PLAIN,
    SCRAPER,
    SHORT_LIVED,
    STRANGER,
    WHOLE,
    Case,
    Identity,
    Probe,
)
from meshscrape.verify.spellings import OTHER_METHODS, other_paths, other_targets


def scrape(port: Port) -> Question | None:
    """Ask a secure port for its metrics as the scraper."""
    return _one(_whole(port)) if port.is_secure else None


def merged_scrape(port: Port) -> Question | None:
    """Ask the merged secure port for its metrics as the scraper."""
    return _one(_whole(port)) if port.role == "secure-merged" else None


def application_scrape(port: Port) -> Question | None:
    """Ask an application port that declares metrics for them, as the scraper."""
    return _one(_whole(port)) if port.role == "application" and port.declares_metrics else None


def server_certificate(port: Port) -> Question | None:
    """Ask every port with mutual TLS for the server's certificate."""
    return _one(replace(port.probe(SCRAPER), kind="certificate")) if port.has_mutual_tls else None


def plain_http(port: Port) -> Question | None:
    """Ask ports that accept nothing but mutual TLS without TLS."""
    return _one(port.probe(PLAIN)) if port.has_mutual_tls and port.strict else None


def over_tls_as(identity: Identity) -> Ask:
    """Return the question that visits every port with mutual TLS as `identity`."""

    def ask(port: Port) -> Question | None:
        return _one(port.probe(identity)) if port.has_mutual_tls else None

    return ask


no_certificate = over_tls_as(ANONYMOUS)
other_ca = over_tls_as(STRANGER)


def expired(port: Port) -> Question | None:
    """Ask with a short-lived certificate while it is valid, and again after its end."""
    if not port.has_mutual_tls:
        return None
    return Question(tuple(Case(port.probe(identity), identity.kind) for identity in (SHORT_LIVED, EXPIRED)))


def resumption(port: Port) -> Question | None:
    """Ask whether a second connection can resume the session of the first, in both versions of TLS."""
    return _versions(port, replace(port.probe(SCRAPER), kind="resumption"), ("TLS 1.2", "TLS 1.3"))


def legacy_tls(port: Port) -> Question | None:
    """Ask for each outdated version of TLS."""
    return _versions(port, replace(port.probe(ANONYMOUS), kind="legacy-tls"), ("TLS 1.0", "TLS 1.1"))


def silence(port: Port) -> Question | None:
    """Connect, send nothing, and wait for the server to close the connection."""
    return _one(replace(port.probe(PLAIN), kind="silence")) if port.has_mutual_tls else None


def unlisted(port: Port) -> Question | None:
    """Ask a secure port as a workload of the mesh that its allow list does not contain."""
    if not port.is_secure:
        return None
    if not port.neighbour:
        return unable("every workload of the mesh is on the allow list of this port")
    return _one(port.probe(Identity("workload", port.neighbour)), port.neighbour)


def paths(port: Port) -> Question | None:
    """Ask for paths other than the served one."""
    if port.role == "proxy" and port.headers:
        return _spelled(port.probe(), other_targets(port.path))
    probe = _unlike_its_own(port)
    return _spelled(probe, other_paths(port.path, port.target)) if probe else None


def methods(port: Port) -> Question | None:
    """Ask for the served path with other methods than GET and HEAD."""
    probe = port.probe() if port.role == "proxy" and port.headers else _unlike_its_own(port)
    if probe is None:
        return None
    cases = [
        Case(replace(probe, method=method), f"{printable(method)} {port.path}") for method in OTHER_METHODS
    ]
    tunnel = port.path.partition("://")[2].partition("/")[0] or port.target
    return Question((*cases, Case(replace(probe, method="CONNECT", path=tunnel), f"CONNECT {tunnel}")))


def proxy_token(port: Port) -> Question | None:
    """Ask the scrape proxy for a target that it knows, without its token and with wrong ones."""
    if port.role != "proxy":
        return None
    if port.unable:
        return unable(port.unable)
    (name, token), *_ = port.headers
    wrong = {
        "no token": (),
        "another token": ((name, "Bearer meshscrape"),),
        "two tokens": ((name, token), (name, "Bearer meshscrape")),
        "the token in another case": ((name, token.swapcase()),),
    }
    return Question(
        tuple(Case(replace(port.probe(), headers=headers), label) for label, headers in wrong.items())
    )


def plaintext(*, hardened: bool) -> Callable[[Port], Question | None]:
    """Return the question that visits the plaintext metrics ports of workloads that are (not) hardened."""
    names = {"stats": "Envoy's statistics", "merged": "merged metrics"}

    def ask(port: Port) -> Question | None:
        name = names.get(port.role, "")
        return _one(port.probe(), name) if name and port.hardened == hardened else None

    return ask


def admin(port: Port) -> Question | None:
    """Ask for Envoy's admin API at its usual port."""
    return _one(port.probe()) if port.role == "admin" else None


def open_port(port: Port) -> Question | None:
    """Ask a port that is not announced for metrics and for Envoy's admin API."""
    if port.role == "searched":
        return unable(port.unable) if port.unable else Question(decided=CheckVerdict("passed", port.found))
    if port.role != "open":
        return None
    return _spelled(port.probe(), port.paths)


def unable(reason: str) -> Question:
    """Return a question without a visit, for a check that could not be made. It is a finding, not a pass."""
    return Question(decided=CheckVerdict("skipped", f"could not be checked: {reason}"))


def _unlike_its_own(port: Port) -> Probe | None:
    """Return a request that a metrics port must refuse; None for ports that serve all requests."""
    if port.is_secure:
        return port.probe(SCRAPER)
    shut = port.hardened and port.role in ("stats", "merged")
    return port.probe() if port.role in ("stats", "merged", "health") and not shut else None


def _whole(port: Port) -> Probe:
    return replace(port.probe(SCRAPER), limit=WHOLE)


def _one(probe: Probe, label: str = "") -> Question:
    return Question((Case(probe, label),))


def _spelled(probe: Probe, spellings: tuple[str, ...]) -> Question:
    return Question(tuple(Case(replace(probe, path=path), f"GET {printable(path)}") for path in spellings))


def _versions(port: Port, probe: Probe, versions: tuple[str, ...]) -> Question | None:
    if not port.has_mutual_tls:
        return None
    return Question(tuple(Case(replace(probe, version=version), version) for version in versions))
