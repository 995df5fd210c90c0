"""Another scrape proxy's targets as a source: several proxies share one that watches the cluster."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from meshscrape.errors import MeshscrapeError, UnauthenticatedError, UnavailableError
from meshscrape.istio.host_port import host_port
from meshscrape.prometheus.target_files import parse_http_sd
from meshscrape.prometheus.targets import Target
from meshscrape.proxy.discovery import Snapshot
from meshscrape.proxy.http_sd import ETAG, TARGETS
from meshscrape.proxy.options import await_credentials, own_identity
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.credentials import layout_of
from meshscrape.system.files import read_input
from meshscrape.system.followed import Stamp, stamp_of
from meshscrape.system.http.client import FetchLimits, fetch_stream
from meshscrape.system.mutual_tls import admit_only, client_context

LOOK, PAUSE_FACTOR, LONGEST_PAUSE = 1.0, 5.0, 3.0
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


class SharedSource:
    """A source that asks another proxy for its targets again and again; unchanged answers are short."""

    def __init__(
        self, address: tuple[str, int], link: Callable[[], Awaitable[Link]], jobs: Sequence[str]
    ) -> None:
        self.jobs = tuple(jobs)
        self._address = address
        self._link = link
        self._tags: dict[str, str] = {}
        self._targets: dict[str, tuple[Target, ...]] = dict.fromkeys(jobs, ())

    @property
    def name(self) -> str:
        """Return the other proxy's address, for messages and as a label."""
        return f"scrape proxy at {host_port(*self._address)}"

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """See `Source.snapshots`. Raise MeshscrapeError when the first answer fails."""
        await self._ask()
        yield self._snapshot(None)
        problem = ""
        spent = 0.0
        while True:
            # A list of many targets that changes all the time takes a bounded part of a core.
            await asyncio.sleep(max(LOOK, min(LONGEST_PAUSE, PAUSE_FACTOR * spent)))
            began, spent = time.monotonic(), 0.0
            try:
                changed = await self._ask()
                spent = time.monotonic() - began
                if changed or problem:
                    yield self._snapshot(None)
                problem = ""
            except MeshscrapeError as error:
                if str(error) != problem:
                    problem = str(error)
                    yield self._snapshot(error)

    def _snapshot(self, problem: MeshscrapeError | None) -> Snapshot:
        return Snapshot(dict(self._targets), problem, divisible=True)

    async def _ask(self) -> bool:
        """Ask for the targets of every job; return whether some changed."""
        link = await self._link()
        changed = [await self._ask_for(job, link) for job in self.jobs]
        return any(changed)

    async def _ask_for(self, job: str, link: Link) -> bool:
        place = host_port(*self._address)
        url = f"{'https' if link.tls else 'http'}://{place}{TARGETS}{job}"
        headers = {**link.headers, "If-None-Match": self._tags.get(job, "")}
        admit = admit_only(link.expected, place) if link.expected else None
        async with fetch_stream(url, headers=headers, limits=_LIMITS, tls=link.tls, admit=admit) as response:
            body = b"".join([chunk async for chunk in response.body])
            if response.status == 304:
                return False
            if response.status in (401, 403):
                shown = "certificate" if link.tls else "token"
                raise UnauthenticatedError(
                    f"the other proxy does not accept the {shown}",
                    where=url,
                    remedy="add --share-with to it" if link.tls else "give it that proxy's token",
                )
            if response.status not in (200, 404):
                raise UnavailableError(f"the other proxy answered {response.status}", where=url)
            known = {(target.authority, target.path): target for target in self._targets[job]}
            # It answers 404 for a job that it does not have.
            found = parse_http_sd(body, url, known) if response.status == 200 else ()
            self._tags[job] = response.headers.get(ETAG.lower(), "")
        before, self._targets[job] = self._targets[job], found
        return found != before
