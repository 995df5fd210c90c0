"""Provide the identities of probes: the scraper, strangers with its SPIFFE ID, and other workloads."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.spiffe.certificates import (
    Signer,
    certificates_to_pem,
    identity_of,
    issue_leaf,
    key_matches,
    load_certificates,
    make_csr,
    self_signed_root,
)
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.spiffe.keys import generate_key, key_to_pem, load_key
from meshscrape.system.ca_client import create_certificate
from meshscrape.system.clock import utcnow
from meshscrape.system.credentials import read_credential_files
from meshscrape.system.files import read_input
from meshscrape.verify.certificates import describe_certificate
from meshscrape.verify.findings import SeenCertificate
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload
from meshscrape.verify.probe import Identity
from meshscrape.verify.probes import TlsContexts

_CHAIN, _KEY, _ROOTS = CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
_ATTEMPTS = 5
_RPC_DEADLINE = 10.0
# Certificates expire on whole seconds, and the server's clock may be a little behind.
_MARGIN = timedelta(seconds=1)
_LONGEST_WAIT = timedelta(seconds=60)
# The life of a certificate that a workload's token is exchanged for. A run takes minutes at most.
_LIFE = timedelta(hours=1)
_LOOK = 0.1


class UnavailableIdentity(Exception):
    """A probe cannot use this identity; the text tells why."""


@dataclass(frozen=True, slots=True)
class IdentityFiles:
    """A certificate chain (leaf first) and its key, PEM; `not_after` is the leaf's."""

    chain: bytes
    key: bytes
    identity: SpiffeId
    not_after: datetime


def read_credentials(directory: Path) -> IdentityFiles:
    """Return the credentials in a directory that an agent publishes, all of one generation.

    Raises InputError when there are none, when they do not belong together, or when they are not a
    workload's.
    """
    for _ in range(_ATTEMPTS):
        chain, key, _roots = read_credential_files(directory, roots=False)
        leaf = load_certificates(chain, str(directory / _CHAIN))[0]
        if key_matches(load_key(key, str(directory / _KEY)), leaf):
            return IdentityFiles(chain, key, identity_of(leaf), leaf.not_valid_after_utc)
    raise InputError("the certificate and the key do not belong together", where=str(directory))


def look_alike(identity: SpiffeId, authority: Signer | None, now: datetime) -> IdentityFiles:
    """Return a certificate for `identity` from another CA: `authority`, or one that is made for this call."""
    life = timedelta(hours=1)
    if authority is None:
        key = generate_key()
        root = self_signed_root(identity.trust_domain, key, now, life)
        authority = Signer(root, key, (), (root,))
    own = generate_key()
    leaf = issue_leaf(authority, own.public_key(), identity, now, life)
    chain = certificates_to_pem((leaf, *authority.intermediates))
    return IdentityFiles(chain, key_to_pem(own), identity, leaf.not_valid_after_utc)


class Identities:
    """Every identity of one verification, as TLS contexts. It waits for short-lived ones to expire."""

    def __init__(
        self, mesh: MeshStatus, scraper: MeshWorkload, roots: bytes, own: IdentityFiles, life: timedelta,
        stranger: Signer | None, waiting: Callable[[timedelta], None],
    ) -> None:  # fmt: skip
        self._mesh = mesh
        self._waiting = waiting
        self._roots = roots
        self._contexts: dict[str, TlsContexts] = {}
        self._scraper = scraper
        self._life = life
        self._add("scraper", own)
        self._add("stranger", look_alike(own.identity, stranger, utcnow()))
        self._identity = own.identity
        self._own = own
        self._short_lived: asyncio.Task[tuple[IdentityFiles, TlsContexts]] | None = None
        self._neighbours: dict[str, asyncio.Task[TlsContexts]] = {}

    async def contexts(self, identity: Identity) -> TlsContexts | None:
        """Return how to open TLS as `identity`, or None for no TLS. "expired" returns once it has expired.

        Raises UnavailableIdentity when the identity cannot be obtained.
        """
        match identity.kind:
            case "plain":
                return None
            case "anonymous":
                return self._contexts.get("") or self._add("", None)
            case "workload":
                title = identity.workload
                if title not in self._neighbours:
                    self._neighbours[title] = asyncio.create_task(self._neighbour(title))
                return await asyncio.shield(self._neighbours[title])
            case "short-lived" | "expired":
                if self._short_lived is None:
                    self._short_lived = asyncio.create_task(self._issue())
                issued, contexts = await asyncio.shield(self._short_lived)
                if identity.kind == "expired":
                    await self._outlive(issued.not_after)
                return contexts
            case kind:
                return self._contexts[kind]

    def certificates(self) -> tuple[SeenCertificate, ...]:
        """Return the scraper's own certificate and the roots that it trusts, from its files."""
        leaf = load_certificates(self._own.chain, self._scraper.credentials)[0]
        roots = load_certificates(self._roots, self._scraper.credentials)
        return (
            describe_certificate("scraper", self._scraper.title, "", leaf),
            *(describe_certificate("root", "", "", root) for root in roots),
        )

    async def close(self) -> None:
        """Cancel the requests for certificates that are still under way."""
        waiting = [*self._neighbours.values(), *([self._short_lived] if self._short_lived else [])]
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _neighbour(self, title: str) -> TlsContexts:
        try:
            workload = self._mesh.workload(title)
            return self._add(title, await _credentials_of(self._mesh, workload, self._roots))
        except MeshscrapeError as error:
            raise UnavailableIdentity(str(error)) from error

    async def _issue(self) -> tuple[IdentityFiles, TlsContexts]:
        try:
            issued = await _issued(self._mesh, self._scraper, self._roots, self._life)
        except MeshscrapeError as error:
            raise UnavailableIdentity(f"no short-lived certificate: {error}") from error
        return issued, self._add("short-lived", issued)

    async def _outlive(self, not_after: datetime) -> None:
        """Wait until `not_after` has passed. Raise UnavailableIdentity when that would take too long."""
        while (left := not_after + _MARGIN - utcnow()) > timedelta(0):
            if left > _LONGEST_WAIT:
                raise UnavailableIdentity(
                    f"the CA issued a certificate until {not_after:%H:%M:%S} UTC, longer than requested"
                )
            self._waiting(left)
            await asyncio.sleep(min(left.total_seconds(), _LOOK))

    def _add(self, name: str, credentials: IdentityFiles | None) -> TlsContexts:
        self._contexts[name] = tls_contexts(self._roots, credentials)
        return self._contexts[name]


