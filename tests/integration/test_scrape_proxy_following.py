"""A follower and the proxy that shares: held requests, changes, restarts, and a hostile other side."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from meshscrape.errors import InputError, MeshscrapeError, UnauthenticatedError, UnavailableError
from meshscrape.prometheus.targets import Target
from meshscrape.proxy import sharing
from meshscrape.proxy.discovery import Snapshot
from meshscrape.proxy.following import FollowedProxy, plaintext_link
from meshscrape.proxy.http_sd import CHANGES
from meshscrape.proxy.sharing import TargetSharing
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.http.server import Handler, HttpServer, Request, Response

JOB = "merged"
PATIENCE = 60.0
Snapshots = AsyncIterator[Snapshot]


def pod(number: int) -> Target:
    identity = SpiffeId("cluster.local", "/ns/shop/sa/web")
    return Target(f"10.0.{number // 200}.{number % 200 + 1}", 15092, identity, {"pod": f"web-{number}"})


class Sharer:
    """What a proxy shares, and the requests that it got."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = tuple(targets)
        self.asked: list[str] = []
        self.answered: list[int] = []
        self.restart()

    def restart(self) -> None:
        """Forget every version, as a new process does."""
        self.sharing = TargetSharing(lambda: {JOB: [self.targets]})

    def tell(self, targets: Sequence[Target]) -> None:
        self.targets = tuple(targets)
        self.sharing.changed()

    async def handle(self, request: Request) -> Response:
        assert request.path == CHANGES
        self.asked.append(request.headers.get("if-none-match", ""))
        response = await self.sharing.answer(request)
        self.answered.append(response.status)
        return response


def run(
    tmp_path: Path, handler: Handler, act: Callable[[Snapshots], Awaitable[None]], limit: float = PATIENCE
) -> None:
    """Serve `handler`, and act on the snapshots of a follower of it."""
    token = tmp_path / "token"
    token.write_text("secret\n")

    async def main() -> None:
        async with HttpServer(handler, addresses=[("127.0.0.1", 0)]) as server, asyncio.timeout(limit):
            snapshots = FollowedProxy(server.addresses[0], plaintext_link(token), (JOB,)).snapshots()
            async with contextlib.aclosing(snapshots):  # type: ignore[type-var]
                await act(snapshots)

    asyncio.run(main())


def test_change_is_told_while_the_request_is_held(tmp_path: Path) -> None:
    """The follower has asked before the change; the answer has one target, not the list."""
    targets = [pod(number) for number in range(300)]
    sharer = Sharer(targets)

    async def act(snapshots: Snapshots) -> None:
        first = await anext(snapshots)
        coming = asyncio.ensure_future(anext(snapshots))
        while len(sharer.asked) < 2:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        assert not coming.done()
        sharer.tell([*targets[1:], pod(999)])
        second = await coming
        assert {target.address for target in second.targets[JOB]} == {t.address for t in sharer.targets}
        known = {id(target) for target in first.targets[JOB]}
        assert sum(id(target) not in known for target in second.targets[JOB]) == 1

    run(tmp_path, sharer.handle, act)
    assert sharer.asked[0] == "" and sharer.asked[1]


def test_unchanged_version_is_answered_after_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 304, which is no snapshot; the next change still arrives."""
    monkeypatch.setattr(sharing, "HOLD_SECONDS", 0.05)
    sharer = Sharer([pod(1)])

    async def act(snapshots: Snapshots) -> None:
        await anext(snapshots)
        coming = asyncio.ensure_future(anext(snapshots))
        while 304 not in sharer.answered:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        sharer.tell([pod(2)])
        assert (await coming).targets[JOB] == (pod(2),)

    run(tmp_path, sharer.handle, act)


def test_too_many_followers_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held requests do not use up the places of others; a change is the answer to the held ones."""
    monkeypatch.setattr(sharing, "HOLD_SECONDS", 3600.0)
    targets = [pod(1)]

    async def main() -> None:
        shared = TargetSharing(lambda: {JOB: [tuple(targets)]})
        version = (await shared.answer(Request("GET", CHANGES, "", {}))).headers["ETag"]
        again = Request("GET", CHANGES, "", {"if-none-match": version})
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            held = [tasks.create_task(shared.answer(again)) for _ in range(sharing.MOST_HELD)]
            await asyncio.sleep(0)
            assert (await shared.answer(again)).status == 304
            assert not any(task.done() for task in held)
            # Something changed that is no target, then a target.
            shared.changed()
            await asyncio.sleep(0)
            assert not any(task.done() for task in held)
            targets.append(pod(2))
            shared.changed()
        assert [task.result().status for task in held] == [200] * sharing.MOST_HELD

    asyncio.run(main())


def test_restarted_proxy_is_followed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its versions begin again: it answers with the whole list, and equal targets stay the same objects."""
    monkeypatch.setattr(sharing, "HOLD_SECONDS", 0.05)
    sharer = Sharer([pod(1), pod(2)])

    async def act(snapshots: Snapshots) -> None:
        first = await anext(snapshots)
        sharer.targets = (pod(1), pod(3))
        sharer.restart()
        second = await anext(snapshots)
        assert {target.address for target in second.targets[JOB]} == {pod(1).address, pod(3).address}
        assert any(target is first.targets[JOB][0] for target in second.targets[JOB])

    run(tmp_path, sharer.handle, act)


async def _cut() -> AsyncIterator[bytes]:
    yield json.dumps({"version": "b.2.0", "since": "", "gone": 0, "come": 2}).encode() + b"\n"
    raise UnavailableError("the connection broke")


BAD: dict[str, tuple[Callable[[], Response], type[MeshscrapeError]]] = {
    "not the format": (lambda: Response(200, b"[]\n"), InputError),
    "no lines": (lambda: Response(200, b""), InputError),
    "cut": (lambda: Response(200, _cut()), UnavailableError),
    "unchanged, although nothing is known": (lambda: Response(304), UnavailableError),
    "another version of the program": (lambda: Response(404), UnavailableError),
    "not the token": (lambda: Response(401), UnauthenticatedError),
    "not ready": (lambda: Response(503), UnavailableError),
    "elsewhere": (lambda: Response(302, headers={"Location": "http://127.0.0.1:1/"}), UnavailableError),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_first_answer_is_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    """Then there are no targets to keep."""
    response, error = BAD[name]

    async def act(snapshots: Snapshots) -> None:
        with pytest.raises(error) as caught:
            await anext(snapshots)
        assert "\n" not in str(caught.value) and caught.value.where

    run(tmp_path, _answers(response), act)


@pytest.mark.parametrize("name", [name for name in BAD if not name.startswith("unchanged")])
def test_bad_answer_later_keeps_the_last_targets(tmp_path: Path, name: str) -> None:
    """The problem is told once, and cleared by the next good answer."""
    response, error = BAD[name]
    sharer = Sharer([pod(1)])
    bad = _answers(response)
    turns = [sharer.handle, bad, bad]

    async def handle(request: Request) -> Response:
        return await (turns.pop(0) if turns else sharer.handle)(request)

    async def act(snapshots: Snapshots) -> None:
        first = await anext(snapshots)
        second = await anext(snapshots)
        assert second.targets == first.targets and isinstance(second.problem, error)
        sharer.tell([pod(1), pod(2)])
        third = await anext(snapshots)
        assert third.problem is None and len(third.targets[JOB]) == 2

    run(tmp_path, handle, act)


def _answers(response: Callable[[], Response]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def handle(request: Request) -> Response:
        return response()

    return handle
