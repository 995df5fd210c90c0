"""The allow list in a file: followed while Envoy runs, so that letting a scraper in restarts nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.istio.allow_list import Scraper, parse_scrapers_file
from meshscrape.system.files import read_input

logger = logging.getLogger(__name__)

LOOK = 0.5
MAX_BYTES = 1 << 20


class ScrapersFile:
    """Follows the file; one that cannot be used leaves the last list in force and `current` False."""

    def __init__(self, path: Path) -> None:
        self.current = True
        self._path = path
        self._state: object = None
        self._problem = ""
        self._list: tuple[Scraper, ...] = ()

    def read(self) -> tuple[Scraper, ...]:
        """The list as it is in the file now. Raises InputError."""
        self._state = self._look()
        self._list = parse_scrapers_file(self._text(), str(self._path))
        return self._list

    async def follow(self, use: Callable[[tuple[Scraper, ...]], None]) -> None:
        """Call `use` with each new list, for ever."""
        while True:
            await asyncio.sleep(LOOK)
            state = self._look()
            if state == self._state and self.current:
                continue
            self._update(state, use)

    def _update(self, state: object, use: Callable[[tuple[Scraper, ...]], None]) -> None:
        before = self._list
        try:
            if self.read() != before:
                use(self._list)
                logger.info("the allow list has changed: %s", ", ".join(map(str, self._list)) or "nobody")
            self.current, self._problem = True, ""
        except MeshscrapeError as error:
            self._list, self.current = before, False
            if str(error) != self._problem:
                self._problem = str(error)
                logger.error("the allow list stays as it was: %s", error)

    def _text(self) -> str:
        data = read_input(self._path, "the allow list")
        # Cut off, an entry could be another one.
        if len(data) > MAX_BYTES:
            raise InputError(f"the allow list is longer than {MAX_BYTES} bytes", where=str(self._path))
        return data.decode("utf-8", "replace")

    def _look(self) -> tuple[int, int, int] | None:
        try:
            seen = os.stat(self._path)
        except OSError:
            return None
        return seen.st_ino, seen.st_mtime_ns, seen.st_size
