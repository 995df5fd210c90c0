"""Hold the cluster's Lease while a run changes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from meshscrape.cluster import lease as leases
from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.stopping import StoppedError
from meshscrape.errors import MeshscrapeError
from meshscrape.system.clock import utcnow
from meshscrape.system.tasks import background

_NOT_FOUND, _CONFLICT = 404, 409


@asynccontextmanager
async def holding(api: Api, holder: str) -> AsyncIterator[None]:
    """Hold the Lease. Raise StoppedError when another run holds it, also in the middle.

    An error while it is given back hides no other one: the Lease expires by itself.
    """
    await _hold(api, holder, holder)
    try:
        async with background() as tasks:
            tasks.start(partial(_renew, api, holder), "renewal of the Lease")
            yield
    except BaseException:
        with suppress(MeshscrapeError):
            await _hold(api, "", holder)
        raise
    await _hold(api, "", holder)


async def _renew(api: Api, holder: str) -> None:
    while True:
        await asyncio.sleep(leases.RENEW_SECONDS)
        await _hold(api, holder, holder)


async def _hold(api: Api, value: str, holder: str) -> None:
    """Write `value` as the Lease's holder, for the run `holder`."""
    try:
        found = await api.get(f"{leases.PATH}/{leases.NAME}")
    except ApiError as error:
        if error.status != _NOT_FOUND:
            raise
        await api.send("POST", leases.PATH, leases.lease(value, utcnow()))
        return
    if other := leases.other_holder(found, holder, utcnow()):
        raise _held(api, other)
    version = str((found.get("metadata") or {}).get("resourceVersion", ""))
    try:
        await api.send("PUT", f"{leases.PATH}/{leases.NAME}", leases.lease(value, utcnow(), version))
    except ApiError as error:
        if error.status != _CONFLICT:
            raise
        raise _held(api, "another run") from None


def _held(api: Api, other: str) -> StoppedError:
    return StoppedError(
        f"{other} changes this cluster now",
        where=api.access.place,
        remedy=f"wait until it has ended; a Lease of a killed run expires after {leases.SECONDS} s",
        code="held",
    )
