"""What a running mesh writes for others: the status document and Prometheus' target files.

Neither ends the mesh when it cannot be written (the disk is full): the problem is shown, and the next attempt
comes within a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from meshscrape.errors import MeshscrapeError
from meshscrape.local.prometheus import PrometheusFiles
from meshscrape.local.state import StateDirectory
from meshscrape.prometheus.targets import ScrapedWorkload
from meshscrape.system.followed import Problem


class Publisher:
    """Writes what has changed since it was last written; `files` are Prometheus'."""

    def __init__(self, state: StateDirectory, files: PrometheusFiles) -> None:
        self.files = files
        self._state = state
        self._targets = Problem("the target files stay as they were")
        self._status = Problem("the status document stays as it was")
        self._published: Mapping[str, Any] = {}

    def problems(self) -> list[str]:
        """Return what cannot be written now, one line each."""
        return [problem.text for problem in (self._targets, self._status) if problem.error]

    def write_targets(self, workloads: Iterable[ScrapedWorkload]) -> None:
        """Bring the target files up to date, or note why that is not possible now."""
        with _noted(self._targets):
            self.files.write_targets(workloads)

    def publish(self, document: Mapping[str, Any]) -> None:
        """Bring the status document up to date, or note why that is not possible now."""
        if document != self._published:
            with _noted(self._status):
                self._state.publish(document)
                self._published = document


@contextlib.contextmanager
def _noted(problem: Problem) -> Iterator[None]:
    try:
        yield
    except MeshscrapeError as error:
        problem.note(error)
    else:
        problem.clear()