def tls_contexts(roots: bytes, credentials: IdentityFiles | None) -> TlsContexts:
    """Return how to open TLS with these credentials (or none) to servers of the bundle `roots` (PEM)."""
    blind, older, strict = _context(), _context(), _context()
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    strict.verify_mode = ssl.CERT_REQUIRED
    strict.load_verify_locations(cadata=roots.decode("ascii"))
    if credentials is not None:
        with _in_memory(credentials.chain) as chain, _in_memory(credentials.key) as key:
            for context in (blind, older, strict):
                context.load_cert_chain(chain, key)
    return TlsContexts(blind, older, strict)


@asynccontextmanager
async def identities(
    mesh: MeshStatus, scraper: MeshWorkload, *, life: timedelta, stranger: Signer | None,
    waiting: Callable[[timedelta], None],
) -> AsyncIterator[Identities]:  # fmt: skip
    """Provide the identities of one verification. Their keys are never written to a disk.

    `life` is requested for the short-lived certificate. `waiting` is called with the time until it expires.
    Raises MeshscrapeError when the scraper's own credentials cannot be used.
    """
    roots = _trust_bundle(mesh, scraper)
    own = await _credentials_of(mesh, scraper, roots)
    if own.not_after <= utcnow():
        raise InputError(
            f"the scraper's own certificate ended {own.not_after:%Y-%m-%d %H:%M:%S} UTC",
            where=scraper.credentials, remedy="find out why its agent does not renew it",
        )  # fmt: skip
    made = Identities(mesh, scraper, roots, own, life, stranger, waiting)
    try:
        yield made
    finally:
        await made.close()


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """Provide a path for ssl, which reads credentials from files only. The file is in memory only."""
    descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _credentials_of(mesh: MeshStatus, workload: MeshWorkload, roots: bytes) -> IdentityFiles:
    """Return a workload's credentials: those of its agent, or else what the CA issues for its token."""
    if workload.credentials:
        return read_credentials(Path(workload.credentials))
    return await _issued(mesh, workload, roots, _LIFE)


async def _issued(mesh: MeshStatus, workload: MeshWorkload, roots: bytes, life: timedelta) -> IdentityFiles:
    """Return a new certificate of `workload` from the mesh's CA. The key stays in memory."""
    key, identity = generate_key(), workload.spiffe_id
    token = _read_token(workload.token)
    chain, _ = await create_certificate(
        mesh.ca_address, roots, make_csr(key, identity), life,
        token=token, client_credentials=None if token else Path(workload.credentials),
        deadline=_RPC_DEADLINE,
    )  # fmt: skip
    leaf = load_certificates(chain[0], mesh.ca_address)[0]
    return IdentityFiles(b"".join(chain), key_to_pem(key), identity_of(leaf), leaf.not_valid_after_utc)


def _trust_bundle(mesh: MeshStatus, scraper: MeshWorkload) -> bytes:
    own = Path(scraper.credentials) / _ROOTS if scraper.credentials else None
    path = own if own is not None and own.exists() else Path(mesh.ca_root)
    pem = read_input(path, "the trust bundle")
    return certificates_to_pem(load_certificates(pem, str(path)))


def _read_token(path: str) -> str | None:
    if not path:
        return None
    return read_input(Path(path), "the scraper's token").decode("ascii", "replace").strip()
