"""Parts of a mesh die again and again, strangers hold connections for minutes, the merge is fed at random."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.bystanders import Bystander, Bystanders, fresh
from support.kills import BACK_WITHIN, assert_whole, kill, pids, programs, prometheus_pid
from support.mesh import SECURE, Up, prometheus_manifest, running_up, workload_manifest, write_mesh
from support.polling import eventually
from support.scrapes import Watch
from support.sidecar import SCRAPER, SERVER, running_sidecar
from support.wire import Wire

pytestmark = pytest.mark.timeout(7200)
VICTIMS = ("envoy", "agent", "ca", "prometheus", "proxy", "proxy's envoy")
# Supervisors allow five deaths of one part within a minute.
PAUSE = (3.0, 8.0)
PATH = "/stats/prometheus"


def test_kills_for_minutes_do_not_affect_other_processes(tmp_path: Path, soak_seconds: float) -> None:
    """Whatever is killed, the mesh is whole again; workloads that were not touched lose no scrape."""
    webs = [workload_manifest(name, metadata=SECURE) for name in ("web", "shop", "cart")]
    manifest = write_mesh(tmp_path / "mesh.yaml", prometheus_manifest(), *webs)
    kills, scrapes, end = 0, 0, time.monotonic() + soak_seconds
    with running_up(tmp_path / "state", str(manifest), "--scrape-interval", "500ms", "--quiet") as up:
        up.wait_for_phase()
        while time.monotonic() < end:
            watch, whole, victim = Watch(up), programs(up), random.choice(VICTIMS)
            wake = time.monotonic() + random.uniform(*PAUSE)
            kill(process(up, victim))
            kills += 1
            assert_whole(up, whole)
            up.wait_until_up()
            eventually(lambda wake=wake: time.monotonic() > wake)  # type: ignore[misc]
            if "proxy" not in victim:
                account = watch.account('workload=~"shop|cart"')
                assert account.failed == 0, victim
                scrapes += account.scrapes
    print(f"{kills} kills, {scrapes} scrapes of untouched workloads, none lost")


def process(up: Up, victim: str) -> int:
    """The process id of a part of the mesh."""
    document = up.document()
    match victim:
        case "ca":
            return int(document["ca"]["pid"])
        case "prometheus":
            return prometheus_pid(up)
        case "proxy" | "proxy's envoy":
            pid = document["scrapeProxy"]["pids"]["proxy" if victim == "proxy" else "envoy"]
        case _:
            pid = eventually(lambda: pids(up, "default/web")[victim], within=BACK_WITHIN)
    return int(pid)


def test_strangers_hold_connections_for_minutes(tmp_path: Path, soak_seconds: float) -> None:
    """3,000 connections at a time, and 500 that shook hands, again and again: the scraper gets in."""
    with running_sidecar(tmp_path) as sidecar, contextlib.ExitStack() as stack:
        scraper = sidecar.forge.leaf(SCRAPER).client_context()
        stranger = sidecar.forge.leaf(SERVER).client_context()
        everybody = Bystanders(
            Bystander("scraper", lambda: assert_served(fresh(sidecar.pod, 15091, scraper, PATH)))
        )
        stack.enter_context(everybody.running())
        end = time.monotonic() + soak_seconds
        while time.monotonic() < end:
            with contextlib.ExitStack() as held, everybody.unharmed():
                for _ in range(3000):
                    held.enter_context(socket.create_connection((sidecar.pod, 15091), 10))
                for _ in range(500):
                    held.enter_context(Wire(sidecar.pod, 15091, stranger))
                wake = time.monotonic() + 4
                eventually(lambda wake=wake: time.monotonic() > wake)  # type: ignore[misc]
        print(f"{everybody.check()} scrapes beside them, none refused")


def assert_served(body: bytes) -> None:
    """It is Envoy's statistics."""
    assert b"# TYPE envoy_" in body


def test_thousands_of_random_expositions(soak_seconds: float) -> None:
    """The properties of the merge, with as many examples as there is time for."""
    examples = str(max(500, int(soak_seconds * 10)))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--timeout=0",
        "tests/unit/exposition/test_merge_properties.py",
    ]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MESHSCRAPE_TEST_EXAMPLES": examples},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
