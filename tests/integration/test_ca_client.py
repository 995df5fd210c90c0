"""The product's client: against the real CA, and against a gRPC server that misbehaves (grpcio)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meshscrape.errors import InputError, MeshscrapeError, UnauthenticatedError, UnavailableError
from meshscrape.istio.ca_protocol import IstioCertificateRequest, IstioCertificateResponse
from meshscrape.spiffe.certificates import (
    certificates_to_pem,
    identity_of,
    issue_leaf,
    load_certificates,
    make_csr,
)
from meshscrape.spiffe.ids import SpiffeId, workload_id
from meshscrape.spiffe.keys import generate_key, key_to_pem
from meshscrape.system.ca_client import create_certificate
from support.ca import CaProcess, TestCa, ca_process
from support.grpc_ca import METHOD
from support.grpc_peer import GrpcPeer, serving_peer
from support.polling import eventually

BAR = workload_id("cluster.local", "foo", "bar")
KEY = generate_key()
CSR = make_csr(KEY, BAR)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaProcess]:
    """One running CA."""
    with ca_process(tmp_path_factory.mktemp("ca")) as running:
        yield running


def ask(
    address: str,
    root_pem: bytes,
    *,
    token: str | None = None,
    client_credentials: Path | None = None,
    csr: bytes = CSR,
    deadline: float = 10,
) -> tuple[list[bytes], bytes]:
    """`create_certificate` to its end."""
    return asyncio.run(
        create_certificate(
            address,
            root_pem,
            csr,
            timedelta(hours=1),
            token=token,
            client_credentials=client_credentials,
            deadline=deadline,
        )
    )


def identity(chain: list[bytes]) -> SpiffeId:
    return identity_of(load_certificates(chain[0], "leaf")[0])


def test_certificates_are_issued_by_token_and_by_certificate(ca: CaProcess, tmp_path: Path) -> None:
    """A token gets the first certificate, which then gets the next one; the bundle is the CA's."""
    chain, bundle = ask(ca.address, ca.root_pem, token=ca.token("foo", "bar"))
    assert (identity(chain), bundle) == (BAR, ca.root_pem)
    (tmp_path / "cert-chain.pem").write_bytes(b"".join(chain))
    (tmp_path / "key.pem").write_bytes(key_to_pem(KEY))
    assert identity(ask(ca.address, ca.root_pem, client_credentials=tmp_path)[0]) == BAR
    lines = [line for line in ca.log().splitlines() if " issued " in line]
    assert [line.rsplit("by=", 1)[1] for line in lines[-2:]] == ["token", "certificate"]


def test_token_is_used_when_credentials_are_refused(ca: CaProcess, tmp_path: Path) -> None:
    """With strange, expired, mismatched or missing credentials the token, if any, gets the certificate."""
    short = ca.issue("foo", "bar", timedelta(seconds=1))
    mismatched = ca.issue("foo", "bar").write(tmp_path / "mismatched")
    (mismatched / "key.pem").write_bytes(key_to_pem(generate_key()))
    eventually(lambda: datetime.now(UTC) > short.certificate.not_valid_after_utc, what="its end")
    for directory, error in (
        (TestCa().workload("foo", "bar").write(tmp_path / "stranger"), UnavailableError),
        (short.write(tmp_path / "expired"), UnavailableError),
        (mismatched, InputError),
        (tmp_path / "missing", InputError),
    ):
        with pytest.raises(error):
            ask(ca.address, ca.root_pem, client_credentials=directory)
        chain, _ = ask(ca.address, ca.root_pem, client_credentials=directory, token=ca.token("foo", "bar"))
        assert identity(chain) == BAR


def test_refused_credentials_are_unauthenticated(ca: CaProcess) -> None:
    """No credentials, and a bad token, say that other credentials may help; the token is not repeated."""
    for token in (None, "secret-junk", "a b"):
        with pytest.raises(UnauthenticatedError) as caught:
            ask(ca.address, ca.root_pem, token=token)
        assert str(caught.value).startswith(f"{ca.address}: the CA does not accept the credentials")
        assert "secret" not in str(caught.value)


def test_a_refused_request_is_permanent(ca: CaProcess) -> None:
    """What the CA will never grant is an InputError with the CA's reason: no retry will help."""
    with pytest.raises(InputError, match="not a certificate signing request"):
        ask(ca.address, ca.root_pem, token=ca.token("foo", "bar"), csr=b"junk")


def test_the_server_must_prove_its_name(ca: CaProcess) -> None:
    """A CA of another root, or asked for under a name it has not, never sees the token."""
    port = ca.address.rsplit(":", 1)[1]
    issued = ca.log().count(" issued ")
    for address, root in ((ca.address, TestCa().root_pem), (f"localhost:{port}", ca.root_pem)):
        with pytest.raises(UnavailableError, match="certificate is not accepted"):
            ask(address, root, token=ca.token("foo", "bar"))
    assert ca.log().count(" issued ") == issued


