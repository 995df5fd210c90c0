"""Who is calling: which tokens and certificates prove it, and everything that does not."""

from __future__ import annotations

import base64
import json
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshscrape.ca.authenticators import JwksFile, TokenAuthenticator, certificate_caller, parse_jwks
from meshscrape.ca.tokens import LOCAL_ISSUER, TokenIssuer
from meshscrape.errors import InputError, UnauthenticatedError
from meshscrape.spiffe.keys import generate_key
from support.ca import TestCa

KEY = generate_key()
RSA_KEY = generate_key("RSA")
HOUR = timedelta(hours=1)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    algorithm = (
        jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    )
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "use": "sig", **more}


SECRET_JWK = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)
JWKS = {"keys": [jwk(KEY, kid="ec", alg="ES256"), jwk(RSA_KEY, kid="rsa")]}


@pytest.fixture
def tokens(tmp_path: Path) -> TokenAuthenticator:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(JWKS))
    return TokenAuthenticator(JwksFile(path), "https://issuer.example", "cluster.local")


def claims(**changes: Any) -> dict[str, Any]:
    now = int(datetime.now(UTC).timestamp())
    whole = {
        "iss": "https://issuer.example",
        "aud": ["istio-ca"],
        "sub": "system:serviceaccount:foo:bar",
        "iat": now,
        "nbf": now,
        "exp": now + 36_000,  # the tokens below are made when the module is read, long before some tests
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def sign(
    key: Any = KEY, algorithm: str = "ES256", headers: dict[str, Any] | None = None, **changes: Any
) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


@pytest.mark.parametrize(
    "token",
    [
        sign(),
        sign(headers={"kid": "ec"}),
        sign(RSA_KEY, "RS256", {"kid": "rsa"}),
        sign(RSA_KEY, "RS256"),
        sign(aud="istio-ca"),
        sign(aud=["other", "istio-ca"]),
        sign(nbf=None, iat=None),
    ],
    ids=["ES256", "with key id", "RS256", "RS256 without key id", "one audience", "two audiences", "no nbf"],
)
def test_a_good_token_names_its_service_account(tokens: TokenAuthenticator, token: str) -> None:
    """A token signed by a published key, meant for the CA and in its time, is its service account's."""
    caller = tokens.caller(token)
    assert str(caller.spiffe_id) == "spiffe://cluster.local/ns/foo/sa/bar"
    assert caller.proof == "token"


def test_the_local_issuers_tokens_are_accepted(tmp_path: Path) -> None:
    """What `TokenIssuer` signs is accepted with the key set that it leaves in its directory."""
    issuer = TokenIssuer.load_or_create(tmp_path)
    tokens = TokenAuthenticator(JwksFile(tmp_path / "jwks.json"), LOCAL_ISSUER, "td")
    token = issuer.issue("foo", "bar", datetime.now(UTC), HOUR)
    assert str(tokens.caller(token).spiffe_id) == "spiffe://td/ns/foo/sa/bar"
    assert TokenIssuer.load_or_create(tmp_path).jwks() == issuer.jwks()
    assert (tmp_path / "token-issuer-key.pem").stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(UnauthenticatedError, match="expired"):
        tokens.caller(issuer.issue("foo", "bar", datetime.now(UTC) - 2 * HOUR, HOUR))


STRANGER = generate_key()
PAST = int((datetime.now(UTC) - HOUR).timestamp())
FUTURE = int((datetime.now(UTC) + HOUR).timestamp())


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def forged(header: dict[str, Any], key: bytes = b"") -> str:
    """A token with any header; HMAC-SHA256 of `key` as its signature."""
    parts = [_base64url(json.dumps(part).encode()) for part in (header, claims())]
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return ".".join([*parts, _base64url(mac.sign(".".join(parts).encode(), key)) if key else ""])


BAD_TOKENS = {
    "of another key": sign(STRANGER),
    "of another key with a known id": sign(STRANGER, headers={"kid": "ec"}),
    "unknown key id": sign(headers={"kid": "x"}),
    "another issuer": sign(iss="https://evil.example"),
    "issuer that only starts right": sign(iss="https://issuer.example.evil"),
    "no issuer": sign(iss=None),
    "another audience": sign(aud=["kubernetes"]),
    "no audience": sign(aud=None),
    "audience in part": sign(aud="istio-ca-not"),
    "expired": sign(exp=PAST),
    "no expiry": sign(exp=None),
    "expiry that is no number": sign(exp="never"),
    "not yet valid": sign(nbf=FUTURE),
    "issued in the future": sign(iat=FUTURE),
    "no subject": sign(sub=None),
    "a user": sign(sub="system:node:foo"),
    "four parts of another kind": sign(sub="system:group:foo:bar"),
    "too few parts": sign(sub="system:serviceaccount:foo"),
    "too many parts": sign(sub="system:serviceaccount:foo:bar:baz"),
    "empty name": sign(sub="system:serviceaccount:foo:"),
    "a path in the name": sign(sub="system:serviceaccount:foo:bar/sa/admin"),
    "a newline": sign(sub="system:serviceaccount:foo:bar\n"),
    "upper case": sign(sub="system:serviceaccount:Foo:bar"),
    "dots": sign(sub="system:serviceaccount:..:bar"),
    "critical extension": sign(headers={"crit": ["x"], "x": 1}),
    "detached payload": sign(headers={"b64": False, "crit": ["b64"]}),
    "algorithm none": jwt.encode(claims(), "", algorithm="none"),
    "algorithm none, other case": forged({"alg": "nOnE"}),
    "HMAC with the public key": forged({"alg": "HS256", "kid": "ec"}, public_pem(KEY)),
    "HMAC with the RSA key": forged({"alg": "HS256", "kid": "rsa"}, public_pem(RSA_KEY)),
    "other hash": sign(RSA_KEY, "RS512", {"kid": "rsa"}),
    "PSS": sign(RSA_KEY, "PS256", {"kid": "rsa"}),
    "RS256 header, EC key": forged({"alg": "RS256", "kid": "ec"}, b"x" * 64),
    "embedded key": sign(STRANGER, headers={"jwk": jwk(STRANGER)}),
    "key by address": sign(STRANGER, headers={"jku": "http://127.0.0.1/jwks.json"}),
    "empty": "",
    "junk": "junk",
    "two dots": "..",
    "signature cut off": sign().rpartition(".")[0] + ".",
    "one character changed": sign().replace(".", ".e", 1),
    "too long": sign(x="x" * 20000),
    "deeply nested header": base64.urlsafe_b64encode(b"[" * 6000).decode() + ".e30.e30",
}


@pytest.mark.parametrize("what", BAD_TOKENS)
def test_a_bad_token_proves_nothing(tokens: TokenAuthenticator, what: str) -> None:
    """Every forgery is refused, and the reason repeats nothing of what was sent."""
    with pytest.raises(UnauthenticatedError) as caught:
        tokens.caller(BAD_TOKENS[what])
    assert str(caught.value) in (
        "the token is not accepted",
        "the token has expired",
        "the token is not valid yet",
        "the token comes from another issuer",
        "the token is not meant for this CA",
        "the token is not a service account's",
    )


def test_keys_are_read_again_when_the_file_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new key set counts at once; one that cannot be used keeps the old, is logged once, and mends."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk(KEY)]}))
    jwks = JwksFile(path)
    tokens = TokenAuthenticator(jwks, "https://issuer.example", "cluster.local")
    with pytest.raises(UnauthenticatedError):
        tokens.caller(sign(STRANGER))
    _replace(path, "{ not json")
    with caplog.at_level(logging.ERROR):
        assert tokens.caller(sign()) and tokens.caller(sign())
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    _replace(path, json.dumps({"keys": [jwk(STRANGER)]}))
    assert tokens.caller(sign(STRANGER))
    with pytest.raises(UnauthenticatedError):
        tokens.caller(sign())
    path.unlink()
    assert tokens.caller(sign(STRANGER))


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "not a JSON Web Key Set"),
        (b"[]", "not a JSON Web Key Set"),
        (b"{}", "not a JSON Web Key Set"),
        (b'{"keys": 1}', "list of objects"),
        (b'{"keys": ["x"]}', "list of objects"),
        (b'{"keys": []}', "no key"),
        (json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]}).encode(), "secret key"),
        (json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "x": "x", "y": "y"}]}).encode(), "malformed"),
        (json.dumps({"keys": [jwk(KEY, use="enc")]}).encode(), "no key"),
        (json.dumps({"keys": [jwk(RSA_KEY, alg="RS512")]}).encode(), "no key"),
        (json.dumps({"keys": [jwk(ec.generate_private_key(ec.SECP384R1()))]}).encode(), "no key"),
        (json.dumps({"keys": [jwk(rsa.generate_private_key(65537, 1024))]}).encode(), "2048"),
        (
            json.dumps({"keys": [SECRET_JWK]}).encode(),
            "secret key",
        ),
        (json.dumps({"keys": [jwk(KEY)] * 65}).encode(), "more than 64"),
    ],
)
def test_unusable_key_sets_are_refused(document: bytes, reason: str) -> None:
    """A key set without a usable public key, or with a secret one, is an error that says which."""
    with pytest.raises(InputError, match=reason) as caught:
        parse_jwks(document, "jwks.json")
    assert str(caught.value).startswith("jwks.json")


