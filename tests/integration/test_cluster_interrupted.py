"""A verification's Jobs and a run's watch of Prometheus, when a signal comes or an answer does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from meshscrape.cluster import watching
from meshscrape.cluster.api import Api
from meshscrape.cluster.scraped import prometheus_selectors
from meshscrape.cluster.stopping import StoppedError
from meshscrape.cluster.verifier_job import VerifierJob
from meshscrape.cluster.verifier_run import reports_of
from meshscrape.cluster.watching import ScrapeWatch
from meshscrape.errors import UnavailableError
from meshscrape.verify.inside import Verifier
from support.examples import secured
from support.objects import cluster, observed
from support.objects_api import Disturbance, ObjectsApi, objects_api, serve_well
from support.polling import eventually_async

JOB = VerifierJob(
    "verify-1", Verifier("outside", "verify-1", ("plain-http",)), "registry.example/absent:1",
    {"kind": "MeshStatus"}, 120.0, own_account=True,
)  # fmt: skip
POD = "/api/v1/namespaces/outside/pods/verify-1-abc"
WAITING = {"name": "verify", "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
OBSERVATION, INVENTORY = observed(secured()), cluster(*secured())


def absent_image() -> dict[str, Any]:
    """The Job's pod, whose image cannot be pulled: the command gives up and removes everything."""
    return {"metadata": {"name": "verify-1-abc"}, "status": {"containerStatuses": [WAITING]}}


def test_removes_what_a_failed_verification_made() -> None:
    """And the last of it is requested although the command has nothing to wait for."""
    with objects_api({POD: absent_image()}) as server:

        def disturb(method: str, path: str) -> Disturbance:
            if method == "DELETE":
                server.objects.pop(POD, None)
            return 200

        server.disturb = disturb
        with pytest.raises(UnavailableError, match="its image cannot be pulled"):
            asyncio.run(reports_of(Api(server.access), [JOB], lambda line: None))
        assert server.objects == {}


def test_a_signal_during_the_removal_waits_until_everything_is_removed() -> None:
    """Ctrl-C cancels the command while its first deletion is under way."""

    async def interrupted(server: ObjectsApi, answer: threading.Event) -> None:
        task = asyncio.create_task(reports_of(Api(server.access), [JOB], lambda line: None))

        async def removing() -> bool:
            return server.count("DELETE") == 1

        await eventually_async(removing, what="the first deletion")
        task.cancel()
        # The task gets its cancellation before the server answers.
        await asyncio.sleep(0)
        answer.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    answer = threading.Event()
    with objects_api({POD: absent_image()}) as server:

        def disturb(method: str, path: str) -> Disturbance:
            if method != "DELETE":
                return 200
            server.objects.pop(POD, None)
            return answer

        server.disturb = disturb
        asyncio.run(interrupted(server, answer))
        assert server.objects == {}
        assert server.count("DELETE") == 3


@contextmanager
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ObjectsApi, str]]:
    """An API server with the pod of the example's Prometheus; the path of its head block's statistics."""
    monkeypatch.setattr(watching, "_LEAST_REST_SECONDS", 0.0)
    monkeypatch.setattr(watching, "_REST_FACTOR", 0)
    ((namespace, _),) = prometheus_selectors(OBSERVATION, INVENTORY)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    proxied = f"{pods}/prometheus-0:9090/proxy/api/v1"
    objects = {
        f"{pods}/prometheus-0": {"metadata": {"name": "prometheus-0"}, "status": {"phase": "Running"}},
        f"{proxied}/targets": {"data": {"activeTargets": []}},
        f"{proxied}/status/tsdb": head(10),
    }
    with objects_api(objects) as server:
        yield server, f"{proxied}/status/tsdb"


def head(series: int) -> dict[str, Any]:
    """The statistics of a head block."""
    return {"data": {"headStats": {"numSeries": series}}}


def scrape_watch(server: ObjectsApi, lines: list[str]) -> ScrapeWatch:
    """The watch of a run with a bound of a thousand series."""
    return ScrapeWatch(Api(server.access), max_lost=0, max_series=1000, verb="apply", told=lines.append)


def test_statistics_of_a_head_block_that_do_not_arrive_end_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound counts again as soon as Prometheus tells how many series it has."""
    lines: list[str] = []

    async def look(server: ObjectsApi, path: str) -> None:
        watch = scrape_watch(server, lines)
        await watch.begin(OBSERVATION, INVENTORY, {"default"})
        server.disturb = lambda _, asked: None if asked == path else 200
        asked = server.count("GET", path)
        await watch.look("phase listeners")
        assert server.count("GET", path) == asked + 1
        server.disturb = serve_well
        server.objects[path] = head(1000)
        with pytest.raises(StoppedError, match="has 1000 head series, the bound is 1000"):
            await watch.look("phase listeners")

    with prometheus(monkeypatch) as (server, path):
        asyncio.run(look(server, path))
    assert lines == []


@pytest.mark.parametrize("answer", [None, 503, 404], ids=["none", "503", "404"])
def test_a_bound_needs_a_prometheus_that_tells_its_series(
    monkeypatch: pytest.MonkeyPatch, answer: Disturbance
) -> None:
    with prometheus(monkeypatch) as (server, path):
        server.disturb = lambda _, asked: answer if asked == path else 200
        with pytest.raises(StoppedError, match="no Prometheus tells how many head series it has"):
            asyncio.run(scrape_watch(server, []).begin(OBSERVATION, INVENTORY, {"default"}))
