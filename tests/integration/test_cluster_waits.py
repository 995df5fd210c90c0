"""Waits on a cluster while its API server fails: a real server, and the client that the commands use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import pytest

from meshscrape.cluster import lease as leases
from meshscrape.cluster import patience, repository
from meshscrape.cluster.api import Api
from meshscrape.cluster.holding import HeldLease, holding
from meshscrape.cluster.repository import await_repository
from meshscrape.cluster.stopping import StoppedError
from meshscrape.errors import MeshscrapeError
from meshscrape.kube.objects import Ref
from meshscrape.system.clock import utcnow
from support.objects_api import Disturbance, ObjectsApi, objects_api, serve_well
from support.polling import eventually_async

WEB, CART = (Ref("apps", "Deployment", "shop", name) for name in ("web", "cart"))
TOOLS = {WEB: "Argo CD", CART: "Flux"}
ROOT = "/apis/apps/v1/namespaces/shop/deployments"
LEASE = f"{leases.PATH}/{leases.NAME}"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what a wait rests between two looks."""
    monkeypatch.setattr(repository, "_LEAST_REST_SECONDS", 0.02)
    monkeypatch.setattr(repository, "_REST_FACTOR", 0)


def workload(name: str, *, arrived: bool) -> dict[str, Any]:
    """A Deployment as its repository had it, or has it now."""
    return {"metadata": {"name": name}, "spec": {"secured": arrived}}


class Wait:
    """A wait for two Deployments, whose plan asks the API server which of them are secured."""

    def __init__(self, server: ObjectsApi) -> None:
        self.server = server
        self.lines: list[str] = []
        self.plans = 0
        self._api = Api(server.access)
        for name in ("web", "cart"):
            self.bring(name, arrived=False)

    def bring(self, name: str, *, arrived: bool = True) -> None:
        """Let the tool write a Deployment."""
        self.server.objects[f"{ROOT}/{name}"] = workload(name, arrived=arrived)

    async def run(self, seconds: float = 60.0) -> str:
        """Wait to the end."""
        return await await_repository(
            TOOLS,
            read=self._read,
            plan=self._plan,
            look=self._look,
            told=self.lines.append,
            where="phase listeners",
            seconds=seconds,
            verb="apply",
        )

    def said(self, text: str) -> list[str]:
        """The lines with a text."""
        return [line for line in self.lines if text in line]

    async def until_said(self, text: str) -> None:
        """Wait for a line."""

        async def said() -> bool:
            return bool(self.said(text))

        await eventually_async(said, what=f"the line {text!r}")

    async def until_asked(self, method: str, more: int) -> None:
        """Wait for more requests of a method."""
        before = self.server.count(method)

        async def asked() -> bool:
            return self.server.count(method) >= before + more

        await eventually_async(asked, what=f"{more} requests")

    async def _read(self, ref: Ref) -> Any:
        return await self._api.get(f"{ROOT}/{ref.name}")

    async def _plan(self) -> tuple[str, Collection[Ref]]:
        self.plans += 1
        await self._api.get("/plan")
        data = {ref: await self._read(ref) for ref in TOOLS}
        return f"reading {self.plans}", [ref for ref, found in data.items() if not found["spec"]["secured"]]

    async def _look(self, where: str) -> None:
        await self._api.get("/look")


def refusing(status: Disturbance, *, only: str = "") -> Callable[[str, str], Disturbance]:
    """Disturb every request, or those whose path ends so."""
    return lambda method, path: status if path.endswith(only) else 200


OBJECTS: dict[str, Any] = {"/plan": {}, "/look": {}}


@pytest.mark.parametrize("status", [503, 500, 429, None], ids=["503", "500", "429", "cut"])
def test_goes_on_through_an_outage_and_says_it_once(status: Disturbance) -> None:
    """The log has the last good state; what arrives meanwhile counts."""

    async def wait() -> Wait:
        with objects_api(OBJECTS) as server:
            waiting = Wait(server)
            task = asyncio.create_task(waiting.run())
            await waiting.until_asked("GET", 8)
            waiting.bring("web")
            await waiting.until_said("1 of 2 changes have not arrived")
            server.disturb = refusing(status)
            await waiting.until_said("cannot be asked now")
            await waiting.until_asked("GET", 5)
            waiting.bring("cart")
            server.disturb = serve_well
            assert (await task).startswith("reading")
        return waiting

    waiting = asyncio.run(wait())
    (line,) = waiting.said("cannot be asked now")
    assert line.startswith("phase listeners: waiting on; ")
    assert line.endswith("; 1 of 2 changes have not arrived")
    assert len(waiting.said("answers again")) == 1


def test_plans_again_when_a_plan_failed_after_a_change_had_arrived() -> None:
    """The objects are read before the plan: they must not count as known until it is made."""

    async def wait() -> Wait:
        with objects_api(OBJECTS) as server:
            waiting = Wait(server)
            task = asyncio.create_task(waiting.run())
            await waiting.until_asked("GET", 8)
            server.disturb = refusing(503, only="/plan")
            waiting.bring("web")
            waiting.bring("cart")
            await waiting.until_said("cannot be asked now")
            server.disturb = serve_well
            await task
        return waiting

    assert asyncio.run(wait()).plans >= 3


