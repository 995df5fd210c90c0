"""Keys: what is made, what is read, what is too weak."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshscrape.errors import InputError
from meshscrape.spiffe.keys import check_public_key, generate_key, key_to_pem, load_key


def test_default_key_is_p256_and_survives_pem() -> None:
    """The default is ECDSA on P-256, written as PKCS #8."""
    key = generate_key()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    pem = key_to_pem(key)
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert load_key(pem, "key.pem").public_key() == key.public_key()


def test_rsa_has_the_asked_size_within_bounds() -> None:
    """RSA keys of 2048 bits are made; smaller ones and absurd ones are refused."""
    key = generate_key("RSA", 2048)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 2048
    for bits in (1024, 2047, 16384):
        with pytest.raises(InputError, match="bits"):
            generate_key("RSA", bits)


def test_unusable_keys_are_refused_by_place() -> None:
    """Each unusable file is an error that names the place and repeats nothing of the key."""
    key = generate_key()
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    for pem, reason in (
        (encrypted, "encrypted"),
        (b"", "not a private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key"),
        (_pem(ed25519.Ed25519PrivateKey.generate()), "neither ECDSA nor RSA"),
        (_pem(ec.generate_private_key(ec.SECP521R1())), "P-256 or P-384"),
        (_pem(rsa.generate_private_key(65537, 1024)), "2048"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            load_key(pem, "some/key.pem")
        assert str(caught.value).startswith("some/key.pem: ")
        assert "\n" not in str(caught.value)


def test_strong_public_keys_pass() -> None:
    """P-256, P-384 and RSA from 2048 bits are certified; P-521, secp256k1 and Ed25519 are not."""
    for key in (generate_key(), ec.generate_private_key(ec.SECP384R1()), generate_key("RSA")):
        assert check_public_key(key.public_key(), "CSR") == key.public_key()
    for curve in (ec.SECP521R1(), ec.SECP256K1(), ec.SECP224R1()):
        with pytest.raises(InputError):
            check_public_key(ec.generate_private_key(curve).public_key(), "CSR")
    with pytest.raises(InputError):
        check_public_key(ed25519.Ed25519PrivateKey.generate().public_key(), "CSR")


def _pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
