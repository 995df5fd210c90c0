"""The example mesh with its Prometheus. It takes 7 s of processor time to its first scrape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.mesh import Up, running_up


# Not for the session: beside other tests' Envoys it would come near the inotify instances that a user has.
@pytest.fixture(scope="package")
def example_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The example mesh, ready; nobody may change it. Prometheus scrapes every second."""
    state = tmp_path_factory.mktemp("mesh") / "state"
    with running_up(state, "--scrape-interval", "1s", "--quiet") as up:
        up.wait_for_phase("Ready")
        yield up
