"""The expression that finds bytes in a certificate as Envoy writes it down."""

from __future__ import annotations

import base64
import re
import urllib.parse

from hypothesis import given
from hypothesis import strategies as st

from meshscrape.envoy.resources.client_keys import containing

WANTED = bytes.fromhex("2a864886f70d010101")
PATTERN = re.compile(containing([*WANTED, None, 0xFF]))


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
