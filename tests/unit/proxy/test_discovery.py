"""Sources of targets as files that change, break and vanish."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from meshscrape.errors import InputError
from meshscrape.local.discovery import parse_status
from meshscrape.prometheus.targets import JOBS, MERGED_JOB
from meshscrape.proxy.discovery import Discovery, target_file_source

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


def test_a_source_is_read_when_it_changes(file: Path) -> None:
    """A change is noticed once; looking at the same content is no change."""
    discovery = Discovery([target_file_source(file, "a")])
    discovery.start()
    assert not discovery.look()
    _write(file, "10.0.0.1:1", "10.0.0.2:1")
    assert discovery.look()
    assert not discovery.look()
    assert _addresses(discovery) == ["10.0.0.1:1", "10.0.0.2:1"]


def test_touching_a_file_is_no_change(file: Path) -> None:
    """The same targets in a new file make no work."""
    discovery = Discovery([target_file_source(file, "a")])
    discovery.start()
    _write(file, "10.0.0.1:1")
    assert not discovery.look()


def test_a_broken_file_keeps_its_last_targets_and_is_tried_once(file: Path) -> None:
    """One failure per content, not one per look; a good file clears the problem."""
    discovery = Discovery([target_file_source(file, "a")])
    discovery.start()
    file.write_text("[{")
    for _ in range(3):
        assert not discovery.look()
    (state,) = discovery.states
    assert state.failures == 1 and str(file) in state.problem
    assert _addresses(discovery) == ["10.0.0.1:1"]
    _write(file, "10.0.0.3:1")
    assert discovery.look() and not state.problem


def test_a_vanished_file_keeps_its_last_targets(file: Path) -> None:
    """And is used again when it returns, with the same content too."""
    discovery = Discovery([target_file_source(file, "a")])
    discovery.start()
    file.unlink()
    for _ in range(3):
        assert not discovery.look()
    (state,) = discovery.states
    assert state.failures == 1 and state.problem
    _write(file, "10.0.0.1:1")
    discovery.look()
    assert not state.problem and _addresses(discovery) == ["10.0.0.1:1"]


def test_what_cannot_be_read_is_said_once_and_tried_until_it_can(file: Path) -> None:
    """The very same file is used again after something unreadable (here a directory) stood in its place."""
    discovery = Discovery([target_file_source(file, "a")])
    discovery.start()
    aside = file.rename(file.with_suffix(".aside"))
    file.mkdir()
    for _ in range(3):
        assert not discovery.look()
    (state,) = discovery.states
    assert state.failures == 1 and state.problem
    file.rmdir()
    aside.rename(file)
    discovery.look()
    assert not state.problem and _addresses(discovery) == ["10.0.0.1:1"]


def test_a_source_that_cannot_be_used_at_the_start_is_an_error(tmp_path: Path) -> None:
    """There are no last targets to keep."""
    with pytest.raises(InputError):
        Discovery([target_file_source(tmp_path / "none.json", "a")]).start()


def test_every_job_is_there_even_without_targets(tmp_path: Path, file: Path) -> None:
    """HTTP SD must answer an empty list for it, not 404."""
    empty = tmp_path / "b.json"
    empty.write_text("[]")
    discovery = Discovery([target_file_source(file, "a"), target_file_source(empty, "b")])
    discovery.start()
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
def test_another_document_is_no_source(data: bytes) -> None:
    """Nothing is guessed from what is no status document."""
    with pytest.raises(InputError):
        parse_status(data, "status.json")
