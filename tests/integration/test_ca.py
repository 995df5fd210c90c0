"""The CA as a process, asked by another gRPC implementation (grpcio): who gets what, and who gets nothing."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import urllib.request
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshscrape.spiffe.certificates import identity_of, load_certificates
from meshscrape.spiffe.keys import generate_key
from support.ca import CaProcess, Credentials, TestCa, ca_process
from support.grpc_ca import any_csr, bearer, call, request_bytes
from support.grpc_peer import GrpcRefusal
from support.polling import eventually

URI = x509.UniformResourceIdentifier
BAR = "spiffe://cluster.local/ns/foo/sa/bar"
CSR = any_csr(generate_key(), [URI(BAR)])


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaProcess]:
    """One running CA with its own self-signed root."""
    with ca_process(tmp_path_factory.mktemp("ca")) as running:
        yield running


def leaf_of(chain: list[bytes]) -> x509.Certificate:
    return load_certificates(chain[0], "leaf")[0]


def refusal(
    ca: CaProcess,
    message: bytes,
    metadata: tuple[tuple[str, str], ...] = (),
    credentials: Credentials | None = None,
    method: str | None = None,
) -> tuple[str, str]:
    """Status and details of a call that must not succeed."""
    with pytest.raises(GrpcRefusal) as caught:
        extra = {"method": method} if method else {}
        call(ca, message, metadata=metadata, credentials=credentials, **extra)
    return caught.value.code, caught.value.details


def test_a_token_gets_its_service_accounts_certificate(ca: CaProcess) -> None:
    """With server authentication and a token: leaf first, the root bundle last, for as long as was asked."""
    key = generate_key()
    chain = call(ca, request_bytes(any_csr(key), 600), metadata=bearer(ca.token("foo", "bar")))
    leaf = leaf_of(chain)
    assert str(identity_of(leaf)) == BAR
    assert leaf.public_key() == key.public_key()
    assert leaf.not_valid_after_utc <= datetime.now(UTC) + timedelta(seconds=600)
    assert chain[1:] == [ca.root_pem]


def test_a_certificate_gets_its_own_renewal(ca: CaProcess) -> None:
    """With mutual TLS and no token, the caller's certificate is renewed for another key."""
    credentials = ca.issue("foo", "bar")
    chain = call(ca, request_bytes(CSR), credentials=credentials)
    assert str(identity_of(leaf_of(chain))) == BAR
    assert leaf_of(chain).public_key() != credentials.certificate.public_key()


@pytest.mark.parametrize(
    ("names", "common_name"),
    [
        ([URI("spiffe://cluster.local/ns/istio-system/sa/prometheus")], ""),
        ([URI("spiffe://evil.example/ns/foo/sa/bar")], ""),
        ([x509.DNSName("istiod.istio-system.svc"), x509.DNSName("*")], "admin"),
        ([], BAR),
    ],
    ids=["another workload", "another trust domain", "server names", "a subject"],
)
def test_names_in_the_request_are_ignored(
    ca: CaProcess, names: list[x509.GeneralName], common_name: str
) -> None:
    """Whatever a CSR asks for, to be a CA too, the certificate says the caller's identity alone."""
    csr = any_csr(generate_key(), names, common_name)
    leaf = leaf_of(call(ca, request_bytes(csr), metadata=bearer(ca.token("foo", "bar"))))
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(san) == [URI(BAR)]
    assert len(leaf.subject) == 0
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_metadata_changes_nothing(ca: CaProcess) -> None:
    """Istio's agent sends a Struct along; it is accepted and not obeyed."""
    entry = b"\x0a\x03sub\x12\x07\x1a\x05admin"
    struct = b"\x0a" + bytes([len(entry)]) + entry
    chain = call(ca, request_bytes(CSR, 60, struct), metadata=bearer(ca.token("foo", "bar")))
    assert str(identity_of(leaf_of(chain))) == BAR


