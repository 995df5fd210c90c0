"""Which checks each port of a mesh gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from meshscrape.istio.names import MERGED_PATH
from meshscrape.verify.check import PlannedCheck, plan
from meshscrape.verify.mesh_status import parse_mesh
from meshscrape.verify.ports import announced_ports
from meshscrape.verify.registry import PORT_CHECKS
from meshscrape.verify.spellings import OTHER_METHODS, other_paths, other_targets
from support.status import sidecar, status, workload

SECURE = {
    "scraper-admitted", "content-type", "exposition", "families", "server-certificate", "plain-http",
    "no-certificate", "other-ca", "expired-certificate", "session-resumption", "unlisted-workload",
    "legacy-tls", "silent-connection", "paths", "methods",
}  # fmt: skip
MUTUAL_TLS = {
    "server-certificate", "no-certificate", "other-ca", "expired-certificate", "session-resumption",
    "legacy-tls", "silent-connection",
}  # fmt: skip


def planned(*workloads: dict[str, Any]) -> Sequence[PlannedCheck]:
    return tuple(plan(announced_ports(parse_mesh(status(*workloads))), PORT_CHECKS))


def names(plan: Sequence[PlannedCheck], target: str) -> set[str]:
    return {each.check.name for each in plan if each.target == target}


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
        ("STRICT", MUTUAL_TLS | {"application-metrics", "plain-http"}),
        ("PERMISSIVE", MUTUAL_TLS | {"application-metrics"}),
        ("DISABLE", set()),
    ],
)
def test_application_ports_get_the_checks_of_their_mode(mtls: str, expected: set[str]) -> None:
    """STRICT refuses plaintext, PERMISSIVE takes both, DISABLE promises nothing."""
    application = [{"name": "http", "port": 9080, "mtls": mtls, "metrics": "/metrics"}]
    everything = planned(sidecar(ports={"application": application}))
    assert names(everything, "127.9.1.1:9080") == expected


def test_port_of_a_gateway_gets_no_checks_of_mutual_tls() -> None:
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
    check = next(each for each in planned(*entries) if each.check.name == "unlisted-workload")
    assert check.cases[0].probe.identity.workload == "default/other"


def test_without_an_unlisted_workload_the_check_says_so() -> None:
    """When everyone is allowed the check cannot be made, and does not vanish."""
    everything = planned(sidecar(scrapers=["spiffe:spiffe://cluster.local/*"]))
    check = next(each for each in everything if each.check.name == "unlisted-workload")
    assert not check.cases
    assert check.decided is not None
    assert check.decided.outcome == "skipped"


def test_the_admin_api_is_looked_for_outside_and_inside() -> None:
    """Port 15000 of the pod addresses and of the inside address."""
    closed = {each.target for each in planned(sidecar()) if each.check.name == "admin-closed"}
    assert closed == {"127.9.1.1:15000", "127.9.2.1:15000"}


def test_every_planned_check_has_a_case_or_a_verdict() -> None:
    """A check that would judge nothing cannot pass."""
    for each in planned(sidecar(), workload("default", "other")):
        assert bool(each.cases) != (each.decided is not None)


def test_declared_application_metrics_must_be_merged() -> None:
    """The merged port owes a source for every application port that declares metrics."""
    sources = next(each for each in planned(sidecar()) if each.check.name == "sources")
    assert sources.port.sources == ("application:9080",)


TARGET = "http://127.9.1.1:15092/stats/prometheus"
PROXY = {"address": "http://127.9.2.9:15094", "tokenFile": "/run/token"}


def of_proxy(token: str, announced: str = TARGET) -> dict[str, PlannedCheck]:
    targets = [{"url": announced}] if announced else []
    mesh = parse_mesh(status(sidecar(targets=targets), scrapeProxy=PROXY))
    checks = plan(announced_ports(mesh, token), PORT_CHECKS)
    return {each.check.name: each for each in checks if each.target == "127.9.2.9:15094"}


def test_the_scrape_proxy_is_asked_with_and_without_its_token() -> None:
    """Without the token for a target that it knows; with it for everything else."""
    found = of_proxy("secret")
    assert set(found) == {"proxy-token", "paths", "methods"}
    without = {case.probe.headers for case in found["proxy-token"].cases}
    assert (("Authorization", "Bearer secret"),) not in without
    assert {case.probe.path for case in found["proxy-token"].cases} == {TARGET}
    for case in (*found["paths"].cases, *found["methods"].cases):
        assert case.probe.headers == (("Authorization", "Bearer secret"),)
        assert (case.probe.method, case.probe.path) != ("GET", TARGET)


@pytest.mark.parametrize(("token", "announced"), [("", TARGET), ("secret", "")])
def test_a_scrape_proxy_that_cannot_be_asked_is_a_finding(token: str, announced: str) -> None:
    """Without its token, or without a target to ask for, nothing would be proven."""
    (only,) = of_proxy(token, announced).values()
    assert only.decided is not None
    assert only.decided.outcome == "skipped"


def test_no_spelling_leads_the_proxy_to_the_target_itself() -> None:
    """What must be refused is never the known target in another spelling that a client may use."""
    spelled = other_targets(TARGET)
    assert len(set(spelled)) == len(spelled)
    assert TARGET not in spelled


def test_spellings_cover_the_advisories_of_2026() -> None:
    """Path parameters in segments and dot segments, fragments, and bytes that are not UTF-8."""
    spelled = other_paths(MERGED_PATH, "127.9.1.1:15091")
    for part in (
        ";a=b/server_info",
        "/..;a=b/",
        "server_info;a=b",
        "#/../../server_info",
        "\xff",
        "\xc0\xaf",
    ):
        assert any(part in each for each in spelled), part
    assert any(not method.isascii() for method in OTHER_METHODS)


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
