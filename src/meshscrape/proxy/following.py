"""Follow another scrape proxy: its targets as a source, so that several proxies share one watch."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from meshscrape.errors import MeshscrapeError, UnauthenticatedError, UnavailableError
from meshscrape.istio.host_port import host_port
from meshscrape.proxy.changes import Replica, pause_after
from meshscrape.proxy.discovery import Snapshot
from meshscrape.proxy.http_sd import CHANGES
from meshscrape.proxy.options import await_credentials, own_identity
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.credentials import layout_of
from meshscrape.system.files import read_input
from meshscrape.system.followed import Stamp, stamp_of
from meshscrape.system.http.client import FetchLimits, fetch_stream
from meshscrape.system.mutual_tls import admit_only, client_context

# How often the other proxy is asked while it fails, or does not hold requests (seconds).
LOOK = 1.0
# `read` is longer than the other proxy holds a request.
_LIMITS = FetchLimits(connect=3.0, read=10.0, total=30.0, body_bytes=1 << 26)


class Link(NamedTuple):
    """How to ask the other proxy: headers, and for TLS a context and the expected SPIFFE ID."""

    headers: Mapping[str, str]
    tls: ssl.SSLContext | None = None
    expected: SpiffeId | None = None


class VerifiedLink:
    """Mutual TLS with the first of `credentials`, to a proxy with the SPIFFE ID `expected`.

    Without `expected` it is the certificate's own. The files are read again when they change.
    """

    def __init__(
        self, credentials: Sequence[tuple[str, Path]], expected: SpiffeId | None, patience: float
    ) -> None:
        self._credentials = credentials
        self._expected = expected
        self._patience = patience
        self._stamps: tuple[Stamp | None, ...] = ()
        self._link: Link | None = None

    async def __call__(self) -> Link:
        """Return the link. Raise InputError for credentials that are not there or cannot be used."""
        if self._link is None:
            await await_credentials(self._credentials, self._patience)
        directory = self._credentials[0][1]
        stamps = tuple(stamp_of(directory / name) for name in layout_of(directory)[:3])
        if self._link is None or stamps != self._stamps:
            expected = self._expected or own_identity(directory)
            self._link, self._stamps = Link({}, client_context(directory), expected), stamps
        return self._link


def plaintext_link(token_file: Path) -> Callable[[], Awaitable[Link]]:
    """Return the way in plaintext, with the other proxy's token."""

    async def link() -> Link:
        token = read_input(token_file, "the token").decode("ascii", "replace").strip()
        return Link({"Authorization": f"Bearer {token}"})

    return link


class FollowedProxy:
    """A source that asks another proxy what changed, again and again.

    The other proxy holds each request until something changes, so a change arrives at once.
    """

    def __init__(
        self, address: tuple[str, int], link: Callable[[], Awaitable[Link]], jobs: Sequence[str]
    ) -> None:
        self.jobs = tuple(jobs)
        self._place = host_port(*address)
        self._link = link
        self._replica = Replica(jobs)

    @property
    def name(self) -> str:
        """Return the other proxy's address, for messages and as a label."""
        return f"scrape proxy at {self._place}"

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """See `Source.snapshots`. Raise MeshscrapeError when the first answer fails."""
        await self._ask()
        yield self._snapshot(None)
        problem = ""
        while True:
            began = time.monotonic()
            try:
                reading = await self._ask()
            except MeshscrapeError as error:
                if str(error) != problem:
                    problem = str(error)
                    yield self._snapshot(error)
                await asyncio.sleep(LOOK)
                continue
            received = time.monotonic()
            if problem or reading.changed:
                problem = ""
                yield self._snapshot(None)
            if reading.empty:
                # The other proxy holds a request for longer, unless it holds too many.
                await asyncio.sleep(max(0.0, LOOK - (received - began)))
            else:
                used = reading.seconds + time.monotonic() - received
                await asyncio.sleep(pause_after(used, whole=reading.whole))

    def _snapshot(self, problem: MeshscrapeError | None) -> Snapshot:
        return Snapshot(self._replica.targets(), problem, divisible=True)

    async def _ask(self) -> _Reading:
        """Ask what changed since the last answer, and take it."""
        link = await self._link()
        url = f"{'https' if link.tls else 'http'}://{self._place}{CHANGES}"
        version = self._replica.version
        headers = {**link.headers, **({"If-None-Match": f'"{version}"'} if version else {})}
        admit = admit_only(link.expected, self._place) if link.expected else None
        async with fetch_stream(url, headers=headers, limits=_LIMITS, tls=link.tls, admit=admit) as response:
            if response.status == 304 and version:
                return _Reading()
            if response.status != 200:
                raise _refusal(response.status, url, verified=link.tls is not None)
            began = time.monotonic()
            answer = self._replica.begin(url)
            async for chunk in response.body:
                answer.feed(chunk)
        changed = self._replica.take(answer)
        return _Reading(changed, False, answer.is_whole, time.monotonic() - began)


class _Reading(NamedTuple):
    """What came of a request, and how many seconds the answer took."""

    changed: bool = False
    empty: bool = True
    whole: bool = False
    seconds: float = 0.0


def _refusal(status: int, url: str, *, verified: bool) -> MeshscrapeError:
    """Return the error for a status without targets; `verified` means over mutual TLS."""
    if status in (401, 403):
        return UnauthenticatedError(
            f"the other proxy does not accept the {'certificate' if verified else 'token'}",
            where=url,
            remedy="add --share-with to it" if verified else "give it that proxy's token",
        )
    remedy = "it must have the same version as this one" if status == 404 else ""
    return UnavailableError(f"the other proxy answered {status}", where=url, remedy=remedy)
