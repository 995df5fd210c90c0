"""The cheapest client that completes a TLS 1.3 handshake: as an attacker would write it.

It verifies nothing and uses one key for all connections, so it spends a fraction of what the server spends.
RFC 8446: TLS_AES_128_GCM_SHA256, X25519, no client certificate.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY = X25519PrivateKey.generate()
_PUBLIC = _KEY.public_key().public_bytes_raw()
_EMPTY = hashlib.sha256().digest()
_HASH = 32


class _Record(IntEnum):
    CHANGE = 20
    HANDSHAKE = 22
    DATA = 23


class _Message(IntEnum):
    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    CERTIFICATE = 11
    FINISHED = 20


class HandshakeFailed(Exception):
    """The server sent something else than its part of a handshake."""


class Hello:
    """One handshake as a client: feed what the server sends, send what comes back."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transcript = hashlib.sha256(_CLIENT_HELLO)
        self._read: _Keys | None = None
        self._write: _Keys | None = None
        self._messages = b""

    @staticmethod
    def first() -> bytes:
        """Return what the client says first."""
        return _record(_Record.HANDSHAKE, _CLIENT_HELLO)

    def feed(self, data: bytes) -> bytes:
        """Return what completes the handshake once the server's part is whole, before that nothing."""
        self._buffer += data
        while len(self._buffer) >= 5 + (length := int.from_bytes(self._buffer[3:5])):
            head, body = self._buffer[:5], self._buffer[5 : 5 + length]
            self._buffer = self._buffer[5 + length :]
            if head[0] == _Record.HANDSHAKE and self._read is None:
                self._agree(body)
            elif head[0] == _Record.DATA and self._read is not None:
                self._messages += self._read.open(head, body)
                if answer := self._answer():
                    return answer
            elif head[0] != _Record.CHANGE:
                raise HandshakeFailed(f"a record of type {head[0]}")
        return b""

    def _agree(self, hello: bytes) -> None:
        """Derive the keys of the handshake from ServerHello (RFC 8446, 7.1)."""
        if hello[0] != _Message.SERVER_HELLO:
            raise HandshakeFailed(f"a message of type {hello[0]}")
        shared = _KEY.exchange(X25519PublicKey.from_public_bytes(_key_share(hello)))
        self._transcript.update(hello)
        early = hmac.digest(bytes(_HASH), bytes(_HASH), "sha256")
        secret = hmac.digest(_expand(early, b"derived", _EMPTY), shared, "sha256")
        seen = self._transcript.digest()
        self._read = _Keys(_expand(secret, b"s hs traffic", seen))
        self._write = _Keys(_expand(secret, b"c hs traffic", seen))

    def _answer(self) -> bytes:
        """Take the messages that are whole; after the server's Finished return the client's last ones."""
        while len(self._messages) >= 4 + (length := int.from_bytes(self._messages[1:4])):
            message, self._messages = self._messages[: 4 + length], self._messages[4 + length :]
            self._transcript.update(message)
            if message[0] == _Message.FINISHED:
                return self._finish()
        return b""

    def _finish(self) -> bytes:
        if self._write is None:
            raise HandshakeFailed("Finished came first")
        # The server asks for a certificate, and takes none as an answer.
        certificate = _message(_Message.CERTIFICATE, bytes(4))
        self._transcript.update(certificate)
        key = _expand(self._write.secret, b"finished", b"")
        proof = hmac.digest(key, self._transcript.digest(), "sha256")
        return self._write.seal(certificate + _message(_Message.FINISHED, proof))


class _Keys:
    """One direction of the handshake's records."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._cipher = AESGCM(_expand(secret, b"key", b"", 16))
        self._nonce = int.from_bytes(_expand(secret, b"iv", b"", 12))
        self._number = 0

    def open(self, head: bytes, body: bytes) -> bytes:
        """Return the handshake messages in one record."""
        inner = self._cipher.decrypt(self._next(), body, head).rstrip(b"\0")
        if inner[-1] != _Record.HANDSHAKE:
            raise HandshakeFailed(f"an encrypted record of type {inner[-1]}")
        return inner[:-1]

    def seal(self, messages: bytes) -> bytes:
        """Return the record with these handshake messages."""
        inner = messages + bytes([_Record.HANDSHAKE])
        head = bytes([_Record.DATA, 3, 3]) + (len(inner) + 16).to_bytes(2)
        return head + self._cipher.encrypt(self._next(), inner, head)

    def _next(self) -> bytes:
        nonce = (self._nonce ^ self._number).to_bytes(12)
        self._number += 1
        return nonce


def _expand(secret: bytes, label: bytes, context: bytes, length: int = _HASH) -> bytes:
    """HKDF-Expand-Label; one block is enough for every length here."""
    info = length.to_bytes(2) + _sized(b"tls13 " + label, 1) + _sized(context, 1)
    return hmac.digest(secret, info + b"\1", "sha256")[:length]


def _key_share(hello: bytes) -> bytes:
    """Return the server's public key in ServerHello."""
    place = 4 + 2 + 32
    place += 1 + hello[place] + 2 + 1 + 2
    while place + 4 <= len(hello):
        kind, length = int.from_bytes(hello[place : place + 2]), int.from_bytes(hello[place + 2 : place + 4])
        if kind == 51:
            return hello[place + 8 : place + 4 + length]
        place += 4 + length
    raise HandshakeFailed("ServerHello has no key share")


def _sized(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size) + data


def _record(kind: _Record, data: bytes) -> bytes:
    return bytes([kind, 3, 3]) + _sized(data, 2)


def _message(kind: _Message, body: bytes) -> bytes:
    return bytes([kind]) + _sized(body, 3)


def _extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + _sized(body, 2)


def _client_hello() -> bytes:
    extensions = [
        _extension(43, _sized(b"\x03\x04", 1)),
        _extension(10, _sized(b"\x00\x1d", 2)),
        _extension(13, _sized(b"\x04\x03\x05\x03\x08\x04\x04\x01", 2)),
        _extension(51, _sized(b"\x00\x1d" + _sized(_PUBLIC, 2), 2)),
        _extension(16, _sized(_sized(b"h2", 1), 2)),
    ]
    body = (
        b"\x03\x03" + bytes(32) + b"\0" + _sized(b"\x13\x01", 2) + b"\1\0" + _sized(b"".join(extensions), 2)
    )
    return _message(_Message.CLIENT_HELLO, body)


_CLIENT_HELLO = _client_hello()
