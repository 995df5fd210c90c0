"""The judge: what it says of results that are right, that lose a scrape, and that double one."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.kube.objects import Inventory
from meshscrape.observe import observe
from meshscrape.plan.judge import Result, ScrapeVerdict, judge, new_errors, unread
from support.objects import (
    LOCALHOST_ONLY,
    SECURE,
    Object,
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    namespace,
    only,
    peer_authentication,
    proxy_config,
)
from support.scraping_objects import envoy_stats, prometheus, secure_job

EXCLUDED = {"traffic.sidecar.istio.io/excludeInboundPorts": "15092"}
DROP: Object = {
    "action": "drop",
    "source_labels": ["__meta_kubernetes_pod_annotationpresent_prometheus_istio_io_secure_port"],
    "regex": "true",
}


def mesh(*jobs: Object, secured: bool = False, hardened: bool = False, **scraper: Any) -> Inventory:
    """One workload and a Prometheus with these jobs."""
    variables = {**(SECURE if secured else {}), **(LOCALHOST_ONLY if hardened else {})}
    notes = {**proxy_config(variables), **EXCLUDED} if variables else {}
    return cluster(
        control_plane(),
        injected_namespace(),
        namespace("istio-system"),
        deployment(annotations=notes),
        prometheus(*jobs, **scraper),
    )


def leaving() -> Object:
    """The plaintext job with a rule that lets secured pods leave."""
    job = envoy_stats()
    job["relabel_configs"].append(DROP)
    return job


BEFORE = mesh(envoy_stats())


def verdict(after: Inventory, **result: Any) -> ScrapeVerdict:
    """The verdict on the one workload and its plaintext job."""
    verdicts = judge(Result(observe(BEFORE), observe(after), **result))
    return only(each for each in verdicts if each.workload.name == "httpbin")


def test_shows_a_scrape_that_moved_to_mutual_tls() -> None:
    """The pod leaves the plaintext job, and a job with certificates reads its secure port."""
    found = verdict(mesh(leaving(), secure_job(), secured=True, hardened=True))
    assert (found.answer, found.leaves, found.missing) == ("shown", True, ())


def test_shows_a_scrape_that_stays_as_it_is() -> None:
    """An open secure port that no job reads changes nothing for the plaintext job."""
    found = verdict(mesh(envoy_stats(), secured=True))
    assert (found.answer, found.leaves) == ("shown", False)


@pytest.mark.parametrize(
    ("after", "leaves", "code"),
    [
        (mesh(leaving(), secured=True), True, "unread"),
        (mesh(leaving(), secure_job()), False, None),
        (mesh(envoy_stats(), secure_job(), secured=True), False, "twice"),
        (mesh(leaving(), secure_job(), secure_job("again"), secured=True), True, "twice"),
        (mesh(envoy_stats(), secured=True, hardened=True), False, "closed"),
        (mesh(leaving(), secure_job(), secured=True, labels={}), True, "output-certs-not-injected"),
        (mesh(leaving(), secure_job(), secured=True, mount=None), True, "certificates-not-in-scraper"),
        (mesh(leaving(), secure_job(), secured=True, rbac=False), True, None),
        (mesh(leaving(), secure_job(directory="/elsewhere"), secured=True), True, "tls-files-elsewhere"),
    ],
)
def test_refutes_a_result_that_is_worse(after: Inventory, leaves: bool, code: str | None) -> None:
    """Each way to lose or to double a scrape has its own code; None: nothing is worse."""
    found = verdict(after)
    assert (found.answer, found.leaves) == ("refuted" if code else "shown", leaves)
    assert code is None or code in {missing.code for missing in found.missing}


def test_a_scraper_with_a_certificate_from_elsewhere_is_unknown() -> None:
    """Whether the mesh accepts such a certificate, no object tells; a person can vouch for it."""
    foreign = {"secret": {"secretName": "scraper"}}
    after = mesh(leaving(), secure_job(), secured=True, labels={}, annotations={}, volume=foreign)
    assert verdict(after).answer == "unknown"
    assert verdict(after, vouched=True).answer == "shown"


def test_blames_the_scraper_when_it_would_read_nothing() -> None:
    """What is held back then is the scraper's change, not every workload by itself."""
    found = verdict(mesh(leaving(), secured=True))
    assert found.blamed is not None and found.blamed.name == "prometheus"


def test_names_errors_that_were_not_there_before() -> None:
    """The same error on the same object counts once: only new ones are the result's."""
    worse = observe(mesh(envoy_stats(), mount=None))
    assert {pitfall.code for pitfall in new_errors(observe(BEFORE), worse)} == {"certificates-not-in-scraper"}
    assert new_errors(worse, worse) == ()


def test_labels_that_stay_are_no_changes() -> None:
    """Of a job that leaves, only labels whose value is another one afterwards are told."""
    found = verdict(mesh(leaving(), secure_job(), secured=True))
    assert (found.answer, found.leaves) == ("shown", True)
    assert "job" in {change.label for change in found.labels}
    assert [change for change in found.labels if change.before == change.after] == []


def test_refutes_what_the_workload_itself_prevents() -> None:
    """Its proxy intercepts the secure port: the workload is to blame, not the scraper."""
    after = cluster(
        control_plane(),
        injected_namespace(),
        namespace("istio-system"),
        deployment(annotations=proxy_config(SECURE)),
        peer_authentication("STRICT"),
        prometheus(leaving(), secure_job()),
    )
    found = verdict(after)
    assert found.answer == "refuted"
    assert {missing.code for missing in found.missing} == {"strict-intercepts-secure-port"}
    assert found.blamed == found.workload


def test_blames_the_workload_when_its_scraper_reads_others() -> None:
    """Only this workload would be lost, so only its change is held back."""
    job = secure_job()
    job["relabel_configs"].append(
        {"action": "keep", "source_labels": ["__meta_kubernetes_pod_label_app"], "regex": "other"}
    )
    notes = {**proxy_config(SECURE), **EXCLUDED}
    after = cluster(
        control_plane(),
        injected_namespace(),
        namespace("istio-system"),
        deployment(annotations=notes),
        deployment("other", annotations=notes),
        prometheus(leaving(), job),
    )
    found = verdict(after)
    assert (found.answer, {missing.code for missing in found.missing}) == ("refuted", {"unread"})
    assert found.blamed == found.workload


def test_a_workload_that_is_gone_has_no_verdict() -> None:
    """Nothing is left to be scraped, so nothing can be worse."""
    after = observe(cluster(control_plane(), injected_namespace(), prometheus(envoy_stats())))
    judged = [verdict.workload.name for verdict in judge(Result(observe(BEFORE), after))]
    assert "httpbin" not in judged


def test_unread_tells_of_the_workloads_that_it_is_asked_about() -> None:
    """Of two workloads that no job reads, each is told alone, whichever comes first."""
    notes = {**proxy_config(SECURE), **EXCLUDED}
    both = deployment(annotations=notes), deployment("other", annotations=notes)
    after = observe(cluster(control_plane(), injected_namespace(), *both))
    refs = {workload.ref for workload in after.workloads}
    assert len(refs) == 2
    for ref in refs:
        assert set(unread(Result(after, after), {ref})) == {ref}
