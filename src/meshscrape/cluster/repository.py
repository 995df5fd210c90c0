"""Wait until a change of an object that another tool tracks arrives from that tool's repository."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

from meshscrape.cluster.api import ApiError
from meshscrape.cluster.patience import Failure, Patience, failure_of
from meshscrape.cluster.stopping import StoppedError, few
from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
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
    asked when one of the objects has changed. A failure of the API server is said once, and the wait goes on.

    Raises StoppedError after `seconds`, when the API server stays away, and when it goes on to refuse the
    user's credentials or one of the requests.
    """
    tools = ", ".join(sorted(set(tracked.values())))
    told(f"{where}: waiting for {tools} to bring the change of {few(sorted(tracked))}")
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    patience = Patience(where, verb)
    arrival = _Arrival(tracked, read, plan)
    while True:
        began = clock()
        try:
            await look(where)
            if await arrival.advanced() and arrival.missing:
                told(f"{where}: {arrival}")
        except MeshscrapeError as error:
            failure = _failure(error)
            if failure is None:
                raise
            if patience.failed(failure, error.what, clock()):
                told(f"{where}: waiting on; the API server cannot be asked now: {error.what}; {arrival}")
        else:
            if patience.answered():
                told(f"{where}: the API server answers again")
            if arrival.reading is not None and not arrival.missing:
                return arrival.reading
        if began > deadline:
            raise StoppedError(
                f"{tools} brought no change of {few(arrival.missing)} within {seconds:.0f} s",
                where=where,
                remedy="put what `meshscrape render --out DIR --kustomize` writes into its repository, then "
                f"run {verb} again: what was applied stays",
                code="not-arrived",
            )
        await asyncio.sleep(max(_LEAST_REST_SECONDS, _REST_FACTOR * (clock() - began)))


class _Arrival(Generic[T]):
    """What has arrived so far: the objects as they were last read, and the last plan."""

    def __init__(
        self,
        tracked: Collection[Ref],
        read: Callable[[Ref], Awaitable[Object]],
        plan: Callable[[], Awaitable[tuple[T, Collection[Ref]]]],
    ) -> None:
        self.reading: T | None = None
        self.missing = sorted(tracked)
        self._tracked = sorted(tracked)
        self._read = read
        self._plan = plan
        self._known: dict[Ref, Object | None] = {}

    def __str__(self) -> str:
        return f"{len(self.missing)} of {len(self._tracked)} changes have not arrived"

    async def advanced(self) -> bool:
        """Read the objects whose change is missing; return whether they called for a new plan."""
        current = await _read_all(self.missing, self._read)
        if self.reading is not None and all(current[ref] == self._known[ref] for ref in self.missing):
            return False
        before = self.reading
        self.reading, left = await self._plan()
        # Only now: if the plan could not be made, the next round must see the difference again.
        self._known |= current
        self.missing = [ref for ref in self._tracked if ref in left]
        return before is not None


def _failure(error: MeshscrapeError) -> Failure | None:
    """Return why a request failed, if a later one may succeed or the user's rights are gone."""
    if isinstance(error, ApiError):
        return failure_of(error.status)
    if isinstance(error, InputError) and error.code == "forbidden":
        return "right"
    return "away" if isinstance(error, UnavailableError) else None


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

    objects = await asyncio.gather(*map(one, refs))
    return dict(zip(refs, objects, strict=True))
