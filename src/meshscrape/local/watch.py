"""Notices that a file has changed, by looking: for every file system and every editor's way to save."""

from __future__ import annotations

import hashlib
from pathlib import Path


class FileWatch:
    """Remembers a file's content; `changed` says, once per change, that it is another one.

    A change counts when two looks in a row see the same file: one that is just being written, and so far
    declares only half of the mesh, must not stop the other half.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._seen = self._look()
        self._digest = self._hash()

    def changed(self) -> bool:
        """Whether the content differs from what was last seen; False while the file is missing."""
        stamp, before = self._look(), self._seen
        self._seen = stamp
        if stamp is None or stamp == self._stamp or stamp != before:
            return False
        self._stamp = stamp
        digest = self._hash()
        if digest is None or digest == self._digest:
            return False
        self._digest = digest
        return True

    def _look(self) -> tuple[int, int, int] | None:
        try:
            seen = self._path.stat()
        except OSError:
            return None
        return seen.st_mtime_ns, seen.st_size, seen.st_ino

    def _hash(self) -> bytes | None:
        try:
            return hashlib.sha256(self._path.read_bytes()).digest()
        except OSError:
            return None
