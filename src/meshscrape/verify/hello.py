"""Build a ClientHello of an outdated TLS version, and read the server's first record (pure).

Python's ssl does not reliably offer versions that the policy of its OpenSSL forbids, and a probe that cannot
offer them proves nothing. Source: RFC 2246, RFC 4346, RFC 8422; alerts: RFC 8446, section 6.
"""

from __future__ import annotations

from meshscrape.verify.observations import Negotiated, Observation, TlsAlert, TlsFailed, printable

VERSIONS = {"TLS 1.0": b"\x03\x01", "TLS 1.1": b"\x03\x02"}

# The suites of these versions: ECDHE with ECDSA and RSA certificates, and plain RSA, with AES-CBC and SHA-1.
_SUITES = bytes.fromhex("c00a c009 c014 c013 0035 002f 00ff".replace(" ", ""))
_GROUPS = bytes.fromhex("001d 0017 0018".replace(" ", ""))

_ALERTS = {
    0: "close notify", 10: "unexpected message", 20: "bad record mac", 22: "record overflow",
    40: "handshake failure", 42: "bad certificate", 43: "unsupported certificate", 44: "certificate revoked",
    45: "certificate expired", 46: "certificate unknown", 47: "illegal parameter", 48: "unknown ca",
    49: "access denied", 50: "decode error", 51: "decrypt error", 70: "protocol version",
    71: "insufficient security", 80: "internal error", 86: "inappropriate fallback", 90: "user canceled",
    109: "missing extension", 110: "unsupported extension", 112: "unrecognized name",
    113: "bad certificate status response", 115: "unknown psk identity", 116: "certificate required",
    120: "no application protocol",
}  # fmt: skip
_ALERT, _HANDSHAKE, _SERVER_HELLO = 21, 22, 2


def client_hello(version: str, random: bytes) -> bytes:
    """Return the record that asks for `version` ("TLS 1.0" or "TLS 1.1") at most; `random` are 32 bytes."""
    wire = VERSIONS[version]
    extensions = _extension(10, _vector(_GROUPS, 2)) + _extension(11, _vector(b"\x00", 1))
    body = wire + random + b"\x00" + _vector(_SUITES, 2) + b"\x01\x00" + _vector(extensions, 2)
    message = b"\x01" + _vector(body, 3)
    return b"\x16\x03\x01" + _vector(message, 2)


def read_record(data: bytes) -> Observation | None:
    """Return the meaning of the server's first bytes; None while there are too few."""
    if data and data[0] not in (_ALERT, _HANDSHAKE):
        return TlsFailed(f"the port does not speak TLS: {printable(data)}")
    if data and data[0] == _ALERT:
        return TlsAlert(alert_name(data[6])) if len(data) >= 7 else None
    if len(data) < 11:
        return None
    if data[5] != _SERVER_HELLO:
        return TlsFailed(f"the server answered with handshake message {data[5]}")
    names = {wire: name for name, wire in VERSIONS.items()}
    return Negotiated(names.get(data[9:11], f"TLS version {data[9:11].hex()}"))


def alert_name(code: int) -> str:
    """Return the alert's name in the RFC's words, spelled with spaces."""
    return _ALERTS.get(code, f"alert {code}")


def _vector(data: bytes, width: int) -> bytes:
    return len(data).to_bytes(width, "big") + data


def _extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _vector(data, 2)
