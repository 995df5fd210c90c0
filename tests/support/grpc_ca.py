"""CreateCertificate by another implementation of gRPC and of the wire format than the product's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from support.ca import CaProcess, Credentials
from support.grpc_peer import GrpcPeer, client, serving_peer

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


def request_bytes(csr: bytes, seconds: int = 3600, metadata: bytes = b"") -> bytes:
    """An IstioCertificateRequest: csr = 1 (string), validity_duration = 3 (int64), metadata = 4 (message)."""
    message = b"\x0a" + _varint(len(csr)) + csr + b"\x18" + _varint(seconds % 2**64)
    return message + (b"\x22" + _varint(len(metadata)) + metadata if metadata else b"")


def cert_chain(response: bytes) -> list[bytes]:
    """The elements of an IstioCertificateResponse: cert_chain = 1 (repeated string)."""
    elements, rest = [], response
    while rest:
        assert rest[0] == 0x0A, "another field than cert_chain"
        length, rest = _read_varint(rest[1:])
        elements.append(rest[:length])
        rest = rest[length:]
    return elements


def call(
    ca: CaProcess,
    message: bytes,
    *,
    metadata: Sequence[tuple[str, str]] = (),
    credentials: Credentials | None = None,
    method: str = METHOD,
) -> list[bytes]:
    """Send one message with grpcio over a new connection; return the response's chain, or GrpcRefusal."""
    _open(client(), ca.address, ca.root_pem, credentials)
    try:
        return cert_chain(client().ask("call", method, message, tuple(metadata), 10))
    finally:
        client().ask("close")


@contextlib.contextmanager
def kept_connection(ca: CaProcess, credentials: Credentials) -> Iterator[Callable[[bytes], list[bytes]]]:
    """Open one connection with `credentials`; yield what sends one message over it."""
    with serving_peer() as peer:
        _open(peer, ca.address, ca.root_pem, credentials)
        yield lambda message: cert_chain(peer.ask("call", METHOD, message, (), 10))


def call_without_message(address: str, root_pem: bytes, metadata: Sequence[tuple[str, str]]) -> None:
    """Begin a call with grpcio and send no message; raises GrpcRefusal when the CA ends it."""
    with serving_peer() as peer:
        _open(peer, address, root_pem, None)
        peer.ask("call_without_message", METHOD, tuple(metadata), 20)


def _open(peer: GrpcPeer, address: str, root_pem: bytes, credentials: Credentials | None) -> None:
    key, chain = (credentials.key_pem, credentials.chain_pem) if credentials else (None, None)
    peer.ask("open", address, root_pem, key, chain)


def bearer(token: str) -> tuple[tuple[str, str]]:
    """A token as metadata."""
    return (("authorization", f"Bearer {token}"),)


def any_csr(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    names: Sequence[x509.GeneralName] = (),
    common_name: str = "",
) -> bytes:
    """A signing request that asks for whatever is given."""
    attributes = [x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def _read_varint(data: bytes) -> tuple[int, bytes]:
    number = 0
    for index, byte in enumerate(data):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, data[index + 1 :]
    raise AssertionError("a varint without an end")
