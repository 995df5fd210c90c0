"""Where a URL leads in a mesh, and who must answer there."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.local.request import Endpoint, endpoint_of

WEB = "spiffe://cluster.local/ns/shop/sa/web"
DOCUMENT = {
    "workloads": [
        {
            "name": "web",
            "namespace": "shop",
            "address": "127.20.1.1",
            "addresses": ["127.20.1.1", "fd00::1"],
            "spiffeId": WEB,
        }
    ]
}


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://127.20.1.1:15092/x", Endpoint("127.20.1.1", 15092, WEB)),
        ("https://[fd00::1]:9080/", Endpoint("fd00::1", 9080, WEB)),
        ("https://web:9080/", Endpoint("127.20.1.1", 9080, WEB)),
        ("https://web.shop/", Endpoint("127.20.1.1", 443, WEB)),
        ("http://web:8080/", Endpoint("127.20.1.1", 8080, "")),
        ("http://127.0.0.1:1/", Endpoint("127.0.0.1", 1, "")),
    ],
)
def test_the_address_decides_which_identity_must_answer(url: str, endpoint: Endpoint) -> None:
    """By address or name; plain HTTP expects nobody in particular."""
    assert endpoint_of(url, DOCUMENT) == endpoint


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/", "ftp://web/", "web:9080", "https://web:99999/", "https:///x", "http://["]
)
def test_urls_that_lead_nowhere_are_refused(url: str) -> None:
    """Unknown https hosts, other schemes, impossible ports."""
    with pytest.raises(InputError):
        endpoint_of(url, DOCUMENT)
