"""Who has to follow a rotation, read from a status document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meshscrape.ca.roots_in_use import RootUser
from meshscrape.cli.ca_rotate import root_users


def workload(name: str, **changes: Any) -> dict[str, Any]:
    """An entry as docs/status.md has it, as far as it matters here."""
    entry = {
        "namespace": "demo",
        "name": name,
        "credentials": f"/run/{name}/credentials",
        "outputCertificates": None,
        "adminSocket": f"/run/{name}/admin.sock",
        "pids": {"agent": 1, "envoy": 2, "application": [3]},
    }
    return entry | changes


def test_every_envoy_and_every_directory_follows() -> None:
    """Sidecars by admin socket and credentials, scrapers by what they read, the scrape proxy by its Envoy."""
    prometheus = workload("prometheus", adminSocket=None, outputCertificates="/run/prometheus/output")
    document = {
        "workloads": [workload("web"), prometheus],
        "scrapeProxy": {"adminSocket": "/run/proxy/admin.sock"},
    }
    assert root_users(document) == [
        RootUser("demo/web", Path("/run/web/admin.sock"), (Path("/run/web/credentials"),)),
        RootUser(
            "demo/prometheus", None, (Path("/run/prometheus/credentials"), Path("/run/prometheus/output"))
        ),
        RootUser("scrape proxy", Path("/run/proxy/admin.sock")),
    ]
    direct = {"workloads": [], "scrapeProxy": None}
    assert root_users(direct) == root_users({"workloads": []}) == []


def test_only_workloads_without_processes_are_left_out() -> None:
    """Whatever still runs may still use a certificate, a scraper without its agent most of all."""
    gone = {"agent": None, "envoy": None, "application": []}
    alone = workload("alone", pids=gone | {"application": [7]})
    starting = workload("starting", pids=gone | {"agent": 8})
    found = root_users({"workloads": [workload("gone", pids=gone), alone, starting]})
    assert [each.who for each in found] == ["demo/alone", "demo/starting"]
