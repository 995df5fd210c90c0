"""The expressions that find bytes, and short keys, in a certificate as Envoy writes it down."""

from __future__ import annotations

import base64
import re
import urllib.parse

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.envoy.resources.rsa_keys import ANY, containing, short_key

WANTED = bytes.fromhex("2a864886f70d010101")
PATTERN = re.compile(containing([*WANTED, ANY, 0xFF]))
SHORT = re.compile(short_key())


def written(der: bytes) -> str:
    """Return what Envoy's %DOWNSTREAM_PEER_CERT% gives: PEM with lines of 64 characters, percent-encoded."""
    text = base64.b64encode(der).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    pem = "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
    return urllib.parse.quote(pem, safe="-")


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=1), st.binary(max_size=200))
def test_bytes_are_found_wherever_they_are(before: bytes, unknown: bytes, after: bytes) -> None:
    """Neither the place, nor a break of the line, nor an unknown byte in their middle hides them."""
    assert PATTERN.fullmatch(written(before + WANTED + unknown + b"\xff" + after))


@given(st.binary(max_size=100), st.integers(0, 8), st.integers(1, 255), st.binary(max_size=100))
def test_other_bytes_are_not_taken_for_them(before: bytes, place: int, change: int, after: bytes) -> None:
    """Each known bit counts."""
    wrong = bytearray(WANTED)
    wrong[place] ^= change
    der = before + bytes(wrong) + b"\x00\xff" + after
    found = re.search(re.escape(WANTED) + rb".\xff", der, re.DOTALL) is not None
    assert bool(PATTERN.fullmatch(written(der))) == found


@given(
    st.lists(
        st.tuples(st.integers(512, 4100), st.integers(0, 2**64), st.sampled_from([3, 65537, 2**33 - 1]))
    ),
    st.binary(max_size=70),
)
def test_a_short_key_is_found_among_others(keys: list[tuple[int, int, int]], between: bytes) -> None:
    """One key below 2048 bits anywhere in a chain is enough. Longer ones are none, wherever they are."""
    chain = "".join(written(between + public_key(*each) + between) for each in keys)
    assert bool(SHORT.fullmatch(chain)) == any(bits < 2048 for bits, _, _ in keys)


def public_key(bits: int, low: int, exponent: int) -> bytes:
    """An RSA key in DER whose modulus has `bits` bits; nobody can use it."""
    modulus = 1 << bits - 1 | low % (1 << bits - 1) | 1
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
