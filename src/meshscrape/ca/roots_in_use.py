"""Find out which roots are in use: query running Envoys and read credential directories."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from meshscrape.ca.authority import trust_domain_of
from meshscrape.ca.rotation import RootUse
from meshscrape.errors import InputError, UnavailableError
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, ROOTS_FILE
from meshscrape.spiffe.certificates import fingerprint, load_certificates
from meshscrape.spiffe.chains import issuing_root
from meshscrape.spiffe.ids import SCHEME
from meshscrape.system.credentials import read_credential_files
from meshscrape.system.envoy_admin import EnvoyAdmin

# The files of a directory of credentials (Istio's names for OUTPUT_CERTS).
CHAIN, ROOTS = CERTIFICATE_CHAIN_FILE, ROOTS_FILE
_ADMIN_SECONDS = 3.0
# How many root users are checked at the same time.
_WIDTH = 16


@dataclass(frozen=True, slots=True)
class RootUser:
    """A user of the mesh's roots: an Envoy (by its admin socket) and credential directories."""

    who: str
    admin_socket: Path | None = None
    directories: tuple[Path, ...] = ()


async def use_of_roots(users: Sequence[RootUser], roots: Sequence[x509.Certificate]) -> list[RootUse]:
    """Return which of `roots` each user uses. A user that cannot be checked has a `problem`."""
    width = asyncio.Semaphore(_WIDTH)

    async def one(user: RootUser) -> list[RootUse]:
        async with width:
            uses = [_directory(f"{user.who} ({path.name})", path, roots) for path in user.directories]
            if user.admin_socket is not None:
                uses += await _envoy(f"{user.who} (Envoy)", user.admin_socket, roots)
            return uses

    return [use for uses in await asyncio.gather(*map(one, users)) for use in uses]


def _directory(who: str, directory: Path, roots: Sequence[x509.Certificate]) -> RootUse:
    try:
        files = read_credential_files(directory, key=False)
        chain = load_certificates(files.chain, str(directory))
        trusted = load_certificates(files.roots, str(directory))
    except InputError:
        return RootUse(who, problem="has no usable certificate yet")
    known = frozenset(map(fingerprint, trusted)) & frozenset(map(fingerprint, roots))
    return RootUse(who, known, known, frozenset({_issuer(chain, roots)}))


async def _envoy(who: str, socket: Path, roots: Sequence[x509.Certificate]) -> list[RootUse]:
    admin = EnvoyAdmin(socket, timeout=_ADMIN_SECONDS)
    try:
        certs, secrets = await asyncio.gather(admin.certs(), admin.secrets())
    except UnavailableError:
        return [RootUse(who, problem="does not answer on its admin socket")]
    use = envoy_use(who, certs, secrets, roots)
    return [use] if use else []


def envoy_use(
    who: str,
    certs: Mapping[str, Any],
    secrets: Sequence[Mapping[str, Any]],
    roots: Sequence[x509.Certificate],
) -> RootUse | None:
    """Return which roots an Envoy uses, by its `/certs` and secrets; None without a TLS context (pure).

    A context with a certificate of another trust domain belongs to another mesh and is left out (a scrape
    proxy may serve several meshes). `/certs` lists the serial numbers that each live TLS context uses. The
    secrets contain the certificates themselves. A root counts only if both contain it.
    """
    domains = {trust_domain_of(root) for root in roots}
    contexts = [
        context for context in certs.get("certificates", ()) if _trust_domain(context) in (*domains, None)
    ]
    if not contexts:
        return None
    bundles = _secrets(secrets, "validation_context", "trusted_ca")
    known = {fingerprint(root) for bundle in bundles for root in bundle}
    by_serial = {root.serial_number: fingerprint(root) for root in roots if fingerprint(root) in known}
    trusts = [
        {by_serial[number] for number in _serials(context, "ca_cert") if number in by_serial}
        for context in contexts
        if context.get("ca_cert")
    ]
    chains = {
        chain[0].serial_number: chain for chain in _secrets(secrets, "tls_certificate", "certificate_chain")
    }
    shown = {number for context in contexts for number in list(_serials(context, "cert_chain"))[:1]}
    issuers = {_issuer(chains[number], roots) if number in chains else "" for number in shown}
    return RootUse(
        who,
        frozenset(set.intersection(*trusts) if trusts else ()),
        frozenset(set().union(*trusts)),
        frozenset(issuers),
    )


def _issuer(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> str:
    """Return the fingerprint of the root that `chain` leads to, empty if it is not one of `roots`."""
    root = issuing_root(chain, roots)
    return fingerprint(root) if root is not None else ""


def _serials(context: Mapping[str, Any], part: str) -> Iterator[int]:
    return (int(certificate["serial_number"], 16) for certificate in context.get(part, ()))


def _trust_domain(context: Mapping[str, Any]) -> str | None:
    """Return the trust domain of a TLS context's own certificate, None without one."""
    for leaf in list(context.get("cert_chain", ()))[:1]:
        for name in leaf.get("subject_alt_names", ()):
            if str(name.get("uri", "")).startswith(SCHEME):
                return str(name["uri"]).removeprefix(SCHEME).partition("/")[0]
    return None


def _secrets(
    secrets: Sequence[Mapping[str, Any]], kind: str, part: str
) -> Iterator[tuple[x509.Certificate, ...]]:
    for secret in secrets:
        text = secret.get(kind, {}).get(part, {}).get("inline_bytes", "")
        try:
            if text:
                yield load_certificates(base64.b64decode(text), kind)
        except (InputError, ValueError):
            continue
