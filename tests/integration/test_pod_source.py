"""The pods of a cluster as a source, from an API server that is awkward."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from meshscrape.cluster.api import Api
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.pod_cache import Pod, PodTargets
from meshscrape.cluster.pod_source import PodScope, PodSource
from meshscrape.errors import UnavailableError
from meshscrape.prometheus.targets import Target
from meshscrape.proxy.discovery import Snapshot
from meshscrape.proxy.expectations import Expectations
from meshscrape.spiffe.ids import workload_id
from support.applications import Behaviour, application, header

JOB = "merged"


def pod(name: str, address: str, account: str) -> Mapping[str, Any]:
    """The fields that the tests' own rule reads."""
    return {"metadata": {"uid": name}, "address": address, "account": account}


async def rule() -> Any:
    """One target for each pod."""

    def targets_of(found: Pod) -> PodTargets:
        spiffe_id = workload_id("cluster.local", "shop", found["account"])
        return {JOB: (Target(found["address"], 15092, spiffe_id, {}),)}

    return targets_of


def api_server(pods: list[Mapping[str, Any]], watches: list[float], told: bytes) -> Behaviour:
    """Lists `pods`; answers every watch with `told` at once, and notes when it was asked."""

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"watch=1" in request:
            watches.append(time.monotonic())
            body = told
        else:
            body = json.dumps({"metadata": {"resourceVersion": "7"}, "items": pods}).encode()
        writer.write(header("application/json", f"Content-Length: {len(body)}") + body)
        await writer.drain()

    return behave


@contextlib.asynccontextmanager
async def following(behaviour: Behaviour) -> AsyncIterator[AsyncIterator[Snapshot]]:
    """The snapshots of a source whose API server behaves so."""
    async with application(behaviour) as port, asyncio.timeout(30):
        access = Access(f"http://127.0.0.1:{port}", "a test")
        snapshots = PodSource(Api(access), PodScope(), (JOB,), rule).snapshots()
        async with contextlib.aclosing(snapshots):  # type: ignore[type-var]
            yield snapshots


def test_pods_that_contradict_each_other_do_not_make_the_list_unusable() -> None:
    """Two identities at one address: the proxy scrapes nobody there, and all others."""
    pods = [pod("a", "10.0.0.1", "web"), pod("b", "10.0.0.1", "other"), pod("c", "10.0.0.2", "web")]

    async def run() -> Snapshot:
        async with following(api_server(pods, [], b"")) as snapshots:
            return await anext(snapshots)

    snapshot = asyncio.run(run())
    assert snapshot.problem is None
    assert snapshot.divisible
    expected = Expectations()
    expected.update(snapshot.targets[JOB])
    assert expected.contested == ("10.0.0.1:15092",)
    assert len(expected.at("10.0.0.2")) == 1


def _asked_four_times(told: bytes) -> float:
    """Return the seconds in which an API server that ends every watch so is asked for four watches."""
    watches: list[float] = []

    async def run() -> None:
        async with following(api_server([], watches, told)) as snapshots:
            await anext(snapshots)
            rest = asyncio.ensure_future(anext(snapshots))
            while len(watches) < 4:  # noqa: ASYNC110 - the server of the test tells nobody
                await asyncio.sleep(0.01)
            rest.cancel()
            await asyncio.wait({rest})

    asyncio.run(run())
    return watches[3] - watches[0]


def test_empty_watches_are_repeated_with_a_pause() -> None:
    """The pause doubles from half a second, less jitter, so three of them take at least 1.75 s."""
    assert _asked_four_times(b"") > 1.7


def test_expired_versions_are_repeated_with_a_pause() -> None:
    """Each costs a whole list of the cluster's pods."""
    gone = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
    assert _asked_four_times(json.dumps(gone).encode() + b"\n") > 1.7


def test_a_problem_lasts_until_the_api_server_accepts_a_watch() -> None:
    """A watch that was asked for is no sign of life: the API server may be slow, or refuse it at last."""
    asked: list[bytes] = []

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"watch=1" not in request:
            body = json.dumps({"metadata": {"resourceVersion": "7"}, "items": []}).encode()
            writer.write(header("application/json", f"Content-Length: {len(body)}") + body)
            return
        asked.append(request)
        if len(asked) == 1:
            writer.transport.abort()
        elif len(asked) == 2:
            await asyncio.sleep(1)  # longer than changes are gathered
            writer.write(header("application/json", "Content-Length: 0", status="403 Forbidden"))
        else:
            writer.write(header("application/json", "Transfer-Encoding: chunked"))
            await writer.drain()
            await asyncio.Event().wait()

    async def run() -> list[str]:
        async with following(behave) as snapshots:
            return [str((await anext(snapshots)).problem or "") for _ in range(4)]

    problems = asyncio.run(run())
    assert [bool(each) for each in problems] == [False, True, True, False], problems
    assert ["HTTP 403" in each for each in problems] == [False, False, True, False], problems


@pytest.mark.parametrize("document", [b"[" * 5000 + b"]" * 5000, b'{"items": ' + b"[" * 5000, b"[]", b"\xff"])
def test_an_answer_that_cannot_be_read_is_an_error(document: bytes) -> None:
    """Also one that is nested so deeply that Python's reader gives up."""

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(header("application/json", f"Content-Length: {len(document)}") + document)
        await writer.drain()

    async def run() -> None:
        async with following(behave) as snapshots:
            await anext(snapshots)

    with pytest.raises(UnavailableError, match="JSON"):
        asyncio.run(run())
