"""Formats: what is answered, what is asked for, what is believed."""

from __future__ import annotations

import pytest

from meshscrape.exposition.negotiate import Format, accept_header, choose, content_type, declared_format
from support.accept_headers import (
    PROMETHEUS_2,
    PROMETHEUS_2_NATIVE,
    PROMETHEUS_3,
    PROMETHEUS_3_NATIVE,
    PROTOBUF,
    VMAGENT,
)

SCRAPERS = {
    "Prometheus 2.42": (PROMETHEUS_2, Format.TEXT),
    "Prometheus 2.42, native histograms": (PROMETHEUS_2_NATIVE, Format.PROTOBUF),
    "Prometheus 3": (PROMETHEUS_3, Format.TEXT),
    "Prometheus 3, native histograms": (PROMETHEUS_3_NATIVE, Format.PROTOBUF),
    "vmagent": (VMAGENT, Format.TEXT),
    "text preferred": (f"text/plain;version=0.0.4,{PROTOBUF};q=0.5", Format.TEXT),
    "protobuf after OpenMetrics": (f"application/openmetrics-text;q=0.9,{PROTOBUF};q=0.5", Format.PROTOBUF),
    "protobuf refused": (f"{PROTOBUF};q=0", Format.TEXT),
    "protobuf in its text form": (PROTOBUF.replace("delimited", "text"), Format.TEXT),
    "protobuf of another message": (PROTOBUF.replace("MetricFamily", "Other"), Format.TEXT),
    "another type with protobuf's parameters": (PROTOBUF.replace("google", "other"), Format.TEXT),
    "both alike": (f"text/plain,{PROTOBUF}", Format.PROTOBUF),
    "any text preferred": (f"text/*,{PROTOBUF};q=0.5", Format.TEXT),
    "anything preferred": (f"*/*,{PROTOBUF};q=0.5", Format.TEXT),
    "anything": ("*/*", Format.TEXT),
    "nothing": (None, Format.TEXT),
    "empty": ("", Format.TEXT),
    "garbage": (";;q=,\x00", Format.TEXT),
}


@pytest.mark.parametrize("scraper", SCRAPERS)
def test_protobuf_is_only_for_scrapers_that_prefer_it(scraper: str) -> None:
    """Who does not ask for protobuf, or likes text better, gets text."""
    accept, expected = SCRAPERS[scraper]
    assert choose(accept) is expected


def test_exact_content_types() -> None:
    """Prometheus 3 refuses a scrape without a valid Content-Type: these two are exact."""
    assert content_type(Format.TEXT) == "text/plain; version=0.0.4; charset=utf-8"
    assert content_type(Format.PROTOBUF) == (
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
    )


def test_sources_are_asked_for_what_can_be_merged() -> None:
    """Envoy answers protobuf whenever it is offered, so text asks for text alone; never for OpenMetrics."""
    assert accept_header(Format.TEXT) == "text/plain;version=0.0.4"
    assert accept_header(Format.PROTOBUF) == f"{PROTOBUF},text/plain;version=0.0.4;q=0.5"


@pytest.mark.parametrize(
    ("declared", "expected", "certain"),
    [
        ("", Format.TEXT, True),
        ("text/plain", Format.TEXT, True),
        ("text/plain; charset=UTF-8", Format.TEXT, True),
        ("text/plain;charset=ISO-8859-1", Format.TEXT, True),
        ('Text/Plain;version="0.0.4"', Format.TEXT, True),
        ("text/html; charset=utf-8", Format.TEXT, False),
        ("application/json", Format.TEXT, False),
        ("application/octet-stream", Format.TEXT, False),
        (f"{PROTOBUF}; escaping=underscores", Format.PROTOBUF, True),
        (PROTOBUF, Format.PROTOBUF, True),
        ("application/vnd.google.protobuf", None, True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format.TEXT, True),
        ("application/openmetrics-text", Format.TEXT, True),
        ("application/openmetrics-text; version=2.0.0", None, True),
        ("text/plain; version=0.0.3", None, True),
        ("text/plain; version=X0.0.4", None, True),
        ("text/plain; charset=utf-16", None, True),
        ("text/html; charset=utf-16", None, True),
        ("application/xml", None, True),
        ("garbage", None, True),
    ],
)
def test_content_type_of_a_source_decides_its_format(
    declared: str, expected: Format | None, certain: bool
) -> None:
    """Known types are believed, careless ones must prove to be expositions, others are refused."""
    found = declared_format(declared)
    assert (None if found is None else found.format) is expected
    assert found is None or found.certain is certain
    assert found is None or found.openmetrics is declared.startswith("application/openmetrics-text")
