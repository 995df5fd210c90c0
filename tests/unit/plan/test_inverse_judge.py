"""What the judge of a way back says of its predicted result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from meshscrape.kube.objects import Ref
from meshscrape.observe.model import ObservedJob, Over, Pitfall, Severity
from meshscrape.observe.observation import Observation
from meshscrape.plan.inverse.judge import judge_inverse
from support.objects import (
    LOCALHOST_ONLY,
    control_plane,
    deployment,
    injected_namespace,
    observed,
    proxy_config,
)
from support.planning import ref
from support.scraping_objects import plain_prometheus

WEB, SHUT, GONE = (ref("Deployment", name) for name in ("web", "shut", "gone"))
PROMETHEUS, OTHER = (ref("Deployment", "prometheus", place) for place in ("monitoring", "elsewhere"))
MESH = observed(
    control_plane(),
    injected_namespace(),
    deployment("web"),
    deployment("shut", annotations=proxy_config(LOCALHOST_ONLY)),
    plain_prometheus(),
    plain_prometheus(namespace="elsewhere"),
)
ALL = (WEB, SHUT)


def job(
    over: Over,
    *refs: Ref,
    scraper: Ref | None = PROMETHEUS,
    ports: Iterable[int] | None = None,
    now: bool = True,
    later: bool = True,
) -> ObservedJob:
    """A job that reads the metrics ports of workloads, of today's pods or of those that come."""
    read = dict.fromkeys(refs, tuple(ports or ([15092] if over == "mtls" else [15020])))
    return ObservedJob(
        "job", PROMETHEUS, "job", over, refs, (), scraper,
        ports_of=read if now else {}, ports_after=read if later else {},
    )  # fmt: skip


def judged(
    before: Iterable[ObservedJob],
    after: Iterable[ObservedJob],
    *,
    scrapers: bool = True,
    unscraped: bool = False,
) -> dict[Ref, str]:
    """The code of what would be worse for each workload."""
    left = MESH.scrapers if scrapers else ()
    first = replace(MESH, scrape_jobs=tuple(before))
    then = replace(MESH, scrape_jobs=tuple(after), scrapers=left)
    faults = judge_inverse(first, then, unscraped=unscraped)
    assert all(len(missing) == 1 for missing in faults.values())
    return {workload: missing[0].code for workload, missing in faults.items()}


def test_the_mesh_of_these_tests_is_what_they_need() -> None:
    workloads = {workload.ref: (workload.in_mesh, workload.metrics.hardened) for workload in MESH.workloads}
    assert workloads == {
        WEB: (True, False), SHUT: (True, True), PROMETHEUS: (False, False), OTHER: (False, False),
    }  # fmt: skip
    assert {scraper.ref for scraper in MESH.scrapers} == {PROMETHEUS, OTHER}


@pytest.mark.parametrize(("now", "later"), [(True, True), (True, False), (False, True)])
def test_a_workload_that_was_read_must_be_read(now: bool, later: bool) -> None:
    """Whether today's pods are read or only those that come; unless the user gives the scrape up."""
    before = [job("plaintext", WEB), job("mtls", GONE, WEB, SHUT, now=now, later=later)]
    unread = "unread-in-plaintext"
    assert judged(before, []) == {WEB: unread, SHUT: unread}
    assert judged(before, [], unscraped=True) == {}
    assert judged(before, [job("mtls", *ALL)]) == {}
    assert judged(before, [job("mtls", *ALL, later=False)]) == {WEB: unread, SHUT: unread}
    assert judged(before, [job("plaintext", *ALL)]) == {SHUT: "still-closed"}
    assert judged(before, [job("plaintext", *ALL), job("mtls", *ALL)], unscraped=True) == {
        SHUT: "still-closed"
    }
    assert judged(before, [job("plaintext", *ALL, ports=[8080])]) == {WEB: unread, SHUT: unread}
    for over in ("plaintext", "mtls"):
        nothing = replace(job(over, *ALL), ports_after=dict.fromkeys(ALL, ()))
        assert judged(before, [nothing]) == {WEB: unread, SHUT: unread}


def test_a_plaintext_job_may_end() -> None:
    """Meshscrape did not move what it read."""
    assert judged([job("plaintext", WEB)], []) == {}


def test_the_same_scraper_must_go_on() -> None:
    """Only if it is gone, another one will do."""
    before = [job("mtls", WEB)]
    assert judged(before, [job("plaintext", WEB, scraper=OTHER)]) == {WEB: "unread-in-plaintext"}
    assert judged(before, [job("plaintext", WEB, scraper=OTHER)], scrapers=False) == {}
    assert judged(before, [job("plaintext", WEB)]) == {}


def test_what_is_worse_first_is_said() -> None:
    before = [job("mtls", SHUT), job("mtls", SHUT, WEB, scraper=OTHER)]
    after = [job("plaintext", SHUT)]
    assert judged(before, after) == {SHUT: "still-closed", WEB: "unread-in-plaintext"}


def test_a_scraper_that_leaves_the_mesh_does_not_read_its_own_proxy() -> None:
    """It has none any more. Others must still be read, and one that stays in the mesh must be, too."""
    unread = "unread-in-plaintext"
    assert judged([job("mtls", PROMETHEUS, WEB)], []) == {WEB: unread}
    assert judged([job("mtls", PROMETHEUS, scraper=OTHER)], []) == {PROMETHEUS: unread}
    assert judged([job("mtls", WEB, scraper=WEB)], []) == {WEB: unread}


def pitfall(code: str = "no-pods", severity: Severity = "critical", target: Ref | None = WEB) -> Pitfall:
    return Pitfall(code, severity, target, "no pod starts with X.", "remove X.")


def with_pitfalls(*pitfalls: Pitfall, read: bool = True) -> Observation:
    """The mesh with these pitfalls only."""
    return replace(MESH, pitfalls=pitfalls, scrape_jobs=(job("mtls", WEB),) if read else ())


def test_a_new_critical_pitfall_is_worse() -> None:
    """It is said of the object that it happens to, without full stops."""
    (missing,) = judge_inverse(with_pitfalls(), with_pitfalls(pitfall()))[WEB]
    assert (missing.code, missing.text, missing.remedy) == ("no-pods", "no pod starts with X", "remove X")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([pitfall()], [pitfall()]),
        ([], [pitfall(severity="warning")]),
        ([], [pitfall(target=None)]),
        ([pitfall()], []),
    ],
    ids=["known", "a warning", "of the whole mesh", "gone"],
)
def test_other_pitfalls_hold_nothing_back(before: list[Pitfall], after: list[Pitfall]) -> None:
    assert judge_inverse(with_pitfalls(*before), with_pitfalls(*after)) == {}


def test_a_lost_scrape_is_said_before_a_pitfall() -> None:
    faults = judge_inverse(with_pitfalls(), with_pitfalls(pitfall(), pitfall(target=SHUT), read=False))
    assert [(workload, missing.code) for workload, (missing,) in faults.items()] == [
        (WEB, "unread-in-plaintext"), (SHUT, "no-pods"),
    ]  # fmt: skip
