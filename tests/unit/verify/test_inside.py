"""Verifiers in pods: what they are told about the mesh, and how their reports become one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from meshscrape.errors import InputError
from meshscrape.observe import observe
from meshscrape.observe.observation import Observation
from meshscrape.verify import judges
from meshscrape.verify.check import JudgeOne
from meshscrape.verify.findings import CheckResult, Outcome, Report
from meshscrape.verify.html.picture import picture
from meshscrape.verify.inside import (
    SCRAPER_CHECKS,
    STRANGER_CHECKS,
    Verifier,
    VerifierFiles,
    join,
    mesh_document,
    ports_to_try,
    scraper_among,
    untried,
)
from meshscrape.verify.mesh_status import parse_mesh
from meshscrape.verify.observations import Answered, ConnectionRefused, TimedOut, describe
from meshscrape.verify.ports import announced_ports
from meshscrape.verify.registry import CHECKS
from support.objects import cluster, control_plane, deployment, injected_namespace, pod_of, proxy_config
from support.scraping_objects import prometheus, secure_job

SECURE = {"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}
CLOSED = {"METRICS_LOCALHOST_ACCESS_ONLY": "true"}
FILES = VerifierFiles("istiod.istio-system.svc:15012", "/roots/root-cert.pem", "/token/istio-token")
SCRAPER = Verifier("istio-system", "prometheus", SCRAPER_CHECKS)
STRANGER = Verifier("default", "stranger", STRANGER_CHECKS)
TARGET = "10.0.0.7:15092"


def mesh(**settings: str) -> Observation:
    """A workload with a secure port, its running pod, and a Prometheus that reads it."""
    web = deployment("web", annotations=proxy_config({**SECURE, **settings}))
    return observe(
        cluster(
            control_plane(),
            injected_namespace(),
            web,
            pod_of(web, variables={**SECURE, **settings}, name="web-1"),
            prometheus(secure_job()),
        )
    )


def bootstrap(observation: Observation) -> Observation:
    """The same workloads, as if bootstrap mode had opened their ports."""
    workloads = tuple(
        replace(each, metrics=replace(each.metrics, mode="bootstrap")) if each.metrics.listening else each
        for each in observation.workloads
    )
    return replace(observation, workloads=workloads)


def result(check: str, outcome: Outcome, seen: str = "seen", target: str = TARGET) -> CheckResult:
    return CheckResult(check, "default/web", target, outcome, seen, "expected", "remedy")


def report(*results: CheckResult) -> Report:
    return Report(results, "spiffe://cluster.local/ns/a/sa/b", datetime(2030, 1, 1, tzinfo=UTC), 1.0)


def joined(observation: Observation, scraper: Report, stranger: Report) -> dict[str, CheckResult]:
    """The joined results by check."""
    return {each.check: each for each in join(observation, scraper, stranger, "outside")}


def test_verifier_gets_a_document_with_every_pod_and_its_own_token() -> None:
    parsed = parse_mesh(mesh_document(mesh(), STRANGER, FILES))
    own, web = parsed.workloads
    assert (own.title, own.token, str(own.spiffe_id)) == (
        "default/stranger",
        FILES.token,
        "spiffe://cluster.local/ns/default/sa/stranger",
    )
    assert (web.title, web.addresses, web.secure_merged) == ("default/web", ("10.0.0.7",), 15092)
    assert parsed.prometheus_workload == own.title
    assert parsed.ca_root == FILES.roots


@pytest.mark.parametrize(("settings", "plaintext"), [({}, set()), (CLOSED, {15020, 15090})])
def test_plaintext_ports_are_visited_where_they_must_be_closed(
    settings: dict[str, str], plaintext: set[int]
) -> None:
    """As the scraper, who tries paths and methods. A stranger only looks whether they are open."""
    for verifier, numbers in ((SCRAPER, plaintext), (STRANGER, {15020, 15090})):
        ports = announced_ports(parse_mesh(mesh_document(mesh(**settings), verifier, FILES)))
        assert {port.number for port in ports if port.role in ("stats", "merged")} == numbers


def test_allow_list_decides_whether_the_stranger_is_a_neighbour() -> None:
    """Native mode admits every workload of the mesh, so that nobody is left to be refused."""
    for seen, neighbour in ((mesh(), ""), (bootstrap(mesh()), STRANGER.title)):
        ports = announced_ports(parse_mesh(mesh_document(seen, STRANGER, FILES)))
        assert [port.neighbour for port in ports if port.is_secure] == [neighbour]


def test_declared_ports_and_the_admin_port_are_tried() -> None:
    assert ports_to_try(mesh()) == (15000, 8080)


def test_declared_ports_beyond_the_most_are_a_finding() -> None:
    """A port that was not tried must not count as closed."""
    seen = mesh()
    (web,) = (each for each in seen.workloads if each.name == "web")
    (declared,) = web.container_ports
    many = replace(web, container_ports=tuple(replace(declared, number=number) for number in range(1, 70)))
    assert list(untried(seen)) == []
    (left,) = untried(replace(seen, workloads=(many,)))
    assert left.outcome == "skipped"
    assert left.seen == "not tried: 6 declared ports (64, 65, 66, 67, 68, …)"


def test_two_kinds_of_one_name_are_told_apart_by_the_address() -> None:
    """A hole in the allow list of one is not excused by the other's mode."""
    seen = mesh()
    (web,) = (each for each in seen.workloads if each.name == "web")
    limited = next(each for each in bootstrap(seen).workloads if each.name == "web")
    (pod,) = web.running
    native = replace(
        web,
        ref=replace(web.ref, kind="StatefulSet"),
        running=(replace(pod, ref=replace(pod.ref, name="web-0"), ip="10.0.0.8"),),
    )
    for workloads in ((limited, native), (native, limited)):
        both = replace(seen, workloads=workloads)
        stranger = report(
            result("unlisted-workload", "failed"),
            result("unlisted-workload", "failed", target="10.0.0.8:15092"),
        )
        found = {each.target: each.outcome for each in join(both, report(), stranger, "outside")}
        assert found == {"web-1:15092": "failed", "web-0:15092": "noted"}


