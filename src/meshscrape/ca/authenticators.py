"""Authenticate callers of the CA by a service account token or by their current workload certificate.

The caller receives the text of the exception. It never repeats what the caller has sent.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshscrape.errors import InputError, UnauthenticatedError
from meshscrape.istio.ca_protocol import AUDIENCE
from meshscrape.spiffe.certificates import identity_of
from meshscrape.spiffe.ids import SpiffeId, workload_id
from meshscrape.spiffe.keys import MIN_RSA_BITS
from meshscrape.system.followed import FollowedFile

log = logging.getLogger(__name__)

MAX_TOKEN_CHARACTERS = 16384
MAX_KEYS = 64
_SERVICE_ACCOUNT = "system:serviceaccount"

_MISFITS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidIssuerError: "the token comes from another issuer",
    jwt.InvalidAudienceError: "the token is not meant for this CA",
}

TokenKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller and what proved it."""

    spiffe_id: SpiffeId
    proof: Literal["token", "certificate"]


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key of a token issuer, and the only algorithm it may be used with."""

    key_id: str | None
    algorithm: Literal["RS256", "ES256"]
    key: TokenKey


class JwksFile:
    """The verification keys in a JWKS file, read again when the file changes.

    If the new file is unusable, this is logged once, and the previous keys stay in use.
    """

    def __init__(self, path: Path) -> None:
        """Read `path`. Raise InputError if it is unusable."""
        self._file = FollowedFile(path, "the JSON Web Key Set", parse_jwks, log=log)
        self._file.read()

    def current(self) -> tuple[VerificationKey, ...]:
        """Return the keys of the current file, or of its last usable version."""
        if self._file.changed():
            log.info("token keys read again from %s: %d", self._file.path, len(self._file.value))
        return self._file.value


def parse_jwks(text: bytes, where: str) -> tuple[VerificationKey, ...]:
    """Return the usable keys of a JSON Web Key Set (RFC 7517): RSA for RS256, P-256 for ES256.

    Keys of other kinds and for other uses are left out. Raises InputError when no key is left, a key is
    malformed, or the set contains a private or symmetric key.
    """
    try:
        document = json.loads(text)
        entries = document["keys"]
    except (ValueError, KeyError, TypeError):
        raise InputError("this is not a JSON Web Key Set", where=where) from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError("the field keys of a JSON Web Key Set must be a list of objects", where=where)
    if len(entries) > MAX_KEYS:
        raise InputError(f"the JSON Web Key Set has more than {MAX_KEYS} keys", where=where)
    keys = [_verification_key(entry, f"{where}, key {number}") for number, entry in enumerate(entries, 1)]
    usable = tuple(key for key in keys if key)
    if not usable:
        raise InputError("no key in the JSON Web Key Set is usable", where=where, remedy="use RS256 or ES256")
    return usable


class TokenAuthenticator:
    """Verify service account tokens: signature, issuer, audience, validity period, subject."""

    def __init__(self, jwks: JwksFile, issuer: str, trust_domain: str, audience: str = AUDIENCE) -> None:
        """Prepare to verify tokens with the keys of `jwks`.

        Tokens must name `issuer` and `audience`. The identities of callers are in `trust_domain`.
        """
        self._jwks = jwks
        self._issuer = issuer
        self._trust_domain = trust_domain
        self._audience = audience

    def caller(self, token: str) -> Caller:
        """Return the owner of the token. Raise UnauthenticatedError if the token is not accepted."""
        subject = self._claims(token).get("sub")
        parts = subject.split(":") if isinstance(subject, str) else []
        if len(parts) != 4 or ":".join(parts[:2]) != _SERVICE_ACCOUNT:
            raise UnauthenticatedError("the token is not a service account's")
        try:
            return Caller(workload_id(self._trust_domain, parts[2], parts[3]), "token")
        except InputError:
            raise UnauthenticatedError("the token is not a service account's") from None

    def _claims(self, token: str) -> dict[str, Any]:
        refused = UnauthenticatedError("the token is not accepted")
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise refused
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise refused from None
        if "crit" in header or "b64" in header:
            raise refused
        for key in self._candidates(header):
            try:
                return self._verified(token, key)
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, TypeError) as error:
                # The signature is valid, so the caller holds a genuine token and may learn what is wrong.
                raise UnauthenticatedError(_MISFITS.get(type(error), refused.what)) from None
        raise refused

    def _candidates(self, header: dict[str, Any]) -> list[VerificationKey]:
        wanted = header.get("kid")
        return [
            key
            for key in self._jwks.current()
            if key.algorithm == header.get("alg") and (wanted is None or key.key_id in (None, wanted))
        ]

    def _verified(self, token: str, key: VerificationKey) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            audience=self._audience,
            issuer=self._issuer,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims


def certificate_caller(der: bytes, trust_domain: str, now: datetime) -> Caller:
    """Return the owner of a client certificate that TLS has verified against the mesh's roots.

    Raises UnauthenticatedError unless it belongs to a workload of `trust_domain` and is valid at `now`: a
    connection can outlive the certificate that opened it.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        spiffe_id = identity_of(certificate)
    except (InputError, ValueError):
        raise UnauthenticatedError("the client certificate is not a workload's") from None
    if spiffe_id.trust_domain != trust_domain:
        raise UnauthenticatedError("the client certificate is of another trust domain")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise UnauthenticatedError("the client certificate has expired")
    return Caller(spiffe_id, "certificate")


def _verification_key(entry: dict[str, Any], where: str) -> VerificationKey | None:
    if "d" in entry or "k" in entry:
        raise InputError(
            "this is a secret key, not a public one", where=where, remedy="publish public keys only"
        )
    algorithm = _algorithm(entry)
    if algorithm is None or entry.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(entry, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        raise InputError("the key is malformed", where=where) from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise InputError(f"the RSA key has fewer than {MIN_RSA_BITS} bits", where=where)
    key_id = entry.get("kid")
    return VerificationKey(key_id if isinstance(key_id, str) else None, algorithm, key)


def _algorithm(entry: dict[str, Any]) -> Literal["RS256", "ES256"] | None:
    match entry.get("kty"), entry.get("crv"), entry.get("alg"):
        case "RSA", _, "RS256" | None:
            return "RS256"
        case "EC", "P-256", "ES256" | None:
            return "ES256"
    return None