def test_a_change_that_goes_again_is_waited_for_again() -> None:
    async def wait() -> Wait:
        with objects_api(OBJECTS) as server:
            waiting = Wait(server)
            task = asyncio.create_task(waiting.run())
            await waiting.until_asked("GET", 8)
            waiting.bring("web")
            await waiting.until_said("1 of 2 changes have not arrived")
            waiting.bring("web", arrived=False)
            waiting.server.objects[f"{ROOT}/cart"] = {"metadata": {}, "spec": {"secured": False, "other": 1}}
            await waiting.until_said("2 of 2 changes have not arrived")
            waiting.bring("web")
            waiting.bring("cart")
            await task
        return waiting

    asyncio.run(wait())


@pytest.mark.parametrize(
    ("status", "problem", "cure"),
    [
        (401, "the API server no longer accepts the credentials: disturbed 401", "log in again"),
        (403, "a right is missing now: disturbed 403", "grant what `meshscrape rbac apply` prints"),
    ],
)
def test_ends_with_one_line_when_credentials_or_rights_are_gone(
    monkeypatch: pytest.MonkeyPatch, status: int, problem: str, cure: str
) -> None:
    monkeypatch.setattr(patience, "REFUSED_SECONDS", 0.3)
    with objects_api(OBJECTS) as server, pytest.raises(StoppedError) as stopped:
        server.disturb = refusing(status)
        asyncio.run(Wait(server).run())
    assert str(stopped.value) == (
        f"phase listeners: {problem}; {cure}, then run apply again: what was applied stays"
    )


def test_a_short_refusal_ends_nothing() -> None:
    """An API server that has just started does not know the rights yet."""

    async def wait() -> Wait:
        with objects_api(OBJECTS) as server:
            waiting = Wait(server)
            for name in ("web", "cart"):
                waiting.bring(name)
            server.disturb = refusing(403)
            task = asyncio.create_task(waiting.run())
            await waiting.until_said("cannot be asked now")
            server.disturb = serve_well
            await task
        return waiting

    assert len(asyncio.run(wait()).said("answers again")) == 1


def test_ends_when_the_api_server_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "OUTAGE_SECONDS", 0.3)
    with objects_api(OBJECTS) as server, pytest.raises(StoppedError) as stopped:
        server.disturb = refusing(503)
        asyncio.run(Wait(server).run())
    assert stopped.value.code == "api-away"


def test_gives_up_at_the_end_of_its_time_also_during_an_outage() -> None:
    with objects_api(OBJECTS) as server, pytest.raises(StoppedError) as stopped:
        server.disturb = refusing(503)
        asyncio.run(Wait(server).run(seconds=0.1))
    assert stopped.value.code == "not-arrived"
    assert "Argo CD, Flux brought no change of" in str(stopped.value)


@pytest.mark.parametrize("status", [404, 400])
def test_another_refusal_of_the_plan_ends_the_wait(status: int) -> None:
    with objects_api(OBJECTS) as server, pytest.raises(MeshscrapeError, match=f"disturbed {status}"):
        server.disturb = refusing(status, only="/plan")
        asyncio.run(Wait(server).run())


def held_by(holder: str) -> dict[str, Any]:
    """The Lease in the hands of a run, renewed just now."""
    return leases.lease(holder, utcnow(), "5")


async def during_outage(server: ObjectsApi, *, taken_by: str = "", patient: bool = True) -> None:
    """Hold the Lease through an outage of the API server in which it cannot be renewed."""

    async def block(held: HeldLease) -> None:
        server.disturb = refusing(503)
        before = server.count("GET", leases.NAME)

        async def asked_twice() -> bool:
            return server.count("GET", leases.NAME) >= before + 2

        await eventually_async(asked_twice, what="two attempts to renew the Lease")
        if taken_by:
            server.objects[LEASE] = held_by(taken_by)
        server.disturb = serve_well

    async with holding(Api(server.access), "me") as held:
        if patient:
            async with held.patient():
                await block(held)
        else:
            await block(held)


def holder(server: ObjectsApi) -> str:
    """Who holds the Lease; empty when it was given back."""
    return str(server.objects[LEASE]["spec"]["holderIdentity"])


def test_a_patient_run_keeps_its_lease_through_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    with objects_api({LEASE: held_by("")}) as server:
        asyncio.run(during_outage(server))
        assert holder(server) == ""


def test_a_patient_run_stops_when_another_has_taken_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be written then: the other run may have changed the cluster."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    with objects_api({LEASE: held_by("")}) as server:
        with pytest.raises(StoppedError, match="another changes this cluster now"):
            asyncio.run(during_outage(server, taken_by="another"))
        assert holder(server) == "another"


def test_a_run_that_writes_stops_when_its_lease_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    refused = pytest.raises(MeshscrapeError, match="disturbed 503")
    with objects_api({LEASE: held_by("")}) as server, refused:
        asyncio.run(during_outage(server, patient=False))
