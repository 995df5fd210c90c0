"""Certificates of every kind, the ones no honest CA would issue included."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

HOUR = timedelta(hours=1)
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, in PEM."""

    chain: bytes
    key: bytes

    def client_context(self, *, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A TLS client that presents this pair, however weak, and takes any server."""
        context = any_server(maximum=maximum)
        if maximum is None:
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with tempfile.TemporaryDirectory() as directory:
            chain, key = Path(directory, "chain.pem"), Path(directory, "key.pem")
            chain.write_bytes(self.chain)
            key.write_bytes(self.key)
            context.load_cert_chain(chain, key)
        return context


def any_server(*, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A TLS client without a certificate, which takes any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if maximum is not None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = maximum
    return context


class Forge:
    """A CA that signs whatever it is asked for. Two forges with the same name are still two CAs."""

    def __init__(self, name: str = "cluster.local") -> None:
        self._key: _Key = ec.generate_private_key(ec.SECP256R1())
        self._chain = b""
        self._name = _name(name)
        self._root = self._sign_authority(self)

    @classmethod
    def below(cls, pair: Pair) -> Forge:
        """Whoever holds `pair` and signs with it as if it were a CA's."""
        forge = cls()
        key = serialization.load_pem_private_key(pair.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        forge._key, forge._chain = key, pair.chain
        forge._name = x509.load_pem_x509_certificate(pair.chain).subject
        return forge

    def intermediate(self, name: str, rsa_bits: int) -> Forge:
        """Return a CA below this one, with an RSA key. Its leaves come with its certificate."""
        forge = Forge(name)
        forge._key = rsa.generate_private_key(65537, rsa_bits)
        certificate = self._sign_authority(forge)
        forge._chain = certificate.public_bytes(serialization.Encoding.PEM) + self._chain
        return forge

    def _sign_authority(self, subject: Forge) -> x509.Certificate:
        """Return a CA certificate of `subject`, signed with this CA's key."""
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject._name)
            .issuer_name(self._name)
            .public_key(subject._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 24 * HOUR)
            .not_valid_after(now + 24 * HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def root(self) -> bytes:
        """The root certificate in PEM."""
        return self._root.public_bytes(serialization.Encoding.PEM)

    def leaf(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        valid_from: timedelta = -HOUR,
        valid_until: timedelta = HOUR,
        client: bool = True,
        self_signed: bool = False,
        rsa_bits: int = 0,
        curve: ec.EllipticCurve | None = None,
        subject: str = "",
    ) -> Pair:
        """Return a certificate with these SANs, valid between two moments counted from now.

        Without `client` it is for servers alone; a `self_signed` one is its own issuer. With `rsa_bits` its
        key is an RSA key of this length, with `curve` an ECDSA key on this curve instead of P-256. A
        `subject` is the organisation in its otherwise empty name.
        """
        now = datetime.now(UTC)
        key: _Key = self._key if self_signed else ec.generate_private_key(curve or ec.SECP256R1())
        if rsa_bits:
            key = rsa.generate_private_key(65537, rsa_bits)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(each) for each in uris]
        names += [x509.DNSName(each) for each in dns]
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._name if self_signed else _name(subject))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + valid_from)
            .not_valid_after(now + valid_until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH, *([x509.OID_CLIENT_AUTH] if client else [])]),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Pair(
            certificate.public_bytes(serialization.Encoding.PEM) + self._chain,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )


def _name(organisation: str) -> x509.Name:
    attribute = x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organisation)
    return x509.Name([attribute] if organisation else [])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
