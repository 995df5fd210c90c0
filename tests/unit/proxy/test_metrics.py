"""What the proxy makes of Envoy's log."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.prometheus.targets import Target
from meshscrape.proxy.access import Scrape, parse_line
from meshscrape.proxy.discovery import Discovery
from meshscrape.proxy.metrics import ProxyFigures, ScrapeCounters, render
from meshscrape.spiffe.ids import SpiffeId

LABELS = {"namespace": "b", "workload": "w"}
TARGET = Target("10.0.0.1", 15092, SpiffeId("a", "/ns/b/sa/c"), LABELS, "/metrics")
ROUTE = "10.0.0.1:15092/metrics"


def _line(**changes: Any) -> bytes:
    fields = {
        "authority": "10.0.0.1:15092", "path": "/metrics", "status": 200, "flags": "-", "refusal": None,
        "details": "via_upstream", "tls": None,
        "peer": "spiffe://a/ns/b/sa/c", "not_after": "2026-11-21T19:01:27.000Z", "connection": 7,
    }  # fmt: skip
    return json.dumps(fields | changes).encode()


def _counted(*lines: bytes) -> ScrapeCounters:
    counters = ScrapeCounters()
    counters.know([TARGET])
    for line in lines:
        scrape = parse_line(line)
        assert scrape is not None
        counters.count(scrape)
    return counters


def test_a_new_connection_is_a_handshake_and_an_old_one_is_not() -> None:
    """Envoy numbers connections upwards: only a higher number than any before is new."""
    figures = _counted(*(_line(connection=number) for number in (7, 7, 9, 7, 9))).by_route[ROUTE]
    assert (figures.scrapes, figures.handshakes, figures.reused) == (5, 2, 3)
    assert figures.not_after is not None and figures.not_after.year == 2026


def test_refusals_are_counted_by_reason() -> None:
    """A refusal before the handshake is no handshake."""
    lines = [_line(status=503, flags="UF", refusal="wrong-identity", connection=0, not_after=None)] * 2
    figures = _counted(*lines).by_route[ROUTE]
    assert figures.refusals == {"wrong-identity": 2}
    assert figures.handshakes == figures.reused == 0


def test_requests_without_token_change_no_targets_counters() -> None:
    """A local process without the token can only move one sum that names nobody."""
    counters = _counted(_line(status=401, refusal="bad-token", connection=0))
    assert counters.by_route[ROUTE].scrapes == 0
    assert counters.strangers == {"bad-token": 1}


def test_requests_for_unknown_targets_are_summed_by_reason() -> None:
    """However many addresses are tried."""
    lines = [
        _line(authority=f"10.0.0.{n}:1", status=404, refusal="unknown-target", connection=0)
        for n in range(50)
    ]
    assert _counted(*lines).strangers == {"unknown-target": 50}


def test_remaining_targets_keep_their_counters_and_removed_ones_lose_them() -> None:
    """Counters do not go back while discovery changes around a target."""
    counters = _counted(_line())
    other = Target("10.0.0.2", 1, TARGET.spiffe_id, {})
    counters.know([other])
    counters.know([TARGET], [TARGET])
    assert counters.by_route[ROUTE].scrapes == 1
    counters.know([], [TARGET, other])
    assert not counters.by_route


def test_another_identity_at_the_address_starts_anew() -> None:
    """The figures are of a workload, not of an address."""
    counters = _counted(_line())
    counters.know([Target("10.0.0.1", 15092, SpiffeId("a", "/ns/b/sa/other"), {}, "/metrics")])
    assert counters.by_route[ROUTE].scrapes == 0


def test_an_envoy_that_starts_anew_numbers_from_the_beginning() -> None:
    """Its first connection is a handshake although its number is low."""
    counters = _counted(_line(connection=900))
    counters.forget_connections()
    scrape = parse_line(_line(connection=3))
    assert scrape is not None
    counters.count(scrape)
    assert counters.by_route[ROUTE].handshakes == 2


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"{}", b"not json", _line(status="x"), _line(not_after="x")]
)
def test_foreign_log_line_is_ignored(line: bytes) -> None:
    """A half-written or foreign line costs nothing."""
    assert parse_line(line) is None


_FIELDS = st.sampled_from(["path", "status", "flags", "refusal", "tls", "not_after", "peer", "connection"])
_VALUES = st.one_of(st.none(), st.text(max_size=20), st.integers(), st.lists(st.none(), max_size=2))


@given(st.dictionaries(_FIELDS, _VALUES))
def test_no_log_line_raises_an_exception(changes: dict[str, Any]) -> None:
    """Whatever stands in the fields."""
    assert parse_line(_line(**changes)) is None or isinstance(parse_line(_line(**changes)), Scrape)


def test_labels_are_those_of_discovery() -> None:
    """Address, path, namespace, workload and identity; a reason from the catalogue."""
    counters = _counted(_line(status=503, flags="UF", refusal="expired-certificate", connection=0))
    text = render(counters, Discovery([]), ProxyFigures(), {"a": 5.0}).decode()
    assert (
        'meshscrape_scrape_refusals_total{reason="expired-certificate",target="10.0.0.1:15092",path="/metrics",'
        'namespace="b",workload="w",spiffe_id="spiffe://a/ns/b/sa/c"} 1'
    ) in text
    assert 'meshscrape_scrape_proxy_certificate_expiration_timestamp_seconds{trust_domain="a"} 5' in text
