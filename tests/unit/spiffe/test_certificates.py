"""Certificates: what is issued, whose it is, and that TLS accepts it."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import (
    Signer,
    certificates_to_pem,
    fingerprint,
    identity_of,
    is_authority,
    issue_leaf,
    issue_server,
    key_matches,
    load_certificates,
    load_csr,
    make_csr,
    self_signed_root,
)
from meshscrape.spiffe.ids import SpiffeId, workload_id
from meshscrape.spiffe.keys import generate_key
from support.ca import Credentials, TestCa

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
BAR = workload_id("cluster.local", "foo", "bar")


def signer(lifetime: timedelta = timedelta(days=10)) -> Signer:
    key = generate_key()
    root = self_signed_root("cluster.local", key, NOW, lifetime)
    return Signer(root, key, (), (root,))


def test_leaf_has_only_a_spiffe_id() -> None:
    """Empty subject, one critical URI SAN, both TLS usages, not a CA, two minutes back."""
    ca, key = signer(), generate_key()
    leaf = issue_leaf(ca, key.public_key(), BAR, NOW, timedelta(hours=1))
    assert len(leaf.subject) == 0
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [x509.UniformResourceIdentifier(str(BAR))]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=1)
    assert identity_of(leaf) == BAR
    assert key_matches(key, leaf)
    assert not key_matches(generate_key(), leaf)


def test_no_leaf_outlives_its_signer() -> None:
    """A lifetime longer than the signer's is cut to it, an intermediate's own end included."""
    ca = signer(timedelta(hours=5))
    leaf = issue_leaf(ca, generate_key().public_key(), BAR, NOW, timedelta(days=30))
    assert leaf.not_valid_after_utc == ca.certificate.not_valid_after_utc
    below = TestCa().intermediate(timedelta(hours=2))
    long = below.workload("foo", "bar", lifetime=timedelta(days=300))
    assert long.certificate.not_valid_after_utc == below.signer.certificate.not_valid_after_utc


def test_an_expired_signer_signs_nothing() -> None:
    """After the signer's end there is an error, not a certificate that nobody accepts."""
    ca = signer(timedelta(hours=5))
    key, after = generate_key().public_key(), NOW + timedelta(hours=5)
    with pytest.raises(InputError, match="expired"):
        issue_leaf(ca, key, BAR, after, timedelta(hours=1))
    with pytest.raises(InputError, match="expired"):
        issue_server(ca, key, ["a"], after, timedelta(hours=1))


def test_serial_numbers_are_never_repeated() -> None:
    """Two certificates for one key differ in serial number and fingerprint."""
    ca, key = signer(), generate_key().public_key()
    one, two = (issue_leaf(ca, key, BAR, NOW, timedelta(hours=1)) for _ in range(2))
    assert one.serial_number != two.serial_number
    assert fingerprint(one) != fingerprint(two)
    assert len(fingerprint(one)) == 64


