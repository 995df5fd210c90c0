"""Ask every Prometheus, through the API server, whether the targets that a plan moves are up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.scraped import (
    API_PORT,
    expected_targets,
    health_by_target,
    left_targets,
    prometheus_pods,
)
from meshscrape.cluster.stopping import StoppedError, few
from meshscrape.errors import UnavailableError
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe.model import Over
from meshscrape.observe.observation import Observation

POLL_SECONDS = 1.0


async def await_moved(
    api: Api,
    observation: Observation,
    inventory: Inventory,
    over: Over,
    *,
    where: str,
    seconds: float,
    again: str,
    vouched: bool,
    told: Callable[[str], None],
    look: Callable[[str], Awaitable[None]],
) -> None:
    """Wait until every Prometheus has all moved targets up, and none where they were before.

    Moved are the targets over mutual TLS; when a plan is taken back (`over` is `plaintext`), those in
    plaintext. Raises StoppedError after `seconds`, or if a scraper cannot be asked, unless the user has
    `vouched` for it. `again` is what the user runs again. `look` watches the scrapes meanwhile.
    """
    refs = [workload.ref for workload in observation.workloads]
    pods, others = prometheus_pods(observation, inventory)
    expected = expected_targets(observation, refs, over, others if vouched else ())
    left = left_targets(observation, expected) if over == "plaintext" else frozenset()
    if others and expected and not vouched:
        raise StoppedError(
            f"{few(others)} cannot be asked which targets are up",
            where=where,
            remedy=f"look there, then name the phase: {again} --phase",
            code="unasked-scraper",
        )
    deadline = asyncio.get_running_loop().time() + seconds
    while expected:
        try:
            health = health_by_target([await targets_of(api, pod) for pod in pods])
        except StoppedError as error:
            if not vouched:
                raise
            told(f"{where}: targets are not asked for: {error}")
            return
        down = [place for place in expected if health.get(place) != "up"]
        down += sorted(left & health.keys())
        if not down:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise StoppedError(
                f"not moved within {seconds:.0f} s: {few(down)}",
                where=where,
                remedy=f"see them on Prometheus' page of targets, then run {again} again",
                code="targets-down",
            )
        told(f"{where}: waiting for {len(down)} of {len(expected)} targets to move")
        await look(where)
        await asyncio.sleep(POLL_SECONDS)


async def targets_of(api: Api, pod: Ref) -> Any:
    """Return a Prometheus's answer about its targets. Raise StoppedError if it cannot be asked."""
    try:
        return await prometheus_answer(api, pod, "/api/v1/targets", state="active")
    except (ApiError, UnavailableError) as error:
        raise StoppedError(
            f"Prometheus' API cannot be read through the API server: {error.what}",
            where=str(pod),
            remedy="look at its targets, then name the phase with --phase",
            code="unasked-scraper",
        ) from None


async def prometheus_answer(api: Api, pod: Ref, path: str, **query: str) -> Any:
    """Return the answer of a Prometheus pod's own API, asked through the API server."""
    base = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}:{API_PORT}/proxy"
    return await api.get(f"{base}{path}", **query)
