"""An Envoy that could not watch its files is not started."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from meshscrape.errors import MeshscrapeError
from meshscrape.system.envoy_process import check_watches


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """inotify_init1 fails with the same error for want of descriptors as for want of instances."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_missing_inotify_instances_are_reported_with_a_remedy(few_descriptors: None) -> None:
    """Envoy itself would abort with a backtrace; nothing stays open after the look."""
    check_watches(1)
    with pytest.raises(MeshscrapeError, match=r"max_user_instances: .* inotify .*; raise the limit"):
        check_watches(1000)
    check_watches(1)
