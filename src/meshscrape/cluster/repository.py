"""Wait until a change of an object that another tool tracks arrives from that tool's repository."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeVar

from meshscrape.cluster.api import ApiError
from meshscrape.cluster.stopping import StoppedError, few
from meshscrape.kube.objects import Object, Ref, stable

_NOT_FOUND = 404
# One round of reading takes at most a fifth of the time.
_REST_FACTOR = 5
_LEAST_REST_SECONDS = 2.0
_AT_ONCE = 4
T = TypeVar("T")


async def await_repository(
    tracked: Mapping[Ref, str],
    *,
    read: Callable[[Ref], Awaitable[Object]],
    plan: Callable[[], Awaitable[tuple[T, Collection[Ref]]]],
    look: Callable[[str], Awaitable[None]],
    told: Callable[[str], None],
    where: str,
    seconds: float,
    verb: str,
) -> T:
    """Wait until a new plan changes none of the `tracked` objects, which have the name of their tool.

    `plan` reads the cluster and returns the reading with the objects that are still to be changed. It is
    asked when one of the objects has changed. Raises StoppedError after `seconds`.
    """
    tools = ", ".join(sorted(set(tracked.values())))
    told(f"{where}: waiting for {tools} to bring the change of {few(sorted(tracked))}")
    deadline = asyncio.get_running_loop().time() + seconds
    seen = await _read_all(tracked, read)
    reading, left = await plan()
    while still := sorted(ref for ref in tracked if ref in left):
        began = asyncio.get_running_loop().time()
        if began > deadline:
            raise StoppedError(
                f"{tools} brought no change of {few(still)} within {seconds:.0f} s",
                where=where,
                remedy="put what `meshscrape render --out DIR --kustomize` writes into its repository, then "
                f"run {verb} again: what was applied stays",
                code="not-arrived",
            )
        await look(where)
        now = await _read_all(still, read)
        if any(now[ref] != seen[ref] for ref in still):
            seen |= now
            reading, left = await plan()
            told(f"{where}: {sum(ref in left for ref in tracked)} of {len(tracked)} changes have not arrived")
        took = asyncio.get_running_loop().time() - began
        await asyncio.sleep(max(_LEAST_REST_SECONDS, _REST_FACTOR * took))
    return reading


async def _read_all(
    refs: Collection[Ref], read: Callable[[Ref], Awaitable[Object]]
) -> dict[Ref, Object | None]:
    """Return the objects without what changes by itself; None for one that is not there."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(ref: Ref) -> Object | None:
        async with turns:
            try:
                return stable(await read(ref))
            except ApiError as error:
                if error.status != _NOT_FOUND:
                    raise
                return None

    found = await asyncio.gather(*map(one, refs))
    return dict(zip(refs, found, strict=True))