def test_keys_of_other_kinds_are_ignored() -> None:
    """A set may hold keys for other uses beside a usable one."""
    other = jwk(ec.generate_private_key(ec.SECP384R1()))
    keys = parse_jwks(json.dumps({"keys": [other, {"kty": "OKP"}, jwk(KEY, kid="a")]}).encode(), "jwks.json")
    assert [(key.key_id, key.algorithm) for key in keys] == [("a", "ES256")]


def test_certificate_authenticates_its_workload_until_it_expires() -> None:
    """A verified certificate proves its SPIFFE ID within its time, also on a connection that is older."""
    leaf = TestCa().workload("foo", "bar").certificate
    der = leaf.public_bytes(serialization.Encoding.DER)
    now = datetime.now(UTC)
    caller = certificate_caller(der, "cluster.local", now)
    assert (str(caller.spiffe_id), caller.proof) == ("spiffe://cluster.local/ns/foo/sa/bar", "certificate")
    for when in (leaf.not_valid_after_utc, now + 2 * HOUR, now - HOUR):
        with pytest.raises(UnauthenticatedError):
            certificate_caller(der, "cluster.local", when)
    with pytest.raises(UnauthenticatedError, match="trust domain"):
        certificate_caller(der, "other.example", now)


def test_look_alikes_do_not_authenticate() -> None:
    """Two URIs, a DNS name that spells the ID and all the others prove nothing or somebody else."""
    wanted = "spiffe://cluster.local/ns/foo/sa/bar"
    for what, credentials in TestCa().look_alikes(wanted).items():
        der = credentials.certificate.public_bytes(serialization.Encoding.DER)
        try:
            seen = str(certificate_caller(der, "cluster.local", datetime.now(UTC)).spiffe_id)
        except UnauthenticatedError:
            seen = ""
        assert seen != wanted, what
    with pytest.raises(UnauthenticatedError):
        certificate_caller(b"junk", "cluster.local", datetime.now(UTC))


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.rename(new, path)
