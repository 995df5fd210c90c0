"""Tell followers the targets: what changed since the version that they know, as soon as it changes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

from meshscrape.prometheus.targets import Target
from meshscrape.proxy.changes import ChangeLog
from meshscrape.proxy.http_sd import ETAG
from meshscrape.system.http.server import Request, Response

# A request for an unchanged version is answered after this time. A follower waits for twice as long.
HOLD_SECONDS = 5.0
# More followers than these are answered at once, so that held requests cannot use up the server's limit.
MOST_HELD = 8
_CHUNK = 1 << 16


class TargetSharing:
    """The answers of `/changes`.

    `targets` returns all targets by job. Those that did not change are the same objects as before.
    """

    def __init__(self, targets: Callable[[], Mapping[str, Sequence[Sequence[Target]]]]) -> None:
        self._targets = targets
        self._log = ChangeLog(secrets.token_hex(8))
        self._stale = True
        self._news = asyncio.Event()
        self._held = 0

    def changed(self) -> None:
        """Answer the held requests: the targets may have changed."""
        self._stale = True
        self._news.set()
        self._news = asyncio.Event()

    async def answer(self, request: Request) -> Response:
        """Return what changed since the version in `If-None-Match`, or all targets if it is unknown.

        While that version is the current one, the request is held for a bounded time, then answered with 304.
        """
        known = request.headers.get("if-none-match", "").strip('"')
        if known == self._version() and self._held < MOST_HELD:
            await self._hold(known)
        version = self._version()
        headers = {ETAG: f'"{version}"'}
        if known == version:
            return Response(304, headers=headers)
        lines = self._log.since(known)
        return Response(200, _chunks(lines), content_type="application/x-ndjson", headers=headers)

    def _version(self) -> str:
        """Return the current version. The difference is made here, so without followers it costs nothing."""
        if self._stale:
            self._log.update(self._targets())
            self._stale = False
        return self._log.version

    async def _hold(self, version: str) -> None:
        self._held += 1
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                while version == self._version():
                    await self._news.wait()
        except TimeoutError:
            pass
        finally:
            self._held -= 1


async def _chunks(lines: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines in chunks of a bounded size; other requests have their turn in between."""
    gathered = bytearray()
    for line in lines:
        gathered += line
        if len(gathered) >= _CHUNK:
            yield bytes(gathered)
            gathered.clear()
            await asyncio.sleep(0)
    yield bytes(gathered)
