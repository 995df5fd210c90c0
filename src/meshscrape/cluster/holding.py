"""Hold the cluster's Lease while a run changes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from meshscrape.cluster import lease as leases
from meshscrape.cluster.api import Api, ApiError
from meshscrape.cluster.stopping import StoppedError
from meshscrape.errors import MeshscrapeError
from meshscrape.system.clock import utcnow
from meshscrape.system.tasks import background

_NOT_FOUND, _CONFLICT = 404, 409


class HeldLease:
    """The Lease of a run that holds it."""

    def __init__(self, api: Api, holder: str) -> None:
        self._api = api
        self._holder = holder
        self._patient = False

    async def renew(self) -> None:
        """Renew the Lease at an interval, for ever. Raise StoppedError when another run holds it."""
        while True:
            await asyncio.sleep(leases.RENEW_SECONDS)
            try:
                await self.confirm()
            except StoppedError:
                raise
            except MeshscrapeError:
                if not self._patient:
                    raise

    async def confirm(self) -> None:
        """Renew the Lease now. Raise StoppedError when another run holds it."""
        await _hold(self._api, self._holder, self._holder)

    @asynccontextmanager
    async def patient(self) -> AsyncIterator[None]:
        """Let a block, which writes nothing, go on while the Lease cannot be renewed.

        The Lease may expire meanwhile. So leaving the block confirms it: nothing is written if another run
        holds it by then.
        """
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
        await self.confirm()


@asynccontextmanager
async def holding(api: Api, holder: str) -> AsyncIterator[HeldLease]:
    """Hold the Lease. Raise StoppedError when another run holds it, also in the middle.

    An error while it is given back hides no other one: the Lease expires by itself.
    """
    held = HeldLease(api, holder)
    await held.confirm()
    try:
        async with background() as tasks:
            tasks.start(held.renew, "renewal of the Lease")
            yield held
    except BaseException:
        with suppress(MeshscrapeError):
            await _hold(api, "", holder)
        raise
    await _hold(api, "", holder)


async def _hold(api: Api, value: str, holder: str) -> None:
    """Write `value` as the Lease's holder, for the run `holder`."""
    try:
        lease = await api.get(f"{leases.PATH}/{leases.NAME}")
    except ApiError as error:
        if error.status != _NOT_FOUND:
            raise
        await api.send("POST", leases.PATH, leases.lease(value, utcnow()))
        return
    if other := leases.other_holder(lease, holder, utcnow()):
        raise _held(api, other)
    version = str((lease.get("metadata") or {}).get("resourceVersion", ""))
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
