"""Read Envoy's access log from a named pipe, one line per scrape."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshscrape.envoy.refusals import classify

_CHUNK = 1 << 16
# A line has a few hundred bytes. Data without a line end after this many bytes is not from our log format.
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Scrape:
    """One request: `route` is the requested target as the client wrote it; `reason` is empty on success.

    `connection` is Envoy's number of the connection to the target, 0 without one.
    """

    route: str
    reason: str
    details: str
    connection: int
    peer: str
    not_after: datetime | None


def parse_line(line: bytes) -> Scrape | None:
    """Parse a log line; return None if it is not in our JSON format."""
    try:
        fields: dict[str, Any] = json.loads(line)
        connection = int(fields["connection"] or 0)
        reason = classify(
            int(fields["status"] or 0),
            str(fields["flags"] or ""),
            str(fields["refusal"] or ""),
            connected=connection > 0,
        )
        ends = fields["not_after"]
        return Scrape(
            route=f"{fields['authority']}{fields['path']}",
            reason=reason,
            details=str(fields["tls"] or fields["details"] or ""),
            connection=connection,
            peer=str(fields["peer"] or ""),
            not_after=datetime.fromisoformat(ends).astimezone(UTC) if ends else None,
        )
    except (ValueError, KeyError, TypeError):
        return None


class LogPipe:
    """The reading end of a named pipe; it passes every whole line to `receive`."""

    def __init__(self, path: Path, receive: Callable[[bytes], None], *, keep: bool = False) -> None:
        """`keep`: use the pipe that is there, because a running Envoy writes to it."""
        self._receive = receive
        self._rest = b""
        if not keep:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            os.mkfifo(path, 0o600)
        # Open for writing too, so that the pipe survives Envoy's end, and Envoy never waits for a reader.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Stop reading."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            chunk = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest if len(rest) <= _LONGEST else b""
        for line in lines:
            self._receive(line)
