"""Limit what one HTTP/2 connection may send between two certificates, by counting its frames (pure).

Each frame costs the server far more than the peer: a PING of 17 bytes is parsed, answered and flushed, and a
HEADERS frame starts a task. The budget is many times what a request needs, and far below a flood.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_BYTES = 9
_HEADERS = 1


@dataclass(slots=True)
class FrameBudget:
    """How many frames, requests (HEADERS frames) and bytes are left. `renew` restores the full budget."""

    frames: int = 256
    requests: int = 8
    size: int = 131072
    _left: list[int] = field(default_factory=list)
    _head: bytearray = field(default_factory=bytearray)
    _skip: int = len(_PREFACE)

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Restore the full budget, because a certificate was issued."""
        self._left = [self.frames, self.requests, self.size]

    def spend(self, data: bytes) -> bool:
        """Count `data` as received, and return False if the budget is exceeded."""
        self._left[2] -= len(data)
        position, end = 0, len(data)
        while position < end and min(self._left) >= 0:
            if self._skip:
                step = min(self._skip, end - position)
                self._skip -= step
                position += step
                continue
            step = min(_HEADER_BYTES - len(self._head), end - position)
            self._head += data[position : position + step]
            position += step
            if len(self._head) == _HEADER_BYTES:
                self._skip = int.from_bytes(self._head[:3], "big")
                self._left[0] -= 1
                self._left[1] -= self._head[3] == _HEADERS
                self._head.clear()
        return min(self._left) >= 0
