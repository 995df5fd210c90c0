"""The agent's own families, in both formats."""

from __future__ import annotations

from meshscrape.exposition.health import (
    Family,
    SourceHealth,
    health_families,
    health_names,
    render_families,
)
from meshscrape.exposition.negotiate import Format
from support.expositions import openmetrics_series, text_series

SICK = SourceHealth("application:9080", False, 0.25, 12, 3, 4, 5)


def test_health_says_everything() -> None:
    """Each source's state, duration, size and counters are series with the source as label."""
    body = render_families(health_families([SICK]))
    label = (("source", "application:9080"),)
    assert {name: value for name, labels, value in text_series(body) if labels == label} == {
        "meshscrape_source_up": "0.0",
        "meshscrape_source_scrape_duration_seconds": "0.25",
        "meshscrape_source_bytes": "12.0",
        "meshscrape_source_dropped_families_total": "3.0",
        "meshscrape_source_malformed_lines_total": "4.0",
        "meshscrape_source_truncations_total": "5.0",
    }
    assert b'meshscrape_source_up{source="application:9080"} 0\n' in body


def test_reserved_names_are_the_rendered_ones() -> None:
    """Every family of the health is reserved, so that no application can pretend to be healthy."""
    assert [name.decode() for name, _ in health_names()] == [f.name for f in health_families([])]


def test_both_formats_are_valid() -> None:
    """Quotes, backslashes and line feeds in labels and help, infinities: both parsers read them back."""
    odd = Family("odd_total", "counter", 'a "b" \\ \n', [({"x": 'q"\\\n'}, 2.5), ({}, float("inf"))])
    families = [odd, *health_families([SICK])]
    text = text_series(render_families(families))
    openmetrics = openmetrics_series(render_families(families, Format.OPENMETRICS) + b"# EOF\n")
    assert sorted(text) == sorted(openmetrics)
    assert ("odd_total", (("x", 'q"\\\n'),), "2.5") in text


def test_a_family_without_samples_is_not_rendered() -> None:
    """No sources, no lines."""
    assert render_families(health_families([])) == b""