def test_scraper_is_one_that_reads_a_secure_port() -> None:
    seen = mesh()
    assert scraper_among(seen, "").service_account == "prometheus"
    assert scraper_among(seen, "istio-system/prometheus").name == "prometheus"
    with pytest.raises(InputError, match="there are: istio-system/prometheus"):
        scraper_among(seen, "default/nobody")
    with pytest.raises(InputError, match="no scraper reads a secure port"):
        scraper_among(replace(seen, scrape_jobs=()), "")


def test_worse_of_two_results_stays() -> None:
    for first, second in (("passed", "failed"), ("failed", "passed")):
        one = report(result("plain-http", first, f"{first} here"))  # type: ignore[arg-type]
        other = report(result("plain-http", second, f"{second} here"))  # type: ignore[arg-type]
        found = joined(mesh(), one, other)["plain-http"]
        assert (found.outcome, found.seen, found.target, found.cases) == (
            "failed", "failed here", "web-1:15092", 2,
        )  # fmt: skip


def test_network_that_keeps_the_stranger_out_is_a_refusal() -> None:
    """Only where the same port admits the scraper. Otherwise nothing shows that the port works."""
    for seen in (TimedOut("connect"), ConnectionRefused()):
        stranger = report(result("plain-http", "skipped", f"could not be checked: {describe(seen)}"))
        alive = joined(mesh(), report(result("scraper-admitted", "passed")), stranger)["plain-http"]
        assert alive.outcome == "passed"
        assert alive.seen == f"not reachable from namespace outside: {describe(seen)}"
        dead = joined(mesh(), report(result("scraper-admitted", "failed")), stranger)["plain-http"]
        assert dead.outcome == "skipped"


