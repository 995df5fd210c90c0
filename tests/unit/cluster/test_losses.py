"""Which failed scrapes are losses, from the answers of Prometheus and the pods."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meshscrape.cluster.losses import SeenTarget, TargetHistory, head_series, is_lost, seen_targets

NOON = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
PLAIN, SECURE = "http://10.0.0.1:15020/stats", "https://10.0.0.1:15092/stats"


def target(url: str = PLAIN, health: str = "up", *, uid: str = "u1", after: float = 60.0, **more: Any) -> Any:
    """Return a target of Prometheus' answer."""
    meta = {
        "__meta_kubernetes_namespace": "shop",
        "__meta_kubernetes_pod_name": "web-1",
        "__meta_kubernetes_pod_uid": uid,
    }
    scraped = (NOON + timedelta(seconds=after)).isoformat()
    return {
        "discoveredLabels": meta, "labels": {}, "scrapePool": "pods", "scrapeUrl": url, "health": health,
        "lastError": "", "lastScrape": scraped, **more,
    }  # fmt: skip


def seen(*targets: Any) -> list[SeenTarget]:
    """Return the targets of one Prometheus."""
    return list(seen_targets({"data": {"activeTargets": list(targets)}}, {"shop"}))


def pod(*, uid: str = "u1", ready: bool = True, since: float = 0.0, ends: bool = False) -> Any:
    """Return a pod whose condition Ready is of some seconds after noon."""
    at = (NOON + timedelta(seconds=since)).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready_condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": at}
    ending = {"deletionTimestamp": at} if ends else {}
    return {"metadata": {"name": "web-1", "uid": uid, **ending}, "status": {"conditions": [ready_condition]}}


def test_suspects_a_target_that_was_up_and_is_down() -> None:
    history = TargetHistory()
    assert history.suspects(seen(target())) == []
    (found,) = history.suspects(
        seen(target(health="down", lastError='Get "http://a/?token=s3cret": refused'))
    )
    assert str(found) == f'{PLAIN} of Pod shop/web-1: Get "http://a/": refused'


def test_reports_each_failed_scrape_once() -> None:
    history = TargetHistory()
    history.suspects(seen(target()))
    down = target(health="down", after=61)
    assert [len(history.suspects(seen(down))) for _ in range(2)] == [1, 0]
    assert len(history.suspects(seen(target(health="down", after=62)))) == 1


def test_does_not_suspect_a_target_that_was_never_up() -> None:
    history = TargetHistory()
    assert history.suspects(seen(target(health="down"))) == []
    assert history.suspects(seen(target(health="down", after=61))) == []


def test_suspects_the_failing_successor_of_a_target_that_was_up() -> None:
    """The plaintext target has gone, and nothing of the pod is up over mutual TLS."""
    history = TargetHistory()
    history.suspects(seen(target()))
    assert history.suspects(seen(target(SECURE, "unknown", scrapePool="secure"))) == []
    assert len(history.suspects(seen(target(SECURE, "down", scrapePool="secure")))) == 1


def test_does_not_suspect_a_second_target_beside_one_that_is_up() -> None:
    history = TargetHistory()
    history.suspects(seen(target()))
    assert history.suspects(seen(target(), target(SECURE, "down", scrapePool="secure"))) == []


def test_does_not_suspect_a_new_pod_of_the_same_name() -> None:
    """A pod of a StatefulSet keeps its name, and often its address."""
    history = TargetHistory()
    history.suspects(seen(target()))
    assert history.suspects(seen(target(health="down", uid="u2"))) == []


@pytest.mark.parametrize(
    ("found", "lost"),
    [
        (pod(), True),
        (None, False),
        (pod(ends=True), False),
        (pod(ready=False), False),
        (pod(uid="u2"), False),
        (pod(since=59.5), False),
        (pod(since=58), True),
    ],
    ids=["ready", "gone", "ending", "not-ready", "another", "ready-just-then", "ready-before"],
)
def test_a_suspect_is_lost_if_its_pod_was_ready(found: Any, lost: bool) -> None:
    (suspect,) = seen(target(health="down"))
    assert is_lost(suspect, found) is lost


def test_takes_targets_of_pods_of_the_namespaces_only() -> None:
    unknown = target(discoveredLabels={"__address__": "localhost:9090"})
    labelled = target(discoveredLabels={}, labels={"namespace": "shop", "pod": "web-1"})
    other = target(discoveredLabels={}, labels={"namespace": "else", "pod": "web-1"})
    (found,) = seen(unknown, labelled, other)
    assert found.uid == str(found.pod) == "Pod shop/web-1"
    assert is_lost(found, pod())


@pytest.mark.parametrize("scraped", ["", "never", None, "0001-01-01T00:00:00Z"])
def test_a_target_without_a_time_of_its_scrape_is_no_loss(scraped: Any) -> None:
    (found,) = seen(target(health="down", lastScrape=scraped))
    assert not is_lost(found, pod())


def test_reads_head_series() -> None:
    assert head_series({"data": {"headStats": {"numSeries": 7}}}) == 7
    assert [head_series(value) for value in ({}, {"data": {"headStats": {"numSeries": True}}})] == [
        None,
        None,
    ]
