"""The chain from a certificate to a root, judged as Envoy (BoringSSL) judges it.

`cryptography.x509.verification` refuses name constraints on URIs as unsupported, asks for extensions that
BoringSSL does not ask for, and says little about which link is wrong. The rules here are those of
`X509_verify_cert` for the purposes "TLS client" and "TLS server"; tests/integration/test_chains.py compares
them with a real Envoy. One rule is stricter on purpose: an RSA key has at least 2048 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from meshscrape.errors import InputError
from meshscrape.spiffe.bundles import is_issued_by
from meshscrape.spiffe.constraints import name_fault
from meshscrape.spiffe.keys import MIN_RSA_BITS, is_weak

_T = TypeVar("_T", bound=x509.ExtensionType)

# BoringSSL's own bound.
_MAX_DEPTH = 100
_KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.INHIBIT_ANY_POLICY,
    }
)
_DIGESTS = (hashes.SHA1, hashes.SHA224, hashes.SHA256, hashes.SHA384, hashes.SHA512)


class Purpose(StrEnum):
    """What the first certificate of a chain is used for."""

    CLIENT = "client"
    SERVER = "server"


class ChainFault(StrEnum):
    """Why a chain is refused; the `code` of the error."""

    UNTRUSTED = "untrusted"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    NOT_A_CA = "not-a-ca"
    PATH_LENGTH = "path-length"
    PURPOSE = "purpose"
    NAMES = "name-constraints"
    EXTENSION = "extension"
    SIGNATURE = "signature"
    WEAK_KEY = "weak-key"


_EKU = {Purpose.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH, Purpose.SERVER: ExtendedKeyUsageOID.SERVER_AUTH}


def path_to_root(
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: datetime,
    *,
    purposes: Sequence[Purpose] = tuple(Purpose),
    where: str = "",
) -> tuple[x509.Certificate, ...]:
    """Return the certificates from `chain[0]` up to one of `roots`, both included.

    The rest of `chain` are the intermediates that were sent, in any order. Raises InputError at `where`, with
    a `ChainFault` as its code, unless a peer that trusts `roots` accepts `chain[0]` for all `purposes`.
    """
    path = _path(chain, roots, now)
    if path is None:
        issuer = _path_without_root(chain, roots)[-1].issuer.rfc4514_string()[:200]
        raise InputError(
            f"the certificate's chain does not reach a root of the bundle (it asks for {issuer!a})",
            where=where,
            remedy="check that the CA and the bundle belong together, and that every intermediate is sent",
            code=ChainFault.UNTRUSTED,
        )
    for problem, fault, remedy in _faults(path, now, purposes):
        raise InputError(problem, where=where, remedy=remedy, code=fault)
    return path


def issuing_root(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    """Return the root that `chain` leads to, or None; only signatures are checked."""
    path = _path(chain, roots, None)
    if path is None or not all(_signed(below, above) for below, above in pairwise(path)):
        return None
    return path[-1]


def _path(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime | None
) -> tuple[x509.Certificate, ...] | None:
    """Return the one path that BoringSSL considers; it does not go back and try another."""
    path = _path_without_root(chain, roots)
    if path[-1] in roots:
        return tuple(path)
    if _names_issuer(path[-1], path[-1]):
        # The certificate is self-signed and not in the bundle. A root of its name does not vouch for it.
        return None
    candidates = [root for root in roots if _names_issuer(path[-1], root)]
    if not candidates:
        return None
    current = [root for root in candidates if now is None or _covers(root, now)] or candidates
    # Several roots with one name and no key identifiers: BoringSSL tries only one of them, and which one is
    # not defined. Assume the worst case.
    return (*path, next((root for root in current if not _signed(path[-1], root)), current[0]))


def _path_without_root(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    path, left = [chain[0]], list(chain[1:])
    while len(path) < _MAX_DEPTH and path[-1] not in roots:
        if any(_names_issuer(path[-1], issuer) for issuer in (path[-1], *roots)):
            break
        above = next((one for one in left if _names_issuer(path[-1], one)), None)
        if above is None:
            break
        left.remove(above)
        path.append(above)
    return path


def _names_issuer(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether `certificate` names `issuer` as its issuer: by name, key identifier and key usage."""
    if certificate.issuer != issuer.subject:
        return False
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return False
    named = _extension(certificate, x509.AuthorityKeyIdentifier)
    if named is None:
        return True
    own = _extension(issuer, x509.SubjectKeyIdentifier)
    if named.key_identifier is not None and own is not None and named.key_identifier != own.digest:
        return False
    return named.authority_cert_serial_number in (None, issuer.serial_number)


