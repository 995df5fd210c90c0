"""X.509: make signing requests, issue certificates, read identities (SPIFFE's X509-SVID.md, RFC 5280)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshscrape.errors import InputError
from meshscrape.spiffe.ids import SpiffeId, check_trust_domain
from meshscrape.spiffe.keys import PrivateKey, PublicKey, check_public_key

# Clocks of a mesh differ, so a certificate is valid from this long before it was issued.
BACKDATE = timedelta(minutes=2)

_HOST_NAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?)*"
)
_NOTHING = x509.Name([])
_CERTIFICATE_USAGE = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True, slots=True)
class Signer:
    """A CA that can sign.

    `intermediates` are sent after each leaf: empty when `certificate` is a root, else `certificate` itself
    and the certificates between it and the root, in order. `roots` is the whole trust bundle.
    """

    certificate: x509.Certificate
    key: PrivateKey
    intermediates: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]

    @property
    def not_after(self) -> datetime:
        """Return when the first certificate of the signer's chain ends."""
        return min(certificate.not_valid_after_utc for certificate in (self.certificate, *self.intermediates))


def make_csr(key: PrivateKey, spiffe_id: SpiffeId) -> bytes:
    """Return a PEM signing request for `spiffe_id`: empty subject, one URI SAN."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    builder = (
        x509.CertificateSigningRequestBuilder().subject_name(_NOTHING).add_extension(names, critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def load_csr(pem: bytes) -> x509.CertificateSigningRequest:
    """Return the signing request in `pem`.

    Raises InputError for other text, a wrong signature or a weak key.
    """
    try:
        csr = x509.load_pem_x509_csr(pem)
        key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise InputError("this is not a certificate signing request in PEM", where="CSR") from None
    check_public_key(key, "CSR")
    try:
        proven = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        proven = False
    if not proven:
        raise InputError("the signature of the request does not match its key", where="CSR")
    return csr


def self_signed_root(
    trust_domain: str, key: PrivateKey, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """Return a root of `trust_domain`, valid from two minutes before `now` until `now + lifetime`."""
    builder = _authority(key.public_key(), trust_domain)
    builder = builder.not_valid_before(now - BACKDATE).not_valid_after(now + lifetime)
    return builder.sign(key, hashes.SHA256())


def issue_leaf(
    signer: Signer, public_key: PublicKey, spiffe_id: SpiffeId, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """Return a workload certificate: one critical URI SAN, and no other name.

    Valid from two minutes before `now` until `now + lifetime`, never longer than the signer's chain. Raises
    InputError when that chain has expired.
    """
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
    builder = _leaf(signer, public_key, names, _CERTIFICATE_USAGE)
    return _sign(builder, signer, now, lifetime)


def issue_server(
    signer: Signer, public_key: PublicKey, names: Sequence[str], now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """Return a certificate for servers alone, with DNS names and IP addresses and without a SPIFFE ID."""
    if not names:
        raise InputError("a server's certificate needs at least one name")
    builder = _leaf(
        signer, public_key, [_server_name(name) for name in names], (ExtendedKeyUsageOID.SERVER_AUTH,)
    )
    return _sign(builder, signer, now, lifetime)


def load_certificates(pem: bytes, where: str) -> tuple[x509.Certificate, ...]:
    """Return every certificate in `pem`, in its order. Raise InputError at `where` when there is none."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError:
        raise InputError("this is not a list of certificates in PEM", where=where) from None


def certificates_to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return the certificates as one PEM text, in their order."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def identity_of(certificate: x509.Certificate) -> SpiffeId:
    """Return the SPIFFE ID of a workload certificate.

    Raises InputError unless it has exactly one URI SAN, a SPIFFE ID with a path, and is not a CA certificate
    (X509-SVID.md, sections 2, 3.1 and 5.2). The issuer is not checked.
    """
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension):
        raise InputError("the certificate's extensions are malformed") from None
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InputError("the certificate has no SPIFFE ID") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InputError(f"the certificate has {len(uris)} URI names, not exactly one")
    if _may_sign_certificates(extensions):
        raise InputError("this is the certificate of a CA, not of a workload")
    spiffe_id = SpiffeId.parse(uris[0])
    if not spiffe_id.path:
        raise InputError("the certificate names a trust domain, not a workload")
    return spiffe_id


def key_matches(key: PrivateKey, certificate: x509.Certificate) -> bool:
    """Return whether `certificate` certifies the public half of `key`."""
    return _public_bytes(key.public_key()) == _public_bytes(certificate.public_key())


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 over the DER, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def is_authority(certificate: x509.Certificate) -> bool:
    """Return whether `certificate` belongs to a CA and may sign certificates, by its own extensions."""
    try:
        extensions = certificate.extensions
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True


def _may_sign_certificates(extensions: x509.Extensions) -> bool:
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            return True
        if isinstance(extension.value, x509.KeyUsage) and (
            extension.value.key_cert_sign or extension.value.crl_sign
        ):
            return True
    return False


def _authority(public_key: PublicKey, trust_domain: str) -> x509.CertificateBuilder:
    # RFC 5280 limits both attributes to 64 characters; a trust domain may have 255.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, check_trust_domain(trust_domain)[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, "meshscrape root"),
        ]
    )
    own_id = x509.UniformResourceIdentifier(str(SpiffeId(trust_domain, "")))
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([own_id]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _leaf(
    signer: Signer,
    public_key: PublicKey,
    names: Sequence[x509.GeneralName],
    usage: Sequence[x509.ObjectIdentifier],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_NOTHING)
        .issuer_name(signer.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, key_encipherment=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(_signer_key_id(signer), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
    )


def _sign(
    builder: x509.CertificateBuilder, signer: Signer, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    if signer.not_after <= now:
        raise InputError("the signing CA's certificate has expired", remedy="renew it")
    not_after = min(now + lifetime, signer.not_after)
    return (
        builder.not_valid_before(now - BACKDATE).not_valid_after(not_after).sign(signer.key, hashes.SHA256())
    )


def _signer_key_id(signer: Signer) -> x509.AuthorityKeyIdentifier:
    try:
        own = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if len(name) > 253 or not _HOST_NAME.fullmatch(name):
        raise InputError(f"{name[:300]!a} is neither a DNS name nor an IP address")
    return x509.DNSName(name)


def _public_bytes(key: object) -> bytes:
    return cast(PublicKey, key).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_encipherment=key_encipherment,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
