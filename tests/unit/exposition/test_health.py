"""The agent's own families as text."""

from __future__ import annotations

from meshscrape.exposition.health import (
    Family,
    SourceHealth,
    health_families,
    health_names,
    render_families,
)
from support.expositions import text_series

SICK = SourceHealth(
    "application:9080",
    False,
    0.25,
    12,
    2,
    3,
    4,
    5,
    hidden={"envoy": 2, "limit": 1},
    hidden_names=[("a_total", "envoy")],
    problem="answered with status 500",
)


def test_health_has_every_family() -> None:
    """Each source's state, duration, size and counters are series with the source as label."""
    body = render_families(health_families([SICK]))
    label = (("source", "application:9080"),)
    assert {name: value for name, labels, value in text_series(body) if labels == label} == {
        "meshscrape_source_up": "0.0",
        "meshscrape_source_scrape_duration_seconds": "0.25",
        "meshscrape_source_bytes": "12.0",
        "meshscrape_source_series": "2.0",
        "meshscrape_source_dropped_families_total": "3.0",
        "meshscrape_source_malformed_lines_total": "4.0",
        "meshscrape_source_truncations_total": "5.0",
    }
    assert b'meshscrape_source_up{source="application:9080"} 0\n' in body


def test_health_names_what_is_hidden_and_why() -> None:
    """Whose names hide families, the first of these families, the format and the problem are labels."""
    body = render_families(health_families([SICK]))
    for line in (
        b'meshscrape_source_hidden_families{source="application:9080",by="envoy"} 2\n',
        b'meshscrape_source_hidden_families{source="application:9080",by="limit"} 1\n',
        b'meshscrape_source_hidden_family_info{source="application:9080",family="a_total",by="envoy"} 1\n',
        b'meshscrape_source_format{source="application:9080",format="text"} 1\n',
        b'meshscrape_source_problem_info{source="application:9080",problem="answered with status 500"} 1\n',
    ):
        assert line in body


def test_reserved_names_are_the_rendered_ones() -> None:
    """Every family of the health is reserved, so that no application can pretend to be healthy."""
    assert [name.decode() for name, _ in health_names()] == [f.name for f in health_families([])]


def test_odd_characters_are_read_back() -> None:
    """Another parser reads quotes, backslashes and line feeds in labels and help, and infinities."""
    odd = Family("odd_total", "counter", 'a "b" \\ \n', [({"x": 'q"\\\n'}, 2.5), ({}, float("inf"))])
    families = [odd, *health_families([SICK])]
    text = text_series(render_families(families))
    assert ("odd_total", (("x", 'q"\\\n'),), "2.5") in text


def test_a_family_without_samples_is_not_rendered() -> None:
    """No sources, no lines."""
    assert render_families(health_families([])) == b""
