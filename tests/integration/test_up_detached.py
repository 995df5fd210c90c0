"""A mesh in the background: `up --detach`, `up --wait`, `down`, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents import faults
from support.mesh import (
    MESHSCRAPE,
    SECURE,
    meshscrape,
    processes_in,
    prometheus_manifest,
    workload_manifest,
    write_mesh,
)
from support.polling import eventually

SLEEPER = workload_manifest("sleeper", metadata=SECURE)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state directory whose mesh is stopped at the end, whatever happened."""
    path = tmp_path / "state"
    yield path
    meshscrape("down", "--state", str(path))
    assert processes_in(path) == set()


def test_detached_mesh_runs_until_down(state: Path, tmp_path: Path) -> None:
    """--detach returns when it is ready; a second one is refused and harms nothing; down stops all of it."""
    manifest = str(write_mesh(tmp_path / "mesh.yaml", SLEEPER))
    place = ("--state", str(state))
    done = meshscrape("up", "--detach", "-o", "json", manifest, *place, timeout=90)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["phase"], faults(document, "MeshStatus")) == ("Ready", [])
    assert os.getsid(document["pid"]) == document["pid"]
    pids = processes_in(state) | {document["pid"]}
    assert len(pids) >= 5

    second = meshscrape("up", "--detach", manifest, *place)
    assert second.returncode == 2
    assert str(document["pid"]) in second.stderr
    assert len(second.stderr.strip().splitlines()) == 2

    assert json.loads(meshscrape("status", "-o", "json", *place).stdout)["pid"] == document["pid"]
    stopped = meshscrape("down", *place)
    assert (stopped.returncode, stopped.stderr) == (0, "meshscrape: stopped\n")
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), within=10, what="no process")
    assert meshscrape("status", *place).returncode == 2
    again = meshscrape("down", *place)
    assert again.returncode == 0
    assert "no mesh is running" in again.stderr


def test_wait_returns_when_every_target_is_up(state: Path, tmp_path: Path) -> None:
    """`up --wait` says nothing is missing only when Prometheus scrapes everything."""
    manifest = str(write_mesh(tmp_path / "mesh.yaml", SLEEPER, prometheus_manifest()))
    words = ("up", "--wait", "-q", "--scrape-interval", "1s", manifest, "--state", str(state), "-o", "json")
    done = meshscrape(*words, timeout=110)
    assert done.returncode == 0, done.stderr
    targets = [each for entry in json.loads(done.stdout)["workloads"] for each in entry["targets"]]
    assert targets
    assert {each["health"] for each in targets} == {"up"}


def test_mesh_that_cannot_start_says_why(state: Path, tmp_path: Path) -> None:
    """The error of the mesh is the error of the command, and nothing runs afterwards."""
    done = meshscrape("up", "--detach", "-q", str(tmp_path / "absent.yaml"), "--state", str(state))
    assert done.returncode == 2
    assert "absent.yaml" in done.stderr
    assert done.stderr.count("\n") == 1
    assert processes_in(state) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_it_is_ready_leaves_no_orphan(
    number: signal.Signals, state: Path, tmp_path: Path
) -> None:
    """A starter that is interrupted stops the mesh that it has begun to start."""
    manifest = str(write_mesh(tmp_path / "mesh.yaml", SLEEPER))
    starter = subprocess.Popen(
        [*MESHSCRAPE, "up", "--detach", manifest, "--state", str(state)], stderr=subprocess.DEVNULL
    )
    eventually(lambda: processes_in(state), within=60, what="the first process of the mesh")
    starter.send_signal(number)
    assert starter.wait(60) in (0, 128 + number)
    if starter.returncode:
        assert processes_in(state) == set()
        assert meshscrape("status", "--state", str(state)).returncode == 2
