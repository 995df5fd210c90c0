"""The routes file of a gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshscrape.agent.routes import parse_routes
from meshscrape.envoy.options import GatewayRoute, Upstream
from meshscrape.errors import InputError

ROUTE: dict[str, Any] = {
    "prefix": "/web",
    "upstream": {
        "name": "web",
        "address": "127.1.0.1",
        "port": 9080,
        "spiffeId": "spiffe://cluster.local/ns/demo/sa/web",
    },
}


def changed(**upstream: object) -> bytes:
    return json.dumps([ROUTE | {"upstream": ROUTE["upstream"] | upstream}]).encode()


def test_route_has_the_expected_identity() -> None:
    """Prefix, address, port and the SPIFFE ID of the workload behind it."""
    upstream = Upstream("web", "127.1.0.1", 9080, "spiffe://cluster.local/ns/demo/sa/web")
    assert parse_routes(json.dumps([ROUTE]).encode(), "routes.json") == (GatewayRoute("/web", upstream),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "routes.json: not JSON"),
        (b"{}", "routes.json: not a list of routes"),
        (b"[1]", r"routes.json: \[0\]: not an object with prefix, upstream"),
        (json.dumps([ROUTE | {"more": 1}]).encode(), r"\[0\]: not an object with prefix, upstream"),
        (json.dumps([ROUTE | {"prefix": "web"}]).encode(), "the prefix does not begin with /"),
        (changed(port="9080"), r"\[0\]\.upstream: port is not of type int"),
        (changed(port=True), r"\[0\]\.upstream: port is not of type int"),
        (changed(port=65536), r"\[0\]\.upstream\.port: .*not a port"),
        (changed(address="web.demo"), r"\[0\]\.upstream\.address: .*not an IP address"),
        (changed(spiffeId="web"), "spiffe"),
    ],
)
def test_a_bad_route_is_refused_with_its_place(text: bytes, said: str) -> None:
    """Nothing is guessed: unknown keys, wrong types and unusable values name file and route."""
    with pytest.raises(InputError, match=said):
        parse_routes(text, "routes.json")
