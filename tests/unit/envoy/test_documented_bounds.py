"""What the documentation promises is what the configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshscrape.envoy import bounds
from meshscrape.envoy.resources.listeners import HANDSHAKE_TIMEOUT
from meshscrape.exposition.source import MergeLimits
from support.kills import BACK_WITHIN

FAILURES = " ".join((Path(__file__).parents[3] / "docs" / "failures.md").read_text().split())


@pytest.mark.parametrize(
    "promise",
    [
        f"within {BACK_WITHIN:g} s the process is back",
        f"each secure port has {bounds.SECURE_CONNECTIONS} places",
        f"15021 accept {bounds.PLAINTEXT_CONNECTIONS} connections each",
        f"a silent one is closed after {HANDSHAKE_TIMEOUT:g} s",
        f"cut off after {bounds.IDLE_TIMEOUT:g} s, not at once",
        f"an open connection is served for {bounds.CONNECTION_DURATION:g} s",
        f"served for at most {bounds.REVOCATION_BOUND:g} s",
        f"408 after {bounds.METRICS.headers_timeout:g} s (header)",
        f"or {bounds.METRICS.request_timeout:g} s (whole)",
        f"more than {bounds.TRAFFIC_CONNECTIONS} connections to one port",
        f"get {bounds.PLAIN_SHARE} of these places",
        f"closed after {bounds.TRAFFIC.idle_timeout:g} s with mutual TLS, "
        f"after {bounds.PLAIN_TRAFFIC.idle_timeout:g} s in plaintext",
        f"closed after {bounds.TRAFFIC.headers_timeout:g} s",
        f"nothing has moved for {bounds.TRAFFIC.stream_idle_timeout:g} s",
        f"at most {MergeLimits().max_bytes >> 20} MB and {MergeLimits().max_series:,} series",
    ],
)
def test_failures_page_has_the_bounds(promise: str) -> None:
    """A number that is changed in the code is changed on the page."""
    assert promise in FAILURES
