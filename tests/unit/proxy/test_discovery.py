"""Sources of targets as files that change, break and vanish."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from meshscrape.errors import InputError
from meshscrape.local.discovery import parse_status
from meshscrape.prometheus.targets import JOBS, MERGED_JOB, Target
from meshscrape.proxy.discovery import Discovery, Snapshot, target_file_source
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.tasks import TaskEndedError
from support.polling import eventually_async

ID = "spiffe://cluster.local/ns/default/sa/httpbin"


def _write(path: Path, *addresses: str) -> None:
    groups = [{"targets": list(addresses), "labels": {"__meshscrape_spiffe_id": ID}}]
    staged = path.with_suffix(".new")
    staged.write_text(json.dumps(groups))
    os.rename(staged, path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.json"
    _write(path, "10.0.0.1:1")
    return path


def _addresses(discovery: Discovery) -> list[str]:
    return [target.authority for found in discovery.targets().values() for target in found]


def _run(discovery: Discovery, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start the discovery, follow its sources, and run `scenario` meanwhile."""

    async def life() -> None:
        await discovery.start()
        following = asyncio.create_task(discovery.follow())
        try:
            async with asyncio.timeout(20):
                await scenario()
        finally:
            following.cancel()
            await asyncio.wait({following})

    asyncio.run(life())


async def _changed(discovery: Discovery) -> None:
    await discovery.changed.wait()
    discovery.changed.clear()


async def _holds(condition: Callable[[], bool]) -> None:
    async def look() -> bool:
        return condition()

    await eventually_async(look, what="the condition")


def test_changed_source_takes_effect(file: Path) -> None:
    """A change is noticed once; the same targets in a new file are no change."""
    discovery = Discovery([target_file_source(file, "a")])

    async def scenario() -> None:
        assert _addresses(discovery) == ["10.0.0.1:1"]
        _write(file, "10.0.0.1:1")
        _write(file, "10.0.0.1:1", "10.0.0.2:1")
        await _changed(discovery)
        assert _addresses(discovery) == ["10.0.0.1:1", "10.0.0.2:1"]
        assert not discovery.changed.is_set()

    _run(discovery, scenario)


def _break(file: Path, fault: str) -> None:
    os.rename(file, file.with_suffix(".aside"))
    if fault == "broken":
        file.write_text("[{")
    elif fault == "a directory":
        file.mkdir()
    elif fault == "a pipe":
        os.mkfifo(file)


def _mend(file: Path) -> None:
    if file.is_dir():
        file.rmdir()
    os.rename(file.with_suffix(".aside"), file)


@pytest.mark.parametrize("fault", ["broken", "gone", "a directory", "a pipe"])
def test_a_source_that_cannot_be_used_keeps_its_last_targets(file: Path, fault: str) -> None:
    """One failure is counted however often it is looked at; the same targets, when back, clear it."""
    discovery = Discovery([target_file_source(file, "a")])
    (state,) = discovery.states

    async def scenario() -> None:
        _break(file, fault)
        await _holds(lambda: state.problem.error is not None)
        assert state.problem.error is not None and state.problem.error.where.startswith(str(file))
        assert _addresses(discovery) == ["10.0.0.1:1"]
        _mend(file)
        await _holds(lambda: state.problem.error is None)
        assert (_addresses(discovery), state.problem.count) == (["10.0.0.1:1"], 1)

    _run(discovery, scenario)


def test_targets_that_can_never_be_used_are_a_problem_of_their_source(file: Path) -> None:
    """They are refused as a whole: the source keeps its last targets."""

    def only_port_one(targets: Iterable[Target], _: bool) -> None:
        if any(target.port != 1 for target in targets):
            raise InputError("there is only one port")

    discovery = Discovery([target_file_source(file, "a")], only_port_one)
    (state,) = discovery.states

    async def scenario() -> None:
        _write(file, "10.0.0.1:1", "10.0.0.2:2")
        await _holds(lambda: state.problem.error is not None)
        assert _addresses(discovery) == ["10.0.0.1:1"]

    _run(discovery, scenario)