def test_handshake_without_an_answer_is_no_refusal() -> None:
    seen = f"could not be checked: {describe(TimedOut('handshake'))}"
    found = joined(
        mesh(),
        report(result("scraper-admitted", "passed")),
        report(result("plain-http", "skipped", seen)),
    )
    assert found["plain-http"].outcome == "skipped"


def test_missing_allow_list_of_native_mode_is_a_note() -> None:
    stranger = report(result("unlisted-workload", "skipped"))
    assert joined(mesh(), report(), stranger)["unlisted-workload"].outcome == "noted"
    assert joined(bootstrap(mesh()), report(), stranger)["unlisted-workload"].outcome == "skipped"


def test_results_about_verifiers_themselves_are_left_out() -> None:
    own = replace(result("exposed-metrics", "passed"), workload=STRANGER.title)
    assert joined(mesh(), report(), report(own)) == {}


def test_checks_of_verifiers_are_registered() -> None:
    assert {*SCRAPER_CHECKS, *STRANGER_CHECKS} <= set(CHECKS)


def test_picture_has_the_results_at_the_ports_of_the_pods() -> None:
    """Also what is noted, in its own words."""
    seen = mesh()
    scraper = report(result("scraper-admitted", "passed"))
    stranger = report(result("no-certificate", "passed"))
    for noted, said in (((), "refused"), ((result("paths", "noted"),), "noted: paths")):
        results = tuple(join(seen, scraper, replace(stranger, checks=(*stranger.checks, *noted)), "outside"))
        shown = parse_mesh(mesh_document(seen, SCRAPER, by_name=True, scrape_proxy="http://127.0.0.1:15094"))
        drawn = str(picture(replace(report(*results), mesh=shown), shown))
        assert "scraped (1 check)" in drawn
        assert "mutual TLS, identity checked" in drawn
        assert said in drawn
        assert "open to every client" not in drawn


METRICS = b"# TYPE up gauge\nup 1\n"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def answer(status: int = 200, body: bytes = METRICS, *, resumed: bool = False) -> Answered:
    return Answered(status, (), body, "whole", resumed)


@pytest.mark.parametrize(
    ("judge", "seen", "native", "ours"),
    [
        (judges.path_refused, answer(307, b""), "passed", "failed"),
        (judges.path_refused, answer(), "noted", "noted"),
        (judges.path_refused, answer(200, b'{"version": "1"}'), "failed", "failed"),
        (judges.method_refused, answer(), "noted", "failed"),
        (judges.method_refused, answer(200, b"OK"), "failed", "failed"),
        (judges.method_refused, answer(405, b""), "passed", "passed"),
        (judges.not_resumed, answer(resumed=True), "noted", "failed"),
    ],
)  # fmt: skip
def test_what_istio_does_differently_is_no_finding_but_content_is(
    judge: JudgeOne, seen: Answered, native: Outcome, ours: Outcome
) -> None:
    """Redirects, any method and resumption are Istio's. In bootstrap mode the listeners are ours."""
    for observation, expected in ((mesh(), native), (bootstrap(mesh()), ours)):
        ports = announced_ports(parse_mesh(mesh_document(observation)))
        (port,) = (each for each in ports if each.is_secure)
        assert judge(seen, port, NOW).outcome == expected


def test_agent_that_answers_its_own_pod_only_is_closed() -> None:
    ports = {each.role: each for each in announced_ports(parse_mesh(mesh_document(mesh(**CLOSED))))}
    assert judges.closed(answer(403, b""), ports["merged"], NOW).outcome == "passed"
    assert judges.closed(answer(403, b""), ports["stats"], NOW).outcome == "failed"
    assert judges.closed(answer(), ports["merged"], NOW).outcome == "failed"


def test_port_of_another_workload_is_shown_only_if_it_serves_something() -> None:
    for outcome, shown in (("passed", []), ("failed", ["exposed-metrics"])):
        stranger = report(result("exposed-metrics", outcome, target="10.0.0.7:9999"))  # type: ignore[arg-type]
        assert list(joined(mesh(), report(), stranger)) == shown
