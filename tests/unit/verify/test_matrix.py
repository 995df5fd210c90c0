"""Which probes a mesh needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from meshscrape.istio.names import MERGED_PATH
from meshscrape.verify import checks
from meshscrape.verify.matrix import PlannedCheck, other_paths, plan
from meshscrape.verify.mesh_status import parse_mesh
from support.status import PROMETHEUS, sidecar, status, workload

SECURE = {
    "scraper-admitted", "content-type", "exposition", "families", "server-certificate", "plain-http",
    "no-certificate", "other-ca", "expired-certificate", "session-resumption", "unlisted-workload",
    "legacy-tls", "paths", "methods",
}  # fmt: skip


def planned(*workloads: dict[str, Any]) -> Sequence[PlannedCheck]:
    mesh = parse_mesh(status(*workloads))
    return plan(mesh, mesh.workload(PROMETHEUS))


def names(plan: Sequence[PlannedCheck], target: str) -> set[str]:
    return {each.check for each in plan if each.target == target}


def test_every_secure_port_gets_every_check() -> None:
    """Statistics and merged port alike; the merged one's sources besides."""
    everything = planned(sidecar())
    assert names(everything, "127.9.1.1:15091") == SECURE
    assert names(everything, "127.9.1.1:15092") == SECURE | {"sources"}


def test_every_pod_address_is_visited() -> None:
    """A dual-stack workload is checked on both, the IPv6 one in brackets."""
    everything = planned(sidecar(addresses=["127.9.1.1", "::1"]))
    assert names(everything, "[::1]:15092") == names(everything, "127.9.1.1:15092")


def test_hardening_turns_the_note_into_a_check() -> None:
    """Plaintext ports are told of when promised open, and must be shut when promised shut."""
    assert names(planned(sidecar()), "127.9.1.1:15090") == {"plaintext-open", "paths", "methods"}
    assert names(planned(sidecar(hardened=True)), "127.9.1.1:15090") == {"plaintext-closed"}
    assert names(planned(sidecar(hardened=True)), "127.9.1.1:15020") == {"plaintext-closed"}


@pytest.mark.parametrize(
    ("mtls", "expected"),
    [
        (
            "STRICT",
            {"application-metrics", "server-certificate", "plain-http", "no-certificate", "legacy-tls"},
        ),
        ("PERMISSIVE", {"application-metrics", "server-certificate"}),
        ("DISABLE", set()),
    ],
)
def test_application_ports_owe_what_their_mode_promises(mtls: str, expected: set[str]) -> None:
    """STRICT refuses plaintext, PERMISSIVE takes both, DISABLE promises nothing."""
    application = [{"name": "http", "port": 9080, "mtls": mtls, "metrics": "/metrics"}]
    everything = planned(sidecar(ports={"application": application}))
    assert names(everything, "127.9.1.1:9080") == expected


def test_a_gateways_own_port_is_for_the_outside() -> None:
    """No mutual TLS is expected of a gateway's traffic port; its metrics ports owe everything."""
    everything = planned(sidecar(kind="gateway"))
    assert names(everything, "127.9.1.1:9080") == set()
    assert names(everything, "127.9.1.1:15091") == SECURE


def test_workloads_without_envoy_have_nothing_to_visit() -> None:
    """Credentials alone open no port."""
    assert planned(workload("default", "other")) == ()


def test_the_unlisted_workload_is_a_neighbour_that_may_not_scrape() -> None:
    """Another workload is preferred; one that is on the list is never taken."""
    entries = [sidecar(), workload("default", "other")]
    check = next(each for each in planned(*entries) if each.check == "unlisted-workload")
    assert check.cases[0].probe.identity.workload == "default/other"


def test_without_an_unlisted_workload_the_check_says_so() -> None:
    """When everyone is allowed the check cannot be made, and does not vanish."""
    everything = planned(sidecar(scrapers=["spiffe:spiffe://cluster.local/*"]))
    check = next(each for each in everything if each.check == "unlisted-workload")
    assert not check.cases
    assert "allow list" in check.expectation.unable


def test_the_admin_api_is_looked_for_outside_and_inside() -> None:
    """Port 15000 of the pod addresses and of the inside address."""
    closed = {each.target for each in planned(sidecar()) if each.check == "admin-closed"}
    assert closed == {"127.9.1.1:15000", "127.9.2.1:15000"}


def test_every_planned_check_is_defined_and_has_a_case_or_a_reason() -> None:
    """A check that would judge nothing cannot pass."""
    for each in planned(sidecar(), workload("default", "other")):
        assert each.check in checks.CHECKS
        assert bool(each.cases) != bool(each.expectation.unable)


def test_declared_application_metrics_must_be_merged() -> None:
    """The merged port owes a source for every application port that declares metrics."""
    sources = next(each for each in planned(sidecar()) if each.check == "sources")
    assert sources.expectation.sources == ("application:9080",)


def test_no_spelling_is_the_served_path_itself() -> None:
    """What is asked for to be refused is never what the port may answer, decoded or not."""
    for spelling in other_paths(MERGED_PATH, "127.9.1.1:15091"):
        path = urlsplit(spelling).path if "://" in spelling else spelling
        assert path != MERGED_PATH
        assert unquote(unquote(path)) != MERGED_PATH


def test_probes_change_nothing_where_they_are_let_through() -> None:
    """No probe names an admin page that acts: verification must not harm what it finds open."""
    acting = (
        "quitquitquit",
        "healthcheck",
        "logging",
        "reset_counters",
        "drain",
        "runtime_modify",
        "cpuprofiler",
    )
    for each in planned(sidecar(), workload("default", "other")):
        for case in each.cases:
            assert not any(word in case.probe.path for word in acting)
