"""Watch the scrapes and the head series of every Prometheus while a run changes the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.losses import SeenTarget, TargetHistory, head_series, is_lost, seen_targets
from meshscrape.cluster.proof import prometheus_answer, targets_of
from meshscrape.cluster.scraped import prometheus_selectors
from meshscrape.cluster.stopping import StoppedError, few
from meshscrape.errors import UnavailableError
from meshscrape.kube.objects import Inventory, Object, Ref, as_list, dig
from meshscrape.observe.observation import Observation

# A look takes at most a sixth of the time: the answer about 10,000 targets has 15 MB.
_REST_FACTOR = 5
_LEAST_REST_SECONDS = 1.0


class ScrapeWatch:
    """Stops a run when more scrapes than `max_lost` are lost, or when a head block has `max_series` series.

    `max_series` of None means no bound. `verb` is what the user runs again. Before `begin`, it does nothing.
    """

    def __init__(
        self, api: Api, *, max_lost: int, max_series: int | None, verb: str, told: Callable[[str], None]
    ) -> None:
        self._api = api
        self._max_lost = max_lost
        self._max_series = max_series
        self._verb = verb
        self._told = told
        self._history = TargetHistory()
        self._selectors: list[tuple[str, str]] = []
        self._namespaces: frozenset[str] = frozenset()
        self._lost: list[SeenTarget] = []
        self._silent: set[Ref] = set()
        self._next = 0.0

    async def begin(
        self, observation: Observation, inventory: Inventory, namespaces: Collection[str]
    ) -> None:
        """Remember what is up now in `namespaces`.

        Raises StoppedError if there is a bound on head series and no Prometheus tells how many it has.
        """
        self._namespaces = frozenset(namespaces)
        self.follow(observation, inventory)
        if self._max_series is None:
            await self.look("before the first change")
            return
        told = [await self._series(pod) for pod in await self._pods()]
        if not any(number is not None for number in told):
            raise StoppedError(
                "no Prometheus tells how many head series it has",
                where="--max-head-series",
                remedy="omit the option: an agent has no head block; look at other scrapers yourself",
                code="unasked-scraper",
            )
        await self.look("before the first change")

    def follow(self, observation: Observation, inventory: Inventory) -> None:
        """Watch the Prometheus of a new reading of the cluster."""
        self._selectors = prometheus_selectors(observation, inventory)

    async def look(self, where: str) -> None:
        """Ask every Prometheus, unless the last look was just now. Raise StoppedError at a bound.

        A Prometheus that does not answer is left out: it may be restarting.
        """
        clock = asyncio.get_running_loop().time
        if not self._selectors or (began := clock()) < self._next:
            return
        for pod in await self._pods():
            await self._look_at(pod, where)
        self._next = clock() + max(_LEAST_REST_SECONDS, _REST_FACTOR * (clock() - began))

    async def _look_at(self, pod: Ref, where: str) -> None:
        try:
            document = await targets_of(self._api, pod)
        except StoppedError as error:
            if pod not in self._silent:
                self._told(f"{where}: scrapes are not watched there now: {error.where}: {error.what}")
            self._silent.add(pod)
            return
        self._silent.discard(pod)
        for target in self._history.suspects(list(seen_targets(document, self._namespaces))):
            if is_lost(target, await self._pod(target.pod)):
                self._lost.append(target)
                self._told(f"{where}: lost a scrape: {target}")
                self._judge_losses(where)
        if self._max_series is not None:
            self._judge_series(pod, await self._series(pod), where)

    def _judge_losses(self, where: str) -> None:
        if len(self._lost) > self._max_lost:
            count = len(self._lost)
            raise StoppedError(
                f"{count} scrape{'s' * (count != 1)} lost: {few(self._lost)}",
                where=where,
                remedy=f"see why, then run {self._verb} again to go on (--max-lost-scrapes allows more); "
                f"{self._back()}",
                code="scrape-lost",
            )

    def _judge_series(self, pod: Ref, number: int | None, where: str) -> None:
        if number is not None and self._max_series is not None and number >= self._max_series:
            raise StoppedError(
                f"{pod} has {number} head series, the bound is {self._max_series}",
                where=where,
                remedy="wait until Prometheus has written a block (every two hours), or raise "
                f"--max-head-series; then run {self._verb} again to go on; {self._back()}",
                code="head-series",
            )

    def _back(self) -> str:
        back = "remove" if self._verb == "apply" else "apply"
        return f"the way back is `meshscrape {back}`"

    async def _pods(self) -> list[Ref]:
        """Return the running pods of every Prometheus, as they are now."""
        pods = []
        for namespace, selector in self._selectors:
            answer = await self._api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
            for item in as_list(answer.get("items")):
                if dig(item, "status", "phase") == "Running" and not dig(
                    item, "metadata", "deletionTimestamp"
                ):
                    pods.append(Ref("", "Pod", namespace, str(dig(item, "metadata", "name"))))
        return pods

    async def _pod(self, ref: Ref) -> Object | None:
        """Return a pod as it is now. A list needs no other right than the reading did."""
        path = f"/api/v1/namespaces/{ref.namespace}/pods"
        answer = await self._api.get(path, fieldSelector=f"metadata.name={ref.name}")
        items = as_list(answer.get("items"))
        return items[0] if items else None

    async def _series(self, pod: Ref) -> int | None:
        try:
            document: Any = await prometheus_answer(self._api, pod, "/api/v1/status/tsdb", limit="1")
        except (ApiError, UnavailableError):
            return None
        return head_series(document)
