"""Another scrape proxy's targets as a source: several proxies share one that watches the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from meshscrape.errors import MeshscrapeError, UnauthenticatedError, UnavailableError
from meshscrape.istio.host_port import host_port
from meshscrape.prometheus.target_files import parse_http_sd
from meshscrape.prometheus.targets import Target
from meshscrape.proxy.discovery import Snapshot
from meshscrape.proxy.http_sd import ETAG, TARGETS
from meshscrape.system.files import read_input
from meshscrape.system.http.client import FetchLimits, fetch_stream

LOOK = 1.0
_LIMITS = FetchLimits(connect=3.0, read=10.0, total=30.0, body_bytes=1 << 26)


class SharedSource:
    """A source that asks the HTTP SD of another proxy again and again; unchanged answers are short."""

    def __init__(self, discovery: tuple[str, int], token_file: Path, jobs: Sequence[str]) -> None:
        self.jobs = tuple(jobs)
        self._discovery = discovery
        self._token_file = token_file
        self._tags: dict[str, str] = {}
        self._targets: dict[str, tuple[Target, ...]] = dict.fromkeys(jobs, ())

    @property
    def name(self) -> str:
        """Return the other proxy's address, for messages and as a label."""
        return f"scrape proxy at {host_port(*self._discovery)}"

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """See `Source.snapshots`. Raise MeshscrapeError when the first answer fails."""
        await self._ask()
        yield self._snapshot(None)
        problem = ""
        while True:
            await asyncio.sleep(LOOK)
            try:
                if await self._ask() or problem:
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
        token = read_input(self._token_file, "the token").decode("ascii", "replace").strip()
        changed = [await self._ask_for(job, token) for job in self.jobs]
        return any(changed)

    async def _ask_for(self, job: str, token: str) -> bool:
        url = f"http://{host_port(*self._discovery)}{TARGETS}{job}"
        headers = {"Authorization": f"Bearer {token}", "If-None-Match": self._tags.get(job, "")}
        async with fetch_stream(url, headers=headers, limits=_LIMITS) as response:
            body = b"".join([chunk async for chunk in response.body])
            if response.status == 304:
                return False
            if response.status == 401:
                raise UnauthenticatedError(
                    "the other proxy does not accept the token",
                    where=url,
                    remedy="give it that proxy's token",
                )
            if response.status not in (200, 404):
                raise UnavailableError(f"the other proxy answered {response.status}", where=url)
            # It answers 404 for a job that it does not have.
            found = parse_http_sd(body, url) if response.status == 200 else ()
            tag = response.headers.get(ETAG.lower(), "")
        known = {(target.authority, target.path): target for target in self._targets[job]}
        # Unchanged targets stay the same objects, so that a comparison by identity finds the others.
        self._targets[job] = tuple(
            there if (there := known.get((target.authority, target.path))) == target else target
            for target in found
        )
        self._tags[job] = tag
        return True
