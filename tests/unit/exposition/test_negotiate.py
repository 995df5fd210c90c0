"""Formats: what is answered, what is asked for, what is believed."""

from __future__ import annotations

import pytest

from meshscrape.exposition.negotiate import Format, accept_header, choose, content_type, source_format

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    "accept", [PROMETHEUS_2, PROMETHEUS_3, None, "", "*/*", "text/plain", ";;q=,", "\x00"]
)
def test_text_is_the_default(accept: str | None) -> None:
    """A workload that did not opt in to OpenMetrics answers text to every scraper, whatever it accepts."""
    assert choose(accept, allow_openmetrics=False) is Format.TEXT


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_2, Format.OPENMETRICS),
        (PROMETHEUS_3, Format.OPENMETRICS),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("application/openmetrics-text;version=2.0.0,text/plain", Format.TEXT),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.8", Format.TEXT),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=lots", Format.TEXT),
        ("application/vnd.google.protobuf;q=1,text/plain;q=0.1", Format.TEXT),
        (None, Format.TEXT),
    ],
)
def test_openmetrics_where_preferred(accept: str | None, expected: Format) -> None:
    """A workload that opted in answers what the scraper prefers of the two formats."""
    assert choose(accept, allow_openmetrics=True) is expected


def test_exact_content_types() -> None:
    """Prometheus 3 refuses a scrape without a valid Content-Type: these two are exact."""
    assert content_type(Format.TEXT) == "text/plain; version=0.0.4; charset=utf-8"
    assert content_type(Format.OPENMETRICS) == "application/openmetrics-text; version=1.0.0; charset=utf-8"


def test_never_asks_for_protobuf() -> None:
    """Envoy answers protobuf when it is offered, so no source is offered it; text asks for text alone."""
    assert accept_header(Format.TEXT) == "text/plain;version=0.0.4"
    assert "protobuf" not in accept_header(Format.OPENMETRICS)
    assert "*" not in accept_header(Format.OPENMETRICS)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("", Format.TEXT),
        ("text/plain", Format.TEXT),
        ("text/plain; charset=UTF-8", Format.TEXT),
        ('Text/Plain;version="0.0.4"', Format.TEXT),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format.OPENMETRICS),
        ("text/html; charset=utf-8", None),
        ("application/json", None),
        ("text/plain; version=0.0.3", None),
        ("text/plain; charset=utf-16", None),
        ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily", None),
        ("garbage", None),
    ],
)
def test_what_a_source_says_it_is(declared: str, expected: Format | None) -> None:
    """Only what declares itself an exposition in a known format (or nothing at all) is one."""
    assert source_format(declared) is expected