def test_server_certificate_is_refused_for_clients() -> None:
    """The CA's own certificate carries names and serverAuth alone, and no SPIFFE ID."""
    leaf = issue_server(
        signer(), generate_key().public_key(), ["ca.example", "127.0.0.1", "::1"], NOW, timedelta(hours=1)
    )
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["ca.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    with pytest.raises(InputError):
        identity_of(leaf)
    with pytest.raises(InputError):
        issue_server(signer(), generate_key().public_key(), [], NOW, timedelta(hours=1))


def test_look_alikes_have_no_identity_or_another() -> None:
    """No certificate that only resembles a workload's is taken for it."""
    for what, credentials in TestCa().look_alikes(BAR).items():
        try:
            seen: SpiffeId | None = identity_of(credentials.certificate)
        except InputError:
            seen = None
        assert seen != BAR, what


def test_identity_needs_exactly_one_uri() -> None:
    """None, two, and the same one twice are refused; so are a CA's certificate and a trust domain's ID."""
    ca, uri = TestCa(), x509.UniformResourceIdentifier
    for names in ([], [uri(str(BAR))] * 2, [uri("spiffe://cluster.local")], [x509.DNSName("a")]):
        with pytest.raises(InputError):
            identity_of(ca.custom(names, common_name="x").certificate)
    with pytest.raises(InputError, match="of a CA"):
        identity_of(ca.custom([uri(str(BAR))], is_ca=True).certificate)
    with pytest.raises(InputError):
        identity_of(ca.signer.certificate)
    assert identity_of(ca.custom([uri(str(BAR)), x509.DNSName("a")]).certificate) == BAR


def test_a_request_proves_its_key() -> None:
    """A CSR parses with its key; one whose signature another key made does not."""
    key = generate_key()
    assert load_csr(make_csr(key, BAR)).public_key() == key.public_key()
    der = x509.load_pem_x509_csr(make_csr(key, BAR)).public_bytes(serialization.Encoding.DER)
    tampered = der.replace(b"/ns/foo/", b"/ns/eve/")
    assert tampered != der
    with pytest.raises(InputError, match="signature"):
        load_csr(_pem(tampered))


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_text_that_is_not_a_request_is_refused(pem: bytes) -> None:
    """Anything but a PEM signing request is an InputError."""
    with pytest.raises(InputError):
        load_csr(pem)


def test_weak_keys_are_not_certified() -> None:
    """A request for a curve outside P-256 and P-384 is refused although its signature is right."""
    key = ec.generate_private_key(ec.SECP521R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(InputError, match="P-256"):
        load_csr(pem)


def test_certificates_are_read_in_order() -> None:
    """PEM with several certificates keeps their order; what holds none is an error with its place."""
    certificates = [TestCa().signer.certificate for _ in range(3)]
    assert list(load_certificates(certificates_to_pem(certificates), "x")) == certificates
    for pem in (b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(InputError, match=r"^some/file: "):
            load_certificates(pem, "some/file")


def test_authority_is_recognised_by_its_extensions() -> None:
    """A root and an intermediate are CAs; a leaf is not."""
    ca = TestCa()
    assert is_authority(ca.signer.certificate)
    assert is_authority(ca.intermediate().signer.certificate)
    assert not is_authority(ca.workload("foo", "bar").certificate)


def test_long_trust_domains_get_a_root() -> None:
    """A trust domain longer than X.509's 64-character attributes still gets its root."""
    root = self_signed_root("a" * 200, generate_key(), NOW, timedelta(days=1))
    assert len(root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value) == 64


@pytest.mark.parametrize("below_intermediate", [False, True])
def test_openssl_accepts_both_sides(tmp_path: Path, below_intermediate: bool) -> None:
    """A strict TLS handshake with client certificate works, through an intermediate too."""
    ca = TestCa().intermediate() if below_intermediate else TestCa()
    client, server = ca.workload("foo", "bar"), ca.server(["127.0.0.1"])
    peer = _handshake(client, server, ca.root_pem, tmp_path)
    assert identity_of(x509.load_der_x509_certificate(peer)) == BAR
    for bad in (TestCa().workload("foo", "bar"), ca.expired("foo", "bar"), ca.not_yet_valid("foo", "bar")):
        with pytest.raises(ssl.SSLCertVerificationError):
            _handshake(bad, server, ca.root_pem, tmp_path)


def _handshake(client: Credentials, server: Credentials, roots: bytes, directory: Path) -> bytes:
    """The client's DER certificate as the server sees it."""
    sides = []
    for credentials, protocol in ((client, ssl.PROTOCOL_TLS_CLIENT), (server, ssl.PROTOCOL_TLS_SERVER)):
        context = ssl.SSLContext(protocol)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=roots.decode())
        credentials.write(directory)
        context.load_cert_chain(directory / "cert-chain.pem", directory / "key.pem")
        sides.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = sides[0].wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    two = sides[1].wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, two):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    der = two.getpeercert(binary_form=True)
    assert der is not None
    return der


def _pem(der: bytes) -> bytes:
    return x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM)
