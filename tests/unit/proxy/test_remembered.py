"""The last targets of a source, kept for a start while the source is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.prometheus.targets import Target
from meshscrape.proxy.discovery import Snapshot
from meshscrape.proxy.remembered import RememberedSource, decode, encode
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.clock import utcnow

WEB = Target("10.0.0.7", 15092, SpiffeId("cluster.local", "/ns/shop/sa/web"), {"pod": "web-1"})
OTHER = Target("fd00::7", 15092, WEB.spiffe_id, {"pod": "web-1"}, "/metrics", main=False)


class Told:
    """A source that tells these snapshots, one for each time it is asked; an error is raised at first."""

    name = "told"
    jobs = ("merged",)

    def __init__(self, *answers: Snapshot | MeshscrapeError) -> None:
        self.answers = list(answers)
        self.ended = False

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        answer = self.answers.pop(0)
        if isinstance(answer, MeshscrapeError):
            raise answer
        yield answer
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


def away() -> UnavailableError:
    return UnavailableError("the API server does not answer")


def told(source: RememberedSource, number: int) -> list[Snapshot]:
    """The first snapshots of a source."""

    async def run() -> list[Snapshot]:
        snapshots = source.snapshots()
        async with contextlib.aclosing(snapshots), asyncio.timeout(30):  # type: ignore[type-var]
            return [await anext(snapshots) for _ in range(number)]

    return asyncio.run(run())


def _keep(path: Path, seconds_ago: float) -> None:
    path.write_bytes(encode({"merged": (WEB, OTHER)}, utcnow().timestamp() - seconds_ago))


def test_every_field_of_a_target_survives() -> None:
    """Also other paths and addresses that are not announced."""
    found = decode(encode({"merged": (WEB, OTHER)}, 7.0))
    assert found == Snapshot({"merged": (WEB, OTHER)}, None, 7.0, divisible=True)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"asOf": 1, "targets": {"a": [[1]]}}', b"\xff"])
def test_refuses_a_file_that_holds_no_targets(data: bytes) -> None:
    """It is never half used."""
    with pytest.raises(InputError):
        decode(data)


def test_the_last_targets_are_used_until_the_source_answers(tmp_path: Path) -> None:
    """They are marked with the source's problem and their own time; then the source's own targets follow."""
    path = tmp_path / "last.json"
    _keep(path, 60)
    new = Snapshot({"merged": (OTHER,)})
    stale, fresh = told(RememberedSource(Told(away(), away(), new), path), 2)
    assert stale.targets == {"merged": (WEB, OTHER)}
    assert stale.problem is not None and 50 < utcnow().timestamp() - stale.as_of < 300
    assert fresh == new


def test_targets_that_are_too_old_are_not_used(tmp_path: Path) -> None:
    """Then the start fails as it does without a file."""
    path = tmp_path / "last.json"
    _keep(path, 4000)
    with pytest.raises(UnavailableError):
        told(RememberedSource(Told(away()), path), 1)


def test_targets_that_become_too_old_are_given_up(tmp_path: Path) -> None:
    """The problem says so."""
    path = tmp_path / "last.json"
    _keep(path, 0)
    stale, ended = told(RememberedSource(Told(away(), away(), away()), path, age=1.0), 2)
    assert stale.targets["merged"] and ended.targets == {"merged": ()}
    assert ended.problem is not None and "too old" in str(ended.problem)


def test_the_first_targets_are_written(tmp_path: Path) -> None:
    """Only after the source itself told them; and the source ends with who asked for it."""
    path = tmp_path / "last.json"
    inner = Told(Snapshot({"merged": (WEB,)}))
    source = RememberedSource(inner, path)

    async def run() -> None:
        snapshots = source.snapshots()
        async with contextlib.aclosing(snapshots):  # type: ignore[type-var]
            await anext(snapshots)
            rest = asyncio.ensure_future(anext(snapshots))
            while not path.exists():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            rest.cancel()
            await asyncio.wait({rest})
            assert inner.ended

    asyncio.run(run())
    assert decode(path.read_bytes()).targets == {"merged": (WEB,)}