def test_closed_port_is_unavailable() -> None:
    """A closed port is UnavailableError with the address and a remedy."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=rf"^{address}: the CA cannot be reached: .*; check that"):
            ask(address, TestCa().root_pem, token="x")


def test_a_connection_that_is_not_served_is_followed_by_another(ca: CaProcess) -> None:
    """A CA that is flooded may leave a connection waiting; the client does not wait for that one alone."""
    host, _, port = ca.address.rpartition(":")
    opened: list[socket.socket] = []
    copying: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as front, contextlib.ExitStack() as stack:

        def serve() -> None:
            """Leave two connections waiting, and pass all later ones on."""
            with contextlib.suppress(OSError):
                for number in itertools.count():
                    accepted = stack.enter_context(front.accept()[0])
                    opened.append(accepted)
                    if number >= 2:
                        behind = stack.enter_context(socket.create_connection((host, int(port))))
                        opened.append(behind)
                        for ends in ((accepted, behind), (behind, accepted)):
                            copying.append(threading.Thread(target=copy, args=ends))
                            copying[-1].start()

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            chain, _ = ask(f"127.0.0.1:{front.getsockname()[1]}", ca.root_pem, token=ca.token("foo", "bar"))
        finally:
            # Ends what waits: the client's loop may have ended before its connection was closed.
            front.shutdown(socket.SHUT_RDWR)
            serving.join()
            for end in opened:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in copying:
                thread.join()
    assert identity(chain) == BAR
    assert len(opened) >= 4


def copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what `source` receives, until its end."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_silence_ends_at_the_deadline() -> None:
    """A server that accepts and says nothing costs the deadline and no more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.2 s"):
            ask(address, TestCa().root_pem, token="x", deadline=0.2)


@pytest.mark.parametrize(
    "address", ["", "ca", "ca:", ":15012", "ca:0", "ca:65536", "ca:x", f"{'a' * 70}:1", "[::1]"]
)
def test_malformed_address_is_refused(address: str) -> None:
    """A malformed address is an InputError before anything is sent."""
    with pytest.raises(InputError):
        ask(address, TestCa().root_pem)


def test_unreadable_root_is_refused() -> None:
    """A root certificate that is not PEM is an InputError."""
    for root in (b"", b"junk", b"\xff"):
        with pytest.raises(InputError, match="not PEM"):
            ask("127.0.0.1:1", root)


def test_another_implementations_answers_are_read() -> None:
    """A chain from a grpcio server, with an intermediate and a bundle of two, is taken apart rightly."""
    mesh, old = TestCa(), TestCa()
    below = mesh.intermediate()
    middle = certificates_to_pem([below.signer.certificate])
    response = answer(leaf(below), middle, mesh.root_pem + old.root_pem)
    with grpc_server(mesh, response) as (address, peer):
        chain, bundle = ask(address, mesh.root_pem, token="abc", deadline=5)
        (seen,) = peer.ask("seen")
    message = IstioCertificateRequest.FromString(seen["message"])
    assert identity(chain) == BAR
    assert chain[1:] == [middle]
    assert bundle == mesh.root_pem + old.root_pem
    assert (message.csr, message.validity_duration) == (CSR.decode(), 3600)
    assert seen["metadata"]["authorization"] == "Bearer abc"
    assert 0 < seen["deadline"] <= 5


def test_answers_that_cannot_be_used_are_unavailable() -> None:
    """A certificate for another key, a chain without a bundle, junk: nothing of it is ever handed on."""
    mesh = TestCa()
    answers = {
        "another key": answer(leaf(mesh, generate_key()), mesh.root_pem),
        "not a chain": answer(leaf(mesh)),
        "cannot be used": answer(b"junk", mesh.root_pem),
        "bundle .* not a CA": answer(leaf(mesh), leaf(mesh)),
        "malformed": b"\xff\xff",
    }
    for reason, response in answers.items():
        with grpc_server(mesh, response) as (address, _), pytest.raises(UnavailableError, match=reason):
            ask(address, mesh.root_pem, token="x")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("UNAUTHENTICATED", UnauthenticatedError),
        ("PERMISSION_DENIED", UnauthenticatedError),
        ("INVALID_ARGUMENT", InputError),
        ("UNIMPLEMENTED", InputError),
        ("UNAVAILABLE", UnavailableError),
        ("RESOURCE_EXHAUSTED", UnavailableError),
        ("INTERNAL", UnavailableError),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_status_says_whether_to_try_again(code: str, error: type[MeshscrapeError]) -> None:
    """Credentials, permanent and passing refusals are told apart; the server's words are one line."""
    mesh = TestCa()
    refusal = (code, "first line\nsecond line")
    with grpc_server(mesh, refusal=refusal) as (address, _), pytest.raises(error) as caught:
        ask(address, mesh.root_pem, token="x")
    assert type(caught.value) is error
    assert code in str(caught.value) and "\n" not in str(caught.value)


def leaf(ca: TestCa, key: Any = KEY) -> bytes:
    issued = issue_leaf(ca.signer, key.public_key(), BAR, datetime.now(UTC), timedelta(hours=1))
    return certificates_to_pem([issued])


def answer(*elements: bytes) -> bytes:
    response = IstioCertificateResponse(cert_chain=[element.decode() for element in elements])
    return bytes(response.SerializeToString())


@contextlib.contextmanager
def grpc_server(
    ca: TestCa, response: bytes = b"", refusal: tuple[str, str] | None = None
) -> Iterator[tuple[str, GrpcPeer]]:
    """A grpcio server with a certificate of `ca`, whose CreateCertificate has one answer; its address."""
    credentials = ca.server(["127.0.0.1"])
    with serving_peer() as peer:
        yield (
            peer.ask("serve", METHOD, credentials.key_pem, credentials.chain_pem, response, refusal),
            peer,
        )
