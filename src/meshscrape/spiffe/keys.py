"""Private keys of workloads and authorities, and which public keys are strong enough to certify."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshscrape.errors import InputError

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MIN_RSA_BITS = 2048
# Bound the length: verifying takes longer with a longer key, and the caller chooses the key.
MAX_RSA_BITS = 8192


def generate_key(algorithm: Literal["ECDSA", "RSA"] = "ECDSA", rsa_bits: int = 2048) -> PrivateKey:
    """Return a new private key: ECDSA on P-256, or RSA of `rsa_bits` (2048 to 8192, else InputError)."""
    if algorithm == "ECDSA":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm != "RSA":
        raise InputError(f"{algorithm!r} is not a key algorithm", remedy="use ECDSA or RSA")
    if not MIN_RSA_BITS <= rsa_bits <= MAX_RSA_BITS:
        raise InputError(f"an RSA key has {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, not {rsa_bits}")
    return rsa.generate_private_key(public_exponent=65537, key_size=rsa_bits)


def key_to_pem(key: PrivateKey) -> bytes:
    """Return the key as unencrypted PKCS #8 PEM, for files of mode 0600 only."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes, where: str) -> PrivateKey:
    """Return the private key in `pem` (PKCS #8, PKCS #1 or SEC 1), else raise InputError at `where`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise InputError(
            "the private key is encrypted", where=where, remedy="decrypt it (openssl pkey -in FILE)"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError("this is not a private key in PEM", where=where) from None
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise InputError("the private key is neither ECDSA nor RSA", where=where)
    check_public_key(key.public_key(), where)
    return key


def is_weak(key: object) -> bool:
    """Return whether `key` is an RSA key of fewer than 2048 bits."""
    return isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS


def check_public_key(key: object, where: str) -> PublicKey:
    """Return `key` if it is RSA of 2048 to 8192 bits or ECDSA on P-256 or P-384, else raise InputError."""
    if isinstance(key, rsa.RSAPublicKey):
        if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return key
        raise InputError(f"an RSA key has {MIN_RSA_BITS} to {MAX_RSA_BITS} bits", where=where)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        return key
    raise InputError("the key is neither ECDSA on P-256 or P-384 nor RSA", where=where)
