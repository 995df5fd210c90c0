"""Trust bundles: the root certificates of a trust domain."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding

from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import certificates_to_pem, fingerprint, is_authority, load_certificates
from meshscrape.spiffe.keys import MIN_RSA_BITS, is_weak

# The code of the InputError for a root with a key that can be broken.
WEAK_KEY = "weak-key"


def load_bundle(pem: bytes, where: str) -> tuple[x509.Certificate, ...]:
    """Return the root certificates in `pem`, each once, in their order.

    Raises InputError at `where` when there is none, when one is not a self-signed CA certificate, or when one
    has a weak key. A leaf or an intermediate in a bundle would be trusted like a root.
    """
    bundle: dict[str, x509.Certificate] = {}
    for number, certificate in enumerate(load_certificates(pem, where), start=1):
        if not is_authority(certificate):
            raise InputError(f"certificate {number} of the bundle is not a CA certificate", where=where)
        if not is_self_signed(certificate):
            raise InputError(
                f"certificate {number} of the bundle is not self-signed",
                where=where,
                remedy="list root certificates only",
            )
        if is_weak(certificate.public_key()):
            raise InputError(
                f"certificate {number} of the bundle has an RSA key of fewer than {MIN_RSA_BITS} bits",
                where=where,
                remedy="replace that root: its key can be broken",
                code=WEAK_KEY,
            )
        bundle.setdefault(fingerprint(certificate), certificate)
    return tuple(bundle.values())


def bundle_to_pem(bundle: Sequence[x509.Certificate]) -> bytes:
    """Return the bundle as one PEM text, in its order."""
    return certificates_to_pem(bundle)


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Return whether the certificate's own key made its signature."""
    return is_issued_by(certificate, certificate)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether `issuer` signed `certificate`, by name and key, without dates and constraints."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        # `verify_directly_issued_by` does not serve: it refuses SHA-1, which Envoy accepts in a chain.
        _verify(certificate, issuer.public_key())
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _verify(certificate: x509.Certificate, key: object) -> None:
    """Raise InvalidSignature (or an error about the parameters) unless `key` made the signature."""
    signed, signature = certificate.tbs_certificate_bytes, certificate.signature
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key.verify(signature, signed)
    parameters, digest = certificate.signature_algorithm_parameters, certificate.signature_hash_algorithm
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
        return key.verify(signature, signed, parameters)
    if isinstance(key, rsa.RSAPublicKey) and digest is not None and isinstance(parameters, AsymmetricPadding):
        return key.verify(signature, signed, parameters, digest)
    raise InvalidSignature
