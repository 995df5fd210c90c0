"""Judge the scraper's own certificate: the first steps of an explanation (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from cryptography import x509

from meshscrape.errors import InputError
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.spiffe.bundles import load_bundle
from meshscrape.spiffe.certificates import identity_of, key_matches, load_certificates
from meshscrape.spiffe.chains import Purpose, path_to_root
from meshscrape.spiffe.keys import load_key
from meshscrape.verify.observations import printable

StepOutcome: TypeAlias = Literal["ok", "note", "broken", "skipped"]

# A certificate with less than this part of its life left should have been renewed.
_SOON = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One step: "ok"; "note" (worth knowing); "broken"; "skipped" (does not apply). `remedy` when broken."""

    name: str
    outcome: StepOutcome
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ScraperFiles:
    """The scraper's credentials as they are in `directory`; `problem` says why a file could not be read."""

    directory: str
    chain: bytes = b""
    key: bytes = b""
    roots: bytes = b""
    problem: str = ""


def certificate_steps(files: ScraperFiles, now: datetime) -> Iterator[Step]:
    """Yield whether the scraper has a certificate of one ID, in date, with its key, from a trusted CA."""
    remedy = "see the log of the scraper's agent: it gets the certificate from the CA and renews it"
    if files.problem:
        yield Step("scraper's certificate", "broken", files.problem, remedy)
        return
    try:
        chain = load_certificates(files.chain, f"{files.directory}/{CERTIFICATE_CHAIN_FILE}")
        identity = identity_of(chain[0])
    except InputError as error:
        yield Step("scraper's certificate", "broken", str(error), remedy)
        return
    yield Step("scraper's certificate", "ok", f"{identity}, in {files.directory}")
    yield _life(chain[0], now)
    try:
        belongs = key_matches(load_key(files.key, f"{files.directory}/{PRIVATE_KEY_FILE}"), chain[0])
        fault = "" if belongs else "the key is not the certificate's"
    except InputError as error:
        fault = str(error)
    remedy = "let the agent write both again; to copy the files, copy the whole directory in one step"
    words = fault or "the private key belongs to the certificate"
    yield Step("scraper's key", "broken" if fault else "ok", words, remedy if fault else "")
    yield _chain(files, chain, now)


def _life(leaf: x509.Certificate, now: datetime) -> Step:
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    name = "certificate's life"
    if now >= end:
        remedy = "find out why its agent does not renew it: check the agent's log, and that the CA answers"
        return Step(
            name, "broken", f"it ended {_moment(end)}, {_ago((now - end).total_seconds())} ago", remedy
        )
    if now < begin:
        remedy = "compare the clocks of the CA and this machine"
        return Step(name, "broken", f"it begins {_moment(begin)}", remedy)
    left = (end - now).total_seconds()
    words = f"until {_moment(end)}, {_ago(left)} from now"
    if left < _SOON * (end - begin).total_seconds():
        return Step(name, "note", f"{words}: overdue for renewal")
    return Step(name, "ok", words)


def _chain(files: ScraperFiles, chain: Sequence[x509.Certificate], now: datetime) -> Step:
    name, remedy = "certificate's chain", "check that the CA and the bundle belong together (`meshscrape ca`)"
    try:
        roots = load_bundle(files.roots, f"{files.directory}/{ROOTS_FILE}")
        root = path_to_root(chain, roots, now, purposes=[Purpose.CLIENT])[-1]
    except InputError as error:
        return Step(name, "broken", printable(str(error.what)), remedy)
    title = printable(root.subject.rfc4514_string())
    return Step(
        name, "ok", f"leads to {title} of the trust bundle ({len(roots)} root{'s' * (len(roots) > 1)})"
    )


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
