"""Judge whether a certificate that the CA has issued may be used (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from meshscrape.errors import InputError
from meshscrape.spiffe.bundles import load_bundle
from meshscrape.spiffe.certificates import identity_of, key_matches, load_certificates
from meshscrape.spiffe.chains import path_to_root
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.spiffe.keys import load_key


@dataclass(frozen=True, slots=True)
class Issued:
    """A key, its certificate chain (leaf first) and the trust bundle, in PEM, judged usable.

    `not_after` is when the first certificate of the chain expires.
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
        """Return whether no certificate of the chain has expired."""
        return now < self.not_after


def judge(
    key: bytes, chain: bytes, bundle: bytes, *, expected: SpiffeId, now: datetime, where: str
) -> Issued:
    """Judge the three PEM texts and return them as an `Issued` that was received `now`.

    Raises InputError naming `where` unless the certificate is for the key and for exactly the identity
    `expected`, and every Envoy that trusts the bundle accepts its chain, from a client and from a server.
    """
    certificates = load_certificates(chain, where)
    leaf = certificates[0]
    if not key_matches(load_key(key, where), leaf):
        raise InputError("the certificate is for another key than the request", where=where)
    identity = identity_of(leaf)
    if identity != expected:
        raise InputError(f"the certificate is {identity}'s, not {expected}'s", where=where)
    path = path_to_root(certificates, load_bundle(bundle, where), now, where=where)
    not_after = min(certificate.not_valid_after_utc for certificate in path)
    return Issued(key, chain, bundle, leaf.serial_number, not_after, now)