class _Watch:
    """A source that pushes its snapshots, as a watch of an API does."""

    name = "watch"
    jobs = ("watched",)

    def __init__(self, *snapshots: Snapshot) -> None:
        self._snapshots = snapshots

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        for snapshot in self._snapshots:
            yield snapshot


def test_a_source_can_be_a_watch() -> None:
    """Snapshots take effect as they come; a problem keeps the targets before it."""
    one, two = (Target(f"10.0.0.{number}", 1, SpiffeId.parse(ID), {}, "/") for number in (1, 2))
    first, second = Snapshot({"watched": (one,)}), Snapshot({"watched": (one, two)})
    broken = Snapshot({"watched": (one, two)}, InputError("the API answers 403"))
    discovery = Discovery([_Watch(first, second, broken)])

    async def life() -> None:
        await discovery.start()
        assert _addresses(discovery) == ["10.0.0.1:1"]
        with pytest.raises(ExceptionGroup) as ended:
            await discovery.follow()
        assert isinstance(ended.value.exceptions[0], TaskEndedError), "a source must not end in silence"

    asyncio.run(life())
    assert _addresses(discovery) == ["10.0.0.1:1", "10.0.0.2:1"]
    assert discovery.states[0].problem.count == 1


def test_targets_of_a_source_with_a_problem_take_effect() -> None:
    """One namespace out of reach must not freeze the targets of the others."""
    one, two = (Target(f"10.0.0.{number}", 1, SpiffeId.parse(ID), {}, "/") for number in (1, 2))
    partial = Snapshot({"watched": (one, two)}, InputError("the API answers 403"))
    discovery = Discovery([_Watch(Snapshot({"watched": (one,)}), partial)])

    async def life() -> None:
        await discovery.start()
        with pytest.raises(ExceptionGroup):
            await discovery.follow()

    asyncio.run(life())
    assert _addresses(discovery) == ["10.0.0.1:1", "10.0.0.2:1"]
    assert discovery.states[0].problem.count == 1
    assert discovery.changed.is_set()


def test_a_source_that_cannot_be_used_at_the_start_is_an_error(tmp_path: Path) -> None:
    """There are no last targets to keep."""
    with pytest.raises(InputError):
        asyncio.run(Discovery([target_file_source(tmp_path / "none.json", "a")]).start())


def test_every_job_is_there_even_without_targets(tmp_path: Path, file: Path) -> None:
    """HTTP SD must answer an empty list for it, not 404."""
    empty = tmp_path / "b.json"
    empty.write_text("[]")
    discovery = Discovery([target_file_source(file, "a"), target_file_source(empty, "b")])
    asyncio.run(discovery.start())
    assert {job: len(found) for job, found in discovery.targets().items()} == {"a": 1, "b": 0}


def _status(**changes: Any) -> bytes:
    workload = {
        "name": "httpbin", "namespace": "default", "pod": "httpbin-0", "spiffeId": ID,
        "targets": [{"job": MERGED_JOB, "url": "http://127.20.1.1:15092/stats/prometheus"}],
    }  # fmt: skip
    return json.dumps({"workloads": [workload | changes]}).encode()


def test_a_status_document_is_a_source() -> None:
    """Its targets by job, with who must answer; a target's URL may be http or https."""
    found = parse_status(_status(), "status.json")
    assert found.keys() == set(JOBS)
    ((target,),) = (found[MERGED_JOB],)
    assert (target.authority, str(target.spiffe_id)) == ("127.20.1.1:15092", ID)
    assert target.labels == {"namespace": "default", "pod": "httpbin-0", "workload": "httpbin"}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", _status(spiffeId="x"), _status(targets=[{"job": "other"}])]
)
def test_other_document_is_refused_as_a_source(data: bytes) -> None:
    """Nothing is guessed from what is no status document."""
    with pytest.raises(InputError):
        parse_status(data, "status.json")
