"""Split chunks of bytes into whole lines of limited length."""

from __future__ import annotations


class LineBuffer:
    """Hold the unfinished last line between chunks, at most `max_line` bytes of it.

    A longer line is left out and counted, no matter how it is split into chunks.
    """

    __slots__ = ("_held", "_max_line", "_skipping", "_too_long")

    def __init__(self, max_line: int) -> None:
        self._held = bytearray()
        self._max_line = max_line
        self._skipping = False
        self._too_long = 0

    def feed(self, chunk: bytes) -> bytes:
        """Return the whole lines that `chunk` completes, each with its line feed; may be empty."""
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._hold(chunk)
            return b""
        start = 0
        if self._skipping:
            start = chunk.index(b"\n") + 1
            self._skipping = False
        # A chunk is copied at most once, because copies are a large part of the cost of a merge.
        lines = b"".join((self._held, memoryview(chunk)[start:end])) if self._held else chunk[start:end]
        self._held.clear()
        self._hold(chunk[end:])
        return self._within_limit(lines) if len(lines) > self._max_line else lines

    def taken_too_long(self) -> int:
        """Return how many lines were too long since the last call."""
        count, self._too_long = self._too_long, 0
        return count

    def rest(self) -> bytes:
        """Return the unfinished last line and forget it."""
        held = bytes(self._held)
        self._held.clear()
        return held

    def _hold(self, piece: bytes) -> None:
        if self._skipping:
            return
        self._held += piece
        if len(self._held) > self._max_line:
            self._held.clear()
            self._skipping = True
            self._too_long += 1

    def _within_limit(self, lines: bytes) -> bytes:
        """Return `lines` without the lines that are too long.

        It searches once per `max_line` bytes, not once per line.
        """
        kept: list[bytes] = []
        start = position = 0
        while len(lines) - position > self._max_line:
            last = lines.rfind(b"\n", position, position + self._max_line + 1)
            if last >= 0:
                position = last + 1
                continue
            kept.append(lines[start:position])
            position = start = lines.index(b"\n", position) + 1
            self._too_long += 1
        if not kept:
            return lines
        return b"".join((*kept, lines[start:]))