def _faults(
    path: Sequence[x509.Certificate], now: datetime, purposes: Sequence[Purpose]
) -> Iterator[tuple[str, ChainFault, str]]:
    """Yield what is wrong with each link, from the first certificate up."""
    anchor = len(path) - 1
    for depth, certificate in enumerate(path):
        name = title(certificate, depth)
        yield from _own_faults(certificate, name, now)
        if depth == anchor:
            # A root is trusted because it is in the bundle. BoringSSL checks none of its other extensions.
            continue
        yield from _extension_faults(certificate, name)
        if depth:
            yield from _authority_faults(path, depth, name)
        for purpose in purposes:
            if not _serves(certificate, purpose, leaf=depth == 0):
                remedy = "let the CA issue it for client and server authentication"
                yield f"{name} may not be used by a TLS {purpose} (key usage)", ChainFault.PURPOSE, remedy
        if not _signed(certificate, path[depth + 1]):
            yield (
                f"the signature of {name} does not match its issuer's key",
                ChainFault.SIGNATURE,
                "request a new certificate",
            )
    if problem := name_fault(path):
        yield problem, ChainFault.NAMES, "use a name that the CA's name constraints permit"


def _own_faults(
    certificate: x509.Certificate, name: str, now: datetime
) -> Iterator[tuple[str, ChainFault, str]]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        yield (
            f"{name} expired at {_moment(end)}",
            ChainFault.EXPIRED,
            "renew it; if it is new, compare the clocks of this machine and the CA's",
        )
    if now < begin:
        yield (
            f"{name} is not valid before {_moment(begin)}",
            ChainFault.NOT_YET_VALID,
            "compare the clocks of this machine and the CA's",
        )
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        yield f"{name} has a key of an unknown kind", ChainFault.WEAK_KEY, "use ECDSA on P-256"
        return
    if is_weak(key):
        yield (
            f"{name} has an RSA key of fewer than {MIN_RSA_BITS} bits",
            ChainFault.WEAK_KEY,
            "use ECDSA on P-256, or a longer RSA key",
        )


def _extension_faults(certificate: x509.Certificate, name: str) -> Iterator[tuple[str, ChainFault, str]]:
    try:
        unknown = [
            one.oid for one in certificate.extensions if one.critical and one.oid not in _KNOWN_CRITICAL
        ]
    except (ValueError, x509.DuplicateExtension):
        yield f"{name} has malformed extensions", ChainFault.EXTENSION, "request a new certificate"
        return
    if unknown:
        yield (
            f"{name} has an unknown critical extension ({unknown[0].dotted_string})",
            ChainFault.EXTENSION,
            "issue it without that extension",
        )


def _authority_faults(
    path: Sequence[x509.Certificate], depth: int, name: str
) -> Iterator[tuple[str, ChainFault, str]]:
    certificate = path[depth]
    basic = _extension(certificate, x509.BasicConstraints)
    if basic is None or not basic.ca:
        yield f"{name} is not a CA certificate", ChainFault.NOT_A_CA, "send the certificates of CAs only"
        return
    below = sum(1 for one in path[1:depth] if one.subject != one.issuer)
    if basic.path_length is not None and below > basic.path_length:
        yield (
            f"{name} allows {basic.path_length} CAs below it, and {below} follow (path length)",
            ChainFault.PATH_LENGTH,
            "issue from a CA whose path length permits CAs below it",
        )


def _serves(certificate: x509.Certificate, purpose: Purpose, *, leaf: bool) -> bool:
    extended = _extension(certificate, x509.ExtendedKeyUsage)
    if extended is not None and _EKU[purpose] not in extended:
        return False
    usage = _extension(certificate, x509.KeyUsage)
    # TLS with ephemeral keys signs, on both sides.
    return usage is None or not leaf or usage.digital_signature


def title(certificate: x509.Certificate, depth: int = 0) -> str:
    """Return the name that messages give to a certificate of a chain."""
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if common:
        return f"the certificate {str(common[0].value)[:100]!a}"
    return "the certificate" if depth == 0 else f"certificate {depth + 1} of the chain"


def _extension(certificate: x509.Certificate, kind: type[_T]) -> _T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return None


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    digest = certificate.signature_hash_algorithm
    if isinstance(digest, _DIGESTS) or certificate.signature_algorithm_oid == SignatureAlgorithmOID.ED25519:
        return is_issued_by(certificate, issuer)
    return False


def _covers(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
