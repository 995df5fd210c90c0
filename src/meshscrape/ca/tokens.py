"""Sign service account tokens for meshes without Kubernetes; the CA verifies them like Kubernetes's."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshscrape.ca.storage import JWKS, TOKEN_ISSUER_KEY, create_key, read_key
from meshscrape.errors import InputError
from meshscrape.istio.ca_protocol import AUDIENCE
from meshscrape.spiffe.ids import workload_id
from meshscrape.spiffe.keys import PrivateKey, generate_key
from meshscrape.system.files import private_dir, write_atomic

LOCAL_ISSUER = "meshscrape-local"


class TokenIssuer:
    """Sign tokens (ES256) as Kubernetes's TokenRequest does, with a key from one directory (0700)."""

    def __init__(self, key: PrivateKey, issuer: str = LOCAL_ISSUER) -> None:
        """Prepare to sign with `key`, which must be ECDSA on P-256 (InputError). `issuer` is the `iss`."""
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InputError("a token issuer's key must be ECDSA on P-256")
        self._key = key
        self.issuer = issuer
        self._jwk = _public_jwk(key)

    @classmethod
    def load_or_create(cls, directory: Path, issuer: str = LOCAL_ISSUER) -> TokenIssuer:
        """Return the issuer of `directory`; create its key (0600) on first use, and write its `jwks.json`.

        Several processes may do this at once. The process that creates the key first wins, and the others
        load that key, so all of them write the same jwks.json.
        """
        private_dir(directory)
        path = directory / TOKEN_ISSUER_KEY
        if not path.exists():
            create_key(path, generate_key())
        made = cls(read_key(path, "the token issuer's private key"), issuer)
        document, published = json.dumps(made.jwks(), indent=1).encode(), directory / JWKS
        if not published.exists() or published.read_bytes() != document:
            write_atomic(published, document, 0o600)
        return made

    def issue(
        self,
        namespace: str,
        service_account: str,
        now: datetime,
        lifetime: timedelta,
        audience: str = AUDIENCE,
    ) -> str:
        """Return a service account token, valid from `now` for `lifetime`.

        Raises InputError for invalid names.
        """
        workload_id("cluster.local", namespace, service_account)
        issued = int(now.timestamp())
        claims = {
            "iss": self.issuer,
            "sub": f"system:serviceaccount:{namespace}:{service_account}",
            "aud": [audience],
            "iat": issued,
            "nbf": issued,
            "exp": int((now + lifetime).timestamp()),
            "jti": str(uuid.uuid4()),
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._jwk["kid"]})

    def jwks(self) -> dict[str, Any]:
        """Return the public key as a JSON Web Key Set (RFC 7517)."""
        return {"keys": [self._jwk]}


def _public_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    point = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    x, y = _base64url(point[1:33]), _base64url(point[33:])
    # The key ID is the key's thumbprint (RFC 7638).
    thumbprint = hashlib.sha256(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'.encode()).digest()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": x,
        "y": y,
        "use": "sig",
        "alg": "ES256",
        "kid": _base64url(thumbprint),
    }


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