@pytest.mark.parametrize("seconds", [0, -1, -(2**63)])
def test_no_lifetime_means_the_default(ca: CaProcess, seconds: int) -> None:
    """Zero and below get the CA's default of 24 hours."""
    leaf = leaf_of(call(ca, request_bytes(CSR, seconds), metadata=bearer(ca.token("foo", "bar"))))
    assert timedelta(hours=23) < leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=24)


def test_the_longest_lifetime_is_kept(ca: CaProcess) -> None:
    """However much is asked for, the CA's bound holds."""
    leaf = leaf_of(call(ca, request_bytes(CSR, 2**63 - 1), metadata=bearer(ca.token("foo", "bar"))))
    assert leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=24)


def test_no_credentials_get_no_certificate(ca: CaProcess) -> None:
    """Without token and certificate the answer is UNAUTHENTICATED, whatever the request."""
    for message in (request_bytes(CSR), request_bytes(b"junk"), b""):
        assert refusal(ca, message)[0] == "UNAUTHENTICATED"


def test_bad_authorizations_are_refused(ca: CaProcess) -> None:
    """A damaged token, an expired one, another scheme, two tokens: UNAUTHENTICATED, nothing leaked."""
    good = ca.token("foo", "bar")
    for metadata in (
        bearer("junk"),
        bearer(good[:-4] + "AAAA"),
        bearer(ca.token("foo", "bar", timedelta(seconds=-60))),
        (("authorization", f"Basic {good}"),),
        (("authorization", good),),
        (("authorization", ""),),
        (*bearer(good), *bearer(good)),
    ):
        status, details = refusal(ca, request_bytes(CSR), metadata)
        assert status == "UNAUTHENTICATED"
        assert len(details) < 60 and good not in details


def test_a_token_decides_alone(ca: CaProcess) -> None:
    """A bad token is refused although a good certificate came with it; a good one beats the certificate."""
    credentials = ca.issue("foo", "bar")
    assert refusal(ca, request_bytes(CSR), bearer("junk"), credentials)[0] == "UNAUTHENTICATED"
    chain = call(ca, request_bytes(CSR), metadata=bearer(ca.token("foo", "other")), credentials=credentials)
    assert str(identity_of(leaf_of(chain))) == "spiffe://cluster.local/ns/foo/sa/other"


def test_certificate_of_a_stranger_is_refused_in_tls(ca: CaProcess) -> None:
    """A client certificate of another CA with the right SPIFFE ID fails in the handshake."""
    status, _ = refusal(ca, request_bytes(CSR), credentials=TestCa().workload("foo", "bar"))
    assert status == "UNAVAILABLE"


def test_expired_certificate_is_refused_in_tls(ca: CaProcess) -> None:
    """A certificate issued for a second is refused once that second is over."""
    short = ca.issue("foo", "bar", timedelta(seconds=1))

    def refused() -> bool:
        try:
            call(ca, request_bytes(CSR), credentials=short)
        except GrpcRefusal as error:
            return error.code == "UNAVAILABLE"
        return False

    assert eventually(refused, within=10)


@pytest.mark.parametrize(
    "csr",
    [
        b"",
        b"junk",
        any_csr(ec.generate_private_key(ec.SECP521R1())),
        any_csr(ec.generate_private_key(ec.SECP256K1())),
        any_csr(ed25519.Ed25519PrivateKey.generate()),
        any_csr(rsa.generate_private_key(65537, 1024)),
        CSR.replace(b"\n", b"\nAAAA", 1),
    ],
    ids=["none", "junk", "P-521", "secp256k1", "Ed25519", "RSA 1024", "damaged"],
)
def test_bad_requests_are_refused(ca: CaProcess, csr: bytes) -> None:
    """What is no request, or certifies a weak key, is INVALID_ARGUMENT with the reason."""
    status, details = refusal(ca, request_bytes(csr), bearer(ca.token("foo", "bar")))
    assert status == "INVALID_ARGUMENT"
    assert details.startswith("CSR: ")


