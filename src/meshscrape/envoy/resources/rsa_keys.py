"""Find RSA keys below 2048 bits in certificates as Envoy writes them down.

Envoy has no setting for the length of a peer's key. But it can put a certificate (PEM, percent-encoded) into
a string and compare this string with a regular expression. In DER, the length of a key is in plain sight.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

RUNTIME: Mapping[str, object] = {"re2.max_program_size.error_level": 1000}
"""The runtime value that allows such a long expression. Envoy's default is 100."""
CERTIFICATE = "-----BEGIN%20CERTIFICATE-----"
"""The beginning of every certificate, as Envoy writes it."""

_ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
_ANY_CHARACTER = "(?:[A-Za-z0-9]|%2[BF])"
_LINE_BREAK = "(?:%0A)?"

# A byte: its value, or its eight bits as text, where "?" is any bit.
_Bytes = Sequence[int | str]
ANY = "????????"

# rsaEncryption, 1.2.840.113549.1.1.1 (RFC 8017): the kind of the key, never the kind of a signature. Then
# follow: NULL, a BIT STRING, in it a SEQUENCE, in it the modulus as an INTEGER. Each of the three says its
# length, in DER always in the shortest way: in one byte below 0x80, or after 0x81, or in two bytes after 0x82
# when it is 256 or more. Envoy's TLS library refuses other spellings, and exponents above 33 bits.
_KEY: _Bytes = (0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01, 0x05, 0x00, 0x03)
_SEQUENCE: _Bytes = (*_KEY, 0x82, ANY, ANY, 0x00, 0x30)
_MODULUS: _Bytes = (*_SEQUENCE, 0x82, ANY, ANY, 0x02)
_SHORT: Sequence[_Bytes] = (
    (*_KEY, "0???????"),
    (*_KEY, 0x81),
    (*_SEQUENCE, 0x81),
    (*_MODULUS, 0x81),
    # An INTEGER begins with a zero byte when its first bit is one, so 2048 bits take 257 bytes. A modulus of
    # 256 bytes has 2041 to 2047 bits.
    (*_MODULUS, 0x82, 0x01, 0x00),
)


@cache
def short_key() -> str:
    """Return the regular expression for a text with a certificate whose RSA key has fewer than 2048 bits.

    The text may hold several certificates. Other kinds of keys do not match: TLS accepts ECDSA only.
    """
    return containing(*_SHORT)


def containing(*wanted: _Bytes) -> str:
    """Return the regular expression for a percent-encoded PEM text that contains one of the `wanted` bytes.

    Base64 writes three bytes as four characters, so there is one spelling for each place modulo three.
    """
    spellings = [_spelling(sequence, before) for before in range(3) for sequence in wanted]
    return f".*{_one_of(spellings)}.*"


def _one_of(spellings: Sequence[Sequence[str]]) -> str:
    """Return the expression for any of `spellings`, each a sequence of expressions for one character.

    A beginning that several spellings share is written once, because Envoy bounds the size of an expression.
    """
    branches: dict[str, list[Sequence[str]]] = {}
    for first, *rest in spellings:
        branches.setdefault(first, []).append(rest)
    texts = [
        first if [] in rests else first + _LINE_BREAK + _one_of(rests) for first, rests in branches.items()
    ]
    return texts[0] if len(texts) == 1 else f"(?:{'|'.join(texts)})"


def _spelling(wanted: _Bytes, before: int) -> list[str]:
    """Return the characters of `wanted` after `before` unknown bytes. A line may break between any two."""
    after = -(before + len(wanted)) % 3
    bits = "".join(_bits([*[ANY] * before, *wanted, *[ANY] * after]))
    characters = [_character(bits[start : start + 6]) for start in range(0, len(bits), 6)]
    known = [number for number, character in enumerate(characters) if character != _ANY_CHARACTER]
    return characters[known[0] : known[-1] + 1]


def _bits(wanted: _Bytes) -> Iterator[str]:
    for byte in wanted:
        yield byte if isinstance(byte, str) else f"{byte:08b}"


def _character(bits: str) -> str:
    """Return the expression for one character of base64, of which some of six `bits` are known."""
    possible = [
        _ALPHABET[value]
        for value in range(64)
        if all(wanted in ("?", bit) for wanted, bit in zip(bits, f"{value:06b}", strict=True))
    ]
    if len(possible) == 64:
        return _ANY_CHARACTER
    plain = "".join(character for character in possible if character.isalnum())
    encoded = [f"%{ord(character):02X}" for character in possible if not character.isalnum()]
    choices = [*([f"[{plain}]"] if plain else []), *encoded]
    return choices[0] if len(choices) == 1 else f"(?:{'|'.join(choices)})"
