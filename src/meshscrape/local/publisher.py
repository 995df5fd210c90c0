"""Write the status document and Prometheus's target files of a running mesh.

If one of them cannot be written (a full disk), the mesh goes on. It shows the problem, and tries again within
a second.
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
    """Write what has changed since the last write; `files` are Prometheus's."""

    def __init__(self, state: StateDirectory, files: PrometheusFiles) -> None:
        self.files = files
        self._state = state
        self._targets = Problem("the target files stay as they were")
        self._status = Problem("the status document stays as it was")
        self._published: Mapping[str, Any] = {}

    def problems(self) -> list[str]:
        """Return the current write problems, one line each."""
        return [problem.text for problem in (self._targets, self._status) if problem.error]

    def write_targets(self, workloads: Iterable[ScrapedWorkload]) -> None:
        """Update the target files, or record why that failed."""
        with _noted(self._targets):
            self.files.write_targets(workloads)

    def publish(self, document: Mapping[str, Any]) -> None:
        """Update the status document, or record why that failed."""
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
