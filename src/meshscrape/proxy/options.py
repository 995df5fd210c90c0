"""The options of a scrape proxy, and the checks before its start."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshscrape.errors import InputError, Place
from meshscrape.istio.host_port import host_port
from meshscrape.proxy.discovery import Source
from meshscrape.spiffe.bundles import load_bundle
from meshscrape.spiffe.certificates import identity_of, load_certificates
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.credentials import layout_of, read_credential_files
from meshscrape.system.files import UNREADABLE

logger = logging.getLogger(__name__)

_LOOK = 0.1


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """One scrape proxy.

    `listen` is for scrapes, `discovery` for HTTP SD and metrics. `directory` belongs to it while it runs.
    `credentials` are directories of credentials (`istio/layouts.py`), each with the trust domain
    of its targets; an empty name means the trust domain in the certificate. `aliases` are
    pairs of a trust domain and another name that its certificates may carry while it is being renamed.
    `share_token`: every user may read the token's file, which is in a volume of the pod.
    With `separate_envoy`, something else starts and ends Envoy (see `separate_envoy`). At `share` other
    proxies ask for its targets over mutual TLS: those with its own SPIFFE ID, and `share_with`.
    """

    listen: tuple[str, int]
    discovery: tuple[str, int]
    directory: Path
    token_file: Path
    credentials: Sequence[tuple[str, Path]]
    sources: Sequence[Source]
    aliases: Sequence[tuple[str, str]] = ()
    share_token: bool = False
    share: tuple[str, int] | None = None
    share_with: Sequence[SpiffeId] = ()
    remote: bool = False
    separate_envoy: bool = False
    workers: int = 1
    requests_per_connection: int = 0
    envoy: Path | None = None
    patience: float = 60.0


def check_addresses(options: ProxyOptions) -> None:
    """Raise InputError if other machines could reach the proxy, unless `remote` allows that."""
    for option, (host, port) in (("--listen", options.listen), ("--discovery", options.discovery)):
        address = _check_ip(host, port, option, "127.0.0.1")
        if not address.is_loopback and not options.remote:
            raise InputError(
                "other machines can reach this address; with the token they can scrape like Prometheus",
                where=host_port(host, port),
                remedy="listen on 127.0.0.1, or add --remote",
            )
    if options.share is not None:
        _check_ip(*options.share, "--share", "10.0.0.5")


def _check_ip(
    host: str, port: int, option: str, example: str
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        raise InputError(
            f"{host[:100]!a} is not an IP address", where=option, remedy=f"write {example}:{port}"
        ) from None


async def await_credentials(credentials: Sequence[tuple[str, Path]], patience: float) -> dict[str, Path]:
    """Wait for the files and return the directories by trust domain.

    The wait is logged once, because a mistyped directory looks like one that is not filled yet.

    Raises InputError after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            return trust_domains(credentials)
        except InputError as error:
            if error.code != UNREADABLE or time.monotonic() >= deadline:
                raise
            if not told:
                logger.info("waiting up to %g s for the credentials (%s)", patience, error)
                told = True
        await asyncio.sleep(_LOOK)


def aliases_by_domain(aliases: Sequence[tuple[str, str]], first: str) -> dict[str, tuple[str, ...]]:
    """Return the other names of each trust domain; an empty one stands for `first`."""
    others: dict[str, tuple[str, ...]] = {}
    for domain, alias in aliases:
        others[domain or first] = (*others.get(domain or first, ()), alias)
    return others


def trust_domains(credentials: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Return the directories by trust domain. Raise InputError for missing files and a repeated domain."""
    directories: dict[str, Path] = {}
    for name, directory in credentials:
        files = read_credential_files(directory)
        load_bundle(files.roots, str(directory / layout_of(directory).roots))
        domain = name or _identity(files.chain, directory).trust_domain
        if domain in directories:
            raise InputError(
                f"two credential directories have the trust domain {domain}",
                where=str(directory),
                remedy="write TRUST_DOMAIN=DIR",
            )
        directories[domain] = directory.absolute()
    return directories


def certificate_ends(directories: Mapping[str, Path]) -> dict[str, float]:
    """Return the end of each trust domain's certificate (Unix time), without unreadable ones."""
    ends: dict[str, float] = {}
    for name, directory in directories.items():
        try:
            chain = read_credential_files(directory, key=False, roots=False).chain
            leaf = load_certificates(chain, str(directory))[0]
        except InputError:
            continue
        ends[name] = leaf.not_valid_after_utc.timestamp()
    return ends


def own_identity(directory: Path) -> SpiffeId:
    """Return the SPIFFE ID of the certificate in a directory. Raise InputError without one."""
    return _identity(read_credential_files(directory, key=False, roots=False).chain, directory)


def _identity(chain: bytes, directory: Path) -> SpiffeId:
    path = str(directory / layout_of(directory).chain)
    leaf = load_certificates(chain, path)[0]
    try:
        return identity_of(leaf)
    except InputError as error:
        raise error.at(Place(file=path)) from None
