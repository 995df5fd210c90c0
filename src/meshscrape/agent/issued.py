"""A certificate as the CA gave it, and whether it may be used (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from meshscrape.errors import InputError
from meshscrape.spiffe.bundles import is_issued_by, load_bundle
from meshscrape.spiffe.certificates import identity_of, is_authority, key_matches, load_certificates
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.spiffe.keys import load_key


@dataclass(frozen=True, slots=True)
class Issued:
    """A key, its certificate chain (leaf first) and the trust bundle, in PEM, judged usable.

    `not_after` is the end of the first certificate of the chain to end.
    """

    key: bytes
    chain: bytes
    bundle: bytes
    serial: int
    not_after: datetime
    received_at: datetime

    def __repr__(self) -> str:
        return f"Issued(serial={self.serial:x}, not_after={self.not_after.isoformat()})"

    def valid(self, now: datetime) -> bool:
        """Whether every certificate of the chain is within its time."""
        return now < self.not_after


def judge(
    key: bytes, chain: bytes, bundle: bytes, *, expected: SpiffeId, now: datetime, where: str
) -> Issued:
    """The three PEM texts as an `Issued` received `now`.

    InputError naming `where` unless the certificate is for the key and for exactly the identity
    `expected`, and its chain leads, each certificate within its time, to a root of the bundle.
    """
    certificates = load_certificates(chain, where)
    leaf = certificates[0]
    if not key_matches(load_key(key, where), leaf):
        raise InputError("the certificate is not for the key that was asked for", where=where)
    identity = identity_of(leaf)
    if identity != expected:
        raise InputError(f"the certificate is {identity}'s, not {expected}'s", where=where)
    path = _path_to_root(certificates, load_bundle(bundle, where), now, where)
    not_after = min(each.not_valid_after_utc for each in path)
    return Issued(key, chain, bundle, leaf.serial_number, not_after, now)


def _path_to_root(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime, where: str
) -> list[x509.Certificate]:
    path = [chain[0]]
    left = [each for each in chain[1:] if is_authority(each)]
    while True:
        _within_its_time(path[-1], now, where)
        usable = (root for root in roots if is_issued_by(path[-1], root) and _covers(root, now))
        if root := next(usable, None):
            return [*path, root]
        issuer = next((each for each in left if is_issued_by(path[-1], each)), None)
        if issuer is None:
            raise InputError("the certificate's chain leads to no valid root of the bundle", where=where)
        left.remove(issuer)
        path.append(issuer)


def _within_its_time(certificate: x509.Certificate, now: datetime, where: str) -> None:
    if not _covers(certificate, now):
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        raise InputError(
            f"the certificate is valid from {begin.isoformat()} to {end.isoformat()}, not now",
            where=where,
            remedy="compare the clocks of this machine and the CA's",
        )


def _covers(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc
