"""Follow the allow list in a file while Envoy runs, so that a change restarts nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from meshscrape.errors import MeshscrapeError
from meshscrape.istio.allow_list import Scraper, parse_scrapers_file
from meshscrape.system.followed import FollowedFile, Problem

logger = logging.getLogger(__name__)

LOOK = 0.5
MAX_BYTES = 1 << 20

Scrapers = tuple[Scraper, ...]


class AllowListFile:
    """Follows the file of the allow list. While the file is unusable, the last usable list stays in use."""

    def __init__(self, path: Path) -> None:
        self._file = FollowedFile(path, "the allow list", _parse, limit=MAX_BYTES, log=logger)
        self._unused = Problem("the previous allow list stays in use", logger)

    @property
    def current(self) -> bool:
        """Return whether the list in use is the one in the file."""
        return self._file.problem.error is None and self._unused.error is None

    def read(self) -> Scrapers:
        """Return the list in the file. Raise InputError if it is unusable."""
        return self._file.read()

    async def follow(self, use: Callable[[Scrapers], None]) -> None:
        """Call `use` with each new list, for ever; repeat the call if it fails (a full disk)."""
        in_force = self._file.value
        while True:
            await asyncio.sleep(LOOK)
            self._file.changed()
            if self._file.value == in_force:
                self._unused.clear()
                continue
            try:
                use(self._file.value)
            except MeshscrapeError as error:
                self._unused.note(error)
                continue
            in_force = self._file.value
            logger.info("the allow list has changed: %s", ", ".join(map(str, in_force)) or "nobody")


def _parse(content: bytes, where: str) -> Scrapers:
    return parse_scrapers_file(content.decode("utf-8", "replace"), where)
