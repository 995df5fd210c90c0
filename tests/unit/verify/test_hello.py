"""ClientHello by hand and what a server's first record says."""

from __future__ import annotations

import ssl

import pytest

from meshscrape.verify.hello import alert_name, client_hello, read_record
from meshscrape.verify.observations import Negotiated, TlsAlert, TlsFailed


@pytest.mark.parametrize("version", ["TLS 1.0", "TLS 1.1"])
def test_openssl_understands_the_hello_and_refuses_its_version(version: str) -> None:
    """A server with TLS 1.2 as its least answers with an alert about the version, not about the bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(client_hello(version, bytes(32)))
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        server.do_handshake()
    assert read_record(outgoing.read()) == TlsAlert("protocol version")


def test_a_server_hello_is_agreement() -> None:
    """The version in it is what the server chose."""
    hello = bytes.fromhex("16 0301 0030 02 00002c 0302".replace(" ", "")) + bytes(32)
    assert read_record(hello) == Negotiated("TLS 1.1")


@pytest.mark.parametrize("data", [b"", b"\x15\x03\x01\x00\x02\x02", b"\x16\x03\x01\x00\x30\x02\x00"])
def test_too_few_bytes_give_no_observation(data: bytes) -> None:
    """More has to be read before anything is seen."""
    assert read_record(data) is None


def test_plaintext_answer_is_not_a_refusal() -> None:
    """A web server's complaint does not count as refusing an old version."""
    assert isinstance(read_record(b"HTTP/1.1 400 Bad Request\r\n"), TlsFailed)


def test_unknown_alerts_keep_their_number() -> None:
    """Nothing is invented for an alert without a name."""
    assert (alert_name(48), alert_name(250)) == ("unknown ca", "alert 250")
