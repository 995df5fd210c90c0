"""HOST:PORT, spelled and parsed."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.istio.host_port import host_port, parse_host_port


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:15094", ("127.0.0.1", 15094)),
        ("istiod.istio-system.svc:15012", ("istiod.istio-system.svc", 15012)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_spelling_and_parsing_are_inverse(text: str, parts: tuple[str, int]) -> None:
    """An IPv6 address has brackets in the text, and none in the host."""
    assert parse_host_port(text) == parts
    assert host_port(*parts) == text


@pytest.mark.parametrize(
    "text",
    ["", "a", ":1", "a:", "a:0", "a:65536", "a:+1", "a:01", "::1:80", "[::1]", "[a]:1", "[::1:80", "a]:1"],
)
def test_anything_else_is_refused(text: str) -> None:
    """A missing host, an IPv6 address without brackets, and what is not a port."""
    with pytest.raises(InputError):
        parse_host_port(text)


def test_port_zero_is_allowed_on_request() -> None:
    """Where any free port will do, 0 is one."""
    assert parse_host_port("127.0.0.1:0", allow_zero=True) == ("127.0.0.1", 0)