def test_messages_are_bounded_and_well_formed(ca: CaProcess) -> None:
    """A message that is too long, or no protobuf, is INVALID_ARGUMENT."""
    token = bearer(ca.token("foo", "bar"))
    too_long = refusal(ca, request_bytes(b"x" * 200_000), token)
    assert too_long == ("INVALID_ARGUMENT", "the message is longer than 65536 bytes")
    assert refusal(ca, b"\xff\xff\xff", token) == ("INVALID_ARGUMENT", "the message is malformed")


def test_rsa_and_p384_are_certified(ca: CaProcess) -> None:
    """RSA from 2048 bits and P-384 are strong enough."""
    for key in (generate_key("RSA"), ec.generate_private_key(ec.SECP384R1())):
        chain = call(ca, request_bytes(any_csr(key)), metadata=bearer(ca.token("foo", "bar")))
        assert leaf_of(chain).public_key() == key.public_key()


def test_other_methods_do_not_exist(ca: CaProcess) -> None:
    """There is one method; reflection, health and everything else is UNIMPLEMENTED."""
    for method in ("/grpc.health.v1.Health/Check", "/istio.v1.auth.IstioCertificateService/Other"):
        assert refusal(ca, b"", method=method)[0] == "UNIMPLEMENTED"


def test_plaintext_and_old_tls_are_refused(ca: CaProcess) -> None:
    """The port speaks TLS from 1.2 on, and nothing to a plaintext client."""
    host, port = ca.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(100) == b""
    assert _greet(ca, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        _greet(ca, ssl.TLSVersion.TLSv1_1)


def test_server_certificate_has_only_the_configured_names(ca: CaProcess) -> None:
    """The server proves its address, is no client, and carries no SPIFFE ID."""
    host, port = ca.address.rsplit(":", 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.root_pem.decode())
    with (
        socket.create_connection((host, int(port)), 10) as tcp,
        context.wrap_socket(tcp, server_hostname=host) as tls,
    ):
        certificate = tls.getpeercert()
    assert certificate is not None
    assert certificate["subjectAltName"] == (("IP Address", "127.0.0.1"),)
    with socket.create_connection((host, int(port)), 10) as tcp, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(tcp, server_hostname="ca.example")


def test_issuance_is_logged_and_counted(ca: CaProcess) -> None:
    """Each certificate is one line (who, serial, until when, by what) and one more in the metrics."""

    def counted() -> tuple[int, int]:
        text = urllib.request.urlopen(f"http://{ca.metrics_address}/metrics", timeout=10).read().decode()
        issued = re.search(r"^meshscrape_ca_certificates_issued_total (\d+)$", text, re.M)
        refused = re.search(r'^meshscrape_ca_requests_total\{result="unauthenticated"\} (\d+)$', text, re.M)
        assert issued and refused and "spiffe://" not in text
        return int(issued[1]), int(refused[1])

    before = counted()
    token = ca.token("logged", "one")
    leaf = leaf_of(call(ca, request_bytes(CSR), metadata=bearer(token)))
    refusal(ca, request_bytes(CSR), bearer("secret-junk"))
    assert counted() == (before[0] + 1, before[1] + 1)
    lines = [line for line in ca.log().splitlines() if "ns/logged/sa/one" in line]
    assert len(lines) == 1
    assert (
        f"serial={leaf.serial_number:x} until={leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ} by=token"
        in lines[0]
    )
    assert token not in ca.log() and "secret-junk" not in ca.log()


def test_only_the_owner_can_read_the_files(ca: CaProcess) -> None:
    """The directory is 0700; whatever holds a private key is 0600."""
    assert ca.directory.stat().st_mode & 0o777 == 0o700
    for path in ca.directory.iterdir():
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            assert path.stat().st_mode & 0o777 == 0o600, path


def _greet(ca: CaProcess, version: ssl.TLSVersion) -> str | None:
    """The version that a handshake with this version alone agrees on."""
    host, port = ca.address.rsplit(":", 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.root_pem.decode())
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection((host, int(port)), 10) as tcp,
        context.wrap_socket(tcp, server_hostname=host) as tls,
    ):
        return tls.version()
