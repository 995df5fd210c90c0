"""Send a few requests through the gateway, so that the example mesh's statistics change."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from meshscrape.errors import MeshscrapeError
from meshscrape.system.http.client import FetchLimits, fetch

PATHS = (
    "/productpage",
    "/get",
    "/products/lamp",
    "/headers",
    "/api/v1/products",
    "/anything",
    "/products/none",
)
PAUSE = 0.5
_LIMITS = FetchLimits(total=5.0, body_bytes=1 << 20)


async def trickle(url: str) -> None:
    """Send about two requests per second below `url`, for ever. Failures show in the mesh's own metrics."""
    for path in itertools.cycle(PATHS):
        with contextlib.suppress(MeshscrapeError):
            await fetch(f"{url}{path}", limits=_LIMITS)
        await asyncio.sleep(PAUSE)
