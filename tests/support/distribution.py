"""How tests are shared among the workers of pytest-xdist: what shares fixtures stays on one worker."""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

# Directories whose tests share a fixture of the package.
PACKAGES = frozenset({"tests/integration/example_mesh"})


def unit_of(nodeid: str) -> str:
    """Return what a worker gets as a whole: the test's file, or the package whose fixture the file shares."""
    file = nodeid.partition("::")[0]
    package = str(PurePosixPath(file).parent)
    return package if package in PACKAGES else file


class FilesOnOneWorker(LoadScopeScheduling):
    """Give each worker whole units, in the order of the collection.

    The scheduler decides, and not a mark on each test: xdist reads marks before a conftest can set them.
    """

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
