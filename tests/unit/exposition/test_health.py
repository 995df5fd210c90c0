"""The agent's own families as text."""

from __future__ import annotations

import pytest

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


def test_healthy_source_has_no_problem() -> None:
    """The problem is a series of a source that is down only."""
    body = render_families(health_families([SourceHealth("envoy", True, 1, 1, 1, 0, 0, 0)]))
    assert b'meshscrape_source_up{source="envoy"} 1\n' in body
    assert b"meshscrape_source_problem_info" not in body


def test_reserved_names_are_the_rendered_ones() -> None:
    """Every family of the health is reserved, so that no application can pretend to be healthy."""
    rendered = [(family.name.encode(), family.kind.encode()) for family in health_families([])]
    assert health_names() == rendered


def test_odd_characters_are_read_back() -> None:
    """Another parser reads quotes, backslashes and line feeds in labels and help, and infinities."""
    odd = Family("odd_total", "counter", 'a "b" \\ \n', [({"x": 'q"\\\n'}, 2.5), ({}, float("inf"))])
    families = [odd, *health_families([SICK])]
    text = text_series(render_families(families))
    assert ("odd_total", (("x", 'q"\\\n'),), "2.5") in text


def test_a_family_without_samples_is_not_rendered() -> None:
    """No sources, no lines."""
    assert render_families(health_families([])) == b""


def test_families_behind_one_without_samples_are_rendered() -> None:
    """Labels may be rendered already, or none."""
    families = [
        Family("none", "gauge", "", []),
        Family("a", "gauge", "A.", [("", 1), ('{x="1"}', 2)]),
    ]
    assert render_families(families) == b'# HELP a A.\n# TYPE a gauge\na 1\na{x="1"} 2\n'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3"),
        (-0.5, "-0.5"),
        (1e300, "1e+300"),
        (float("nan"), "NaN"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
    ],
)
def test_numbers_are_written_as_prometheus_writes_them(value: float, text: str) -> None:
    """Whole ones without a point."""
    assert render_families([Family("a", "gauge", "", [({}, value)])]).decode().endswith(f"\na {text}\n")
