"""Readers that a person vouches for, in a file with reason and date."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshscrape.cli.assumptions import read_assumptions
from meshscrape.errors import InputError
from support.objects import cluster, control_plane, deployment, injected_namespace, service
from support.planning import codes, planned, refs, settled
from support.scraping_objects import plain_prometheus

NAME = "DaemonSet.apps datadog/datadog"


def test_hardening_does_not_wait_for_an_assumed_scraper() -> None:
    """Without the assumption it waits for an agent whose jobs the objects do not tell."""
    agent = deployment("datadog", "datadog", kind="DaemonSet")
    agent["spec"]["template"]["spec"]["containers"][0]["image"] = "gcr.io/datadoghq/agent:7"
    objects = cluster(
        control_plane(), injected_namespace(), deployment(), service(), plain_prometheus(), agent
    )
    assert "reader-unknown" in codes(planned(objects))
    plan = settled(objects, assumed_unread=frozenset({NAME}))
    assert "hardening" in {phase for phase, _, _ in refs(plan)}


def test_the_file_names_scrapers(tmp_path: Path) -> None:
    """Each with a reason and a date."""
    path = tmp_path / "unread.yaml"
    path.write_text(f"- {{scraper: {NAME}, reason: reads logs alone, date: 2026-11-29}}\n")
    assert read_assumptions(path) == {NAME}
    assert read_assumptions(None) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        f"- {{scraper: {NAME}, reason: x}}",
        f"- {{scraper: {NAME}, reason: '', date: 2026-11-29}}",
        f"- {{scraper: {NAME}, reason: x, date: soon}}",
        "scraper: x",
        "- x",
        "[",
    ],
)
def test_an_assumption_without_reason_or_date_is_an_error(tmp_path: Path, text: str) -> None:
    """Who vouches must say why and when."""
    path = tmp_path / "unread.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        read_assumptions(path)
