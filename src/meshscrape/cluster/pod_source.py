"""Provide the pods of a cluster as a source of targets: list, watch, and list again when a watch breaks."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.pod_cache import Pod, PodCache, PodTargets
from meshscrape.errors import MeshscrapeError
from meshscrape.prometheus.targets import Target
from meshscrape.proxy.discovery import Snapshot
from meshscrape.system.tasks import background

log = logging.getLogger(__name__)

# Changes that come together, such as a rollout's, become one snapshot.
GATHER_SECONDS = 0.1
PAUSE_FACTOR, LONGEST_PAUSE = 4.0, 1.0
FIRST_RETRY, LAST_RETRY = 0.5, 30.0
GONE = 410

Rule: TypeAlias = Callable[[], Awaitable[Callable[[Pod], PodTargets]]]


@dataclass(frozen=True, slots=True)
class PodScope:
    """Which pods to watch: those of these namespaces, or of all; optionally only with some labels."""

    namespaces: tuple[str, ...] = ()
    selector: str = ""

    def paths(self) -> tuple[str, ...]:
        """Return the API paths to list and watch."""
        if not self.namespaces:
            return ("/api/v1/pods",)
        return tuple(f"/api/v1/namespaces/{namespace}/pods" for namespace in dict.fromkeys(self.namespaces))

    def query(self) -> dict[str, str]:
        """Return the query of every list and watch."""
        return {"labelSelector": self.selector} if self.selector else {}


class PodSource:
    """A source of targets (see `proxy.discovery.Source`) that follows the pods of a cluster.

    While the API server is away, the last targets stay and the snapshot names the problem.
    """

    def __init__(self, api: Api, scope: PodScope, jobs: Sequence[str], rule: Rule) -> None:
        """Prepare to follow pods. `rule` is awaited once at the start; it returns pod → targets."""
        self.jobs = tuple(jobs)
        self._api = api
        self._scope = scope
        self._rule = rule
        self._caches: tuple[PodCache, ...] = ()
        self._changed = asyncio.Event()
        self._problems: dict[str, MeshscrapeError] = {}

    @property
    def name(self) -> str:
        """Return the API server and the user, for messages and as a label."""
        return f"pods of {self._api.access.place}"

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield the targets of all pods, and again after every change of them or of the problem.

        Raises MeshscrapeError when the first list fails.
        """
        paths = self._scope.paths()
        targets_of = await self._rule()
        self._caches = tuple(PodCache(targets_of) for _ in paths)
        versions = [await self._list(path, cache) for path, cache in zip(paths, self._caches, strict=True)]
        yield self._snapshot()
        async with background() as tasks:
            for path, cache, version in zip(paths, self._caches, versions, strict=True):
                tasks.start(partial(self._follow, path, cache, version), f"watch of {path}")
            while True:
                await self._changed.wait()
                await asyncio.sleep(GATHER_SECONDS)
                self._changed.clear()
                began = time.monotonic()
                yield self._snapshot()
                # Each snapshot goes through all pods. The pause bounds the part of a core that this takes.
                await asyncio.sleep(min(LONGEST_PAUSE, PAUSE_FACTOR * (time.monotonic() - began)))

    def _snapshot(self) -> Snapshot:
        targets: dict[str, list[Target]] = {job: [] for job in self.jobs}
        for cache in self._caches:
            for job, own in cache.targets(self.jobs).items():
                targets[job].extend(own)
        # Pods of two identities can have one address: with the node's network, or until a status follows.
        # That costs their own scrapes and no others.
        problem = next(iter(self._problems.values()), None)
        return Snapshot({job: tuple(own) for job, own in targets.items()}, problem, divisible=True)

    async def _list(self, path: str, cache: PodCache) -> str:
        """Read all pods of a path; return the version at which to begin to watch."""
        cache.begin()
        version, changed = "", False
        async for page in self._api.pages(path, self._scope.query()):
            changed |= cache.put(page.items)
            version = page.version
        if cache.end() or changed:
            self._changed.set()
        return version

    async def _follow(self, path: str, cache: PodCache, version: str) -> None:
        """Watch a path for ever, from `version` on."""
        delay = FIRST_RETRY
        query = self._scope.query()
        while True:
            told = False
            try:
                if not version:
                    version = await self._list(path, cache)
                # A problem lasts until the server accepts a watch: one that is away may take long to fail.
                working = partial(self._note, path, None)
                async for event in self._api.watch(path, version, query, accepted=working):
                    version, delay, told = event.version or version, FIRST_RETRY, True
                    self._take(cache, event.kind, event.object)
            except ApiError as error:
                if error.status == GONE:
                    log.info("%s: too old to watch on; listing again", path)
                    version = ""
                else:
                    self._note(path, error)
            except MeshscrapeError as error:
                self._note(path, error)
            else:
                if told:
                    continue
            # Pause also after a watch without events: a server that ends every watch must not be flooded.
            # With jitter, many proxies do not all ask a restarted API server at the same moment.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            delay = min(delay * 2, LAST_RETRY)

    def _take(self, cache: PodCache, kind: str, pod: object) -> None:
        if kind == "BOOKMARK" or not isinstance(pod, dict):
            return
        if cache.remove(pod) if kind == "DELETED" else cache.put([pod]):
            self._changed.set()

    def _note(self, path: str, error: MeshscrapeError | None) -> None:
        before = self._problems.pop(path, None)
        if error is not None:
            self._problems[path] = error
        if str(before) != str(error):
            self._changed.set()
