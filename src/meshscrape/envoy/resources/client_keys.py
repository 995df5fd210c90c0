"""Build the network filters that close connections of clients whose RSA key is too short.

Envoy has no setting for the length of a client's key. But once per connection it can put the client's
certificate (PEM, percent-encoded) into a string, and compare this string with regular expressions: so the
filters look for the certificate's public key in DER, where the length of the modulus is visible. They check
only the client's own certificate, not the CAs above it: those come from the bundle.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence

from meshscrape.envoy.resources.values import Resource, typed

RUNTIME: Mapping[str, object] = {"re2.max_program_size.error_level": 2000}
"""The runtime value that lets Envoy have such long expressions. Its default is 100."""
STATISTICS = "client_keys."

_CERTIFICATE = "meshscrape.client_certificate"
_FILTER_STATE = "envoy.extensions.filters.network.set_filter_state.v3.Config"
_RBAC = "envoy.extensions.filters.network.rbac.v3.RBAC"
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
_ANY_CHARACTER = "(?:[A-Za-z0-9]|%2[BF])"
_LINE_BREAK = "(?:%0A)?"

# The value of a byte, or None for any byte.
_Bytes = Sequence[int | None]
# rsaEncryption, 1.2.840.113549.1.1.1 (RFC 8017): the kind of the key, never the kind of a signature.
_RSA: _Bytes = (0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01)
# Then follow: NULL, a BIT STRING, in it a SEQUENCE, in it the modulus as an INTEGER. DER says a length in the
# two bytes after 0x82 when it is 256 or more, so this modulus has at least 256 bytes.
_LENGTH: _Bytes = (0x82, None, None)
_LONG: _Bytes = (*_RSA, 0x05, 0x00, 0x03, *_LENGTH, 0x00, 0x30, *_LENGTH, 0x02, 0x82)
# An INTEGER begins with a zero byte when its first bit is one, so 2048 bits take 257 bytes. A modulus of 256
# bytes has 2041 to 2047 bits.
_BELOW_2048: _Bytes = (*_LONG, 0x01, 0x00)


def strong_keys_only() -> tuple[Resource, Resource]:
    """Return the filters that close a TLS connection whose client has an RSA key below 2048 bits.

    They act once per connection, before its first byte reaches the next filter, and count as
    `client_keys.rbac.denied`. Other kinds of keys pass: TLS accepts ECDSA only.
    """
    certificate = {
        "object_key": _CERTIFICATE,
        "factory_key": "envoy.string",
        "format_string": {"text_format_source": {"inline_string": "%DOWNSTREAM_PEER_CERT%"}},
    }
    state = typed(_FILTER_STATE, on_downstream_tls_handshake=[certificate])
    # Without this part, a certificate that Envoy could not write as text would pass.
    seen = _matches({"prefix": "-----BEGIN%20CERTIFICATE-----"})
    long = {"and_ids": {"ids": [_has(_LONG), {"not_id": _has(_BELOW_2048)}]}}
    strong = {"or_ids": {"ids": [{"not_id": _has(_RSA)}, long]}}
    policy = {"permissions": [{"any": True}], "principals": [{"and_ids": {"ids": [seen, strong]}}]}
    rules = {"action": "ALLOW", "policies": {"strong key": policy}}
    return (
        {"name": "envoy.filters.network.set_filter_state", "typed_config": state},
        {
            "name": "envoy.filters.network.rbac",
            "typed_config": typed(_RBAC, stat_prefix=STATISTICS, rules=rules),
        },
    )


def containing(wanted: _Bytes) -> str:
    """Return the regular expression for a percent-encoded PEM text that contains the `wanted` bytes.

    Base64 writes three bytes as four characters, so there is one spelling for each place modulo three.
    """
    return f".*(?:{'|'.join(_spelling(wanted, before) for before in range(3))}).*"


def _has(wanted: _Bytes) -> Resource:
    return _matches({"safe_regex": {"regex": containing(wanted)}})


def _matches(match: Resource) -> Resource:
    return {"filter_state": {"key": _CERTIFICATE, "string_match": match}}


def _spelling(wanted: _Bytes, before: int) -> str:
    """Return the spelling of `wanted` after `before` unknown bytes; a line may break anywhere in it."""
    after = -(before + len(wanted)) % 3
    bits = list(_bits([*[None] * before, *wanted, *[None] * after]))
    characters = [_character(bits[start : start + 6]) for start in range(0, len(bits), 6)]
    known = [number for number, each in enumerate(characters) if each != _ANY_CHARACTER]
    return _LINE_BREAK.join(characters[known[0] : known[-1] + 1])


def _bits(wanted: _Bytes) -> Iterator[int | None]:
    for byte in wanted:
        for place in range(7, -1, -1):
            yield None if byte is None else byte >> place & 1


def _character(bits: Sequence[int | None]) -> str:
    """Return the expression for one character of base64, of which some of six bits are known."""
    possible = [
        _ALPHABET[value]
        for value in range(64)
        if all(bit is None or bit == value >> 5 - place & 1 for place, bit in enumerate(bits))
    ]
    if len(possible) == 64:
        return _ANY_CHARACTER
    plain = "".join(each for each in possible if each.isalnum())
    encoded = [f"%{ord(each):02X}" for each in possible if not each.isalnum()]
    choices = [*([f"[{plain}]"] if plain else []), *encoded]
    return choices[0] if len(choices) == 1 else f"(?:{'|'.join(choices)})"
