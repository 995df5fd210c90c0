"""The allow list: who may scrape the secure ports.

Entries are typed, because the same text means different things in a URI SAN and in a DNS SAN. A scraper that
is not listed may not scrape; an empty list allows none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from meshscrape.errors import InputError, Place, Where
from meshscrape.istio.names import MESHSCRAPE_SCRAPERS
from meshscrape.istio.ports import shorten
from meshscrape.spiffe.ids import SpiffeId

_SYNTAX = (
    "write spiffe:spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT or dns:NAME, separated by commas"
)
_VARIABLE_PLACE = Place(variable=MESHSCRAPE_SCRAPERS)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SpiffeScraper:
    """A workload whose certificate has exactly this SPIFFE ID in its URI SAN."""

    id: SpiffeId

    def __str__(self) -> str:
        return f"spiffe:{self.id}"


@dataclass(frozen=True, slots=True)
class TrustDomainScraper:
    """Every workload of a trust domain; spelled `spiffe:spiffe://TRUST_DOMAIN/*`."""

    trust_domain: str

    def __str__(self) -> str:
        return f"spiffe:spiffe://{self.trust_domain}/*"


@dataclass(frozen=True, slots=True)
class DnsScraper:
    """A client from outside the mesh whose certificate has exactly this DNS SAN."""

    name: str

    def __str__(self) -> str:
        return f"dns:{self.name}"


Scraper = SpiffeScraper | TrustDomainScraper | DnsScraper


def parse_scrapers(text: str, where: Where = _VARIABLE_PLACE) -> tuple[Scraper, ...]:
    """Return the allow list that `text` spells: typed entries separated by commas, duplicates dropped.

    Empty text is an empty list. Raises InputError at `where` for entries without a type, for malformed
    SPIFFE IDs and DNS names, and for patterns other than a whole trust domain.
    """
    if not text.strip():
        return ()
    return tuple(dict.fromkeys(_parse_entry(entry.strip(), where) for entry in text.split(",")))


def parse_scrapers_file(text: str, file: str) -> tuple[Scraper, ...]:
    """Return the allow list of a file: typed entries, one or several separated by commas on each line.

    Empty lines and lines that start with # are ignored; an empty file allows no scraper. Raises InputError
    with the `file` and the line, as `parse_scrapers` does.
    """
    scrapers: list[Scraper] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.lstrip().startswith("#"):
            scrapers += parse_scrapers(line, Place(file=file, line=number))
    return tuple(dict.fromkeys(scrapers))


def _parse_entry(entry: str, where: Where) -> Scraper:
    if not entry:
        raise InputError(
            "an entry of the allow list is empty",
            where=where,
            remedy="remove the extra comma",
            code="empty-entry",
        )
    kind, separator, value = entry.partition(":")
    if kind == "dns" and separator:
        return DnsScraper(_dns_name(value, where))
    if kind == "spiffe" and value.startswith("spiffe://"):
        return _parse_spiffe(value, where)
    raise InputError(
        f"{shorten(entry)} is not an entry of the allow list",
        where=where,
        remedy=_SYNTAX,
        code="not-an-entry",
    )


def _parse_spiffe(value: str, where: Where) -> Scraper:
    if value.endswith("/*"):
        trust_domain = value.removeprefix("spiffe://").removesuffix("/*")
        if "/" in trust_domain or "*" in trust_domain:
            raise InputError(
                f"{shorten(value)} is a pattern", where=where, remedy="list SPIFFE IDs one by one; the only "
                "pattern is a whole trust domain, spiffe:spiffe://TRUST_DOMAIN/*", code="pattern",
            )  # fmt: skip
        return TrustDomainScraper(_spiffe_id(f"spiffe://{trust_domain}/any", where).trust_domain)
    spiffe_id = _spiffe_id(value, where)
    if not spiffe_id.path.strip("/"):
        raise InputError(
            f"{shorten(value)} names a trust domain, not a workload",
            where=where,
            remedy=f"write spiffe:{value}/* if every workload of it may scrape",
            code="trust-domain",
        )
    return SpiffeScraper(spiffe_id)


def _spiffe_id(text: str, where: Where) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except InputError as error:
        raise InputError(error.what, where=where, remedy=error.remedy or _SYNTAX, code=error.code) from error


def _dns_name(name: str, where: Where) -> str:
    if len(name) > 253 or _DNS_NAME.fullmatch(name) is None or name.rpartition(".")[2].isdigit():
        raise InputError(
            f"{shorten(name)} is not a DNS name",
            where=where,
            remedy="write the exact name of the certificate in lower case, without wildcards",
            code="not-a-dns-name",
        )
    return name
