"""A hostile hour: attacks on every part of a mesh by turns; no target goes down in any of them.

SOAK_MINUTES=60 makes it an hour.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from support.flooding import flooded
from support.full_disk import full_disk
from support.mesh import Up
from support.polling import eventually
from support.rotating import Serials, short_lived_mesh
from support.scrapes import Watch

pytestmark = pytest.mark.timeout(7200)
ATTACK_SECONDS = (5.0, 15.0)
SILENT = 1000

Attack = Callable[[Up, Path], AbstractContextManager[object]]


def ca_flood(up: Up, directory: Path) -> AbstractContextManager[object]:
    """Thousands of connections to the CA that prove nothing."""
    return flooded(up.document()["ca"]["address"], directory / "flood.log")


@contextlib.contextmanager
def silent_connections(up: Up, directory: Path) -> Iterator[None]:
    """Connections to the secure ports and to the scrape proxy that never say anything."""
    host, _, port = up.document()["scrapeProxy"]["address"].rpartition(":")
    pods = [(entry["address"], 15092) for entry in up.document()["workloads"] if entry["ports"]["secure"]]
    places = itertools.cycle([(host, int(port)), *pods])
    with contextlib.ExitStack() as held:
        for place in itertools.islice(places, SILENT):
            held.enter_context(socket.create_connection(place, 10))
        yield


@contextlib.contextmanager
def no_disk(up: Up, directory: Path) -> Iterator[None]:
    """`up`, the CA and every agent can write no file."""
    document = up.document()
    agents = [entry["pids"]["agent"] for entry in document["workloads"]]
    with full_disk(up.process.pid, document["ca"]["pid"], *(pid for pid in agents if pid)):
        yield


@contextlib.contextmanager
def odd_manifest(up: Up, directory: Path) -> Iterator[None]:
    """A named pipe, and then a broken text, in the place of the mesh's manifest."""
    manifest = directory / "mesh.yaml"
    aside = manifest.rename(directory / "aside.yaml")
    os.mkfifo(manifest)
    eventually(lambda: str(manifest) in up.document()["message"], what="the problem")
    manifest.unlink()
    manifest.write_text("[{")
    yield
    aside.replace(manifest)
    eventually(lambda: not up.document()["message"], what="no problem")


ATTACKS: dict[str, Attack] = {
    "a flood of the CA": ca_flood,
    "silent connections": silent_connections,
    "a full disk": no_disk,
    "an odd manifest": odd_manifest,
}


def test_attacks_by_turns_cost_no_scrape(tmp_path: Path, soak_seconds: float) -> None:
    """Certificates of 60 s are renewed meanwhile, and Prometheus misses no scrape of any target."""
    tried: Counter[str] = Counter()
    scrapes, end = 0, time.monotonic() + soak_seconds
    with short_lived_mesh(tmp_path, ttl="60s") as up:
        serials = Serials(up)
        for name in itertools.cycle(ATTACKS):
            if time.monotonic() > end:
                break
            watch, wake = Watch(up), time.monotonic() + random.uniform(*ATTACK_SECONDS)
            with ATTACKS[name](up, tmp_path):
                eventually(lambda wake=wake: time.monotonic() > wake, within=60)  # type: ignore[misc]
            account = watch.account()
            assert account.failed == 0 and account.fewest_samples > 0, f"{name}: {account}"
            assert up.process.poll() is None, name
            tried[name] += 1
            scrapes += account.scrapes
        serials.await_rotations(1)
    print(f"{dict(tried)}: {scrapes} scrapes, none lost")
