"""A trickle of requests through the gateway, so that the example mesh's statistics move."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

PATHS = ("/", "/get", "/products/lamp", "/headers", "/api/v1/products", "/anything", "/products/none")
PAUSE = 0.5
BOUND = 5.0


async def trickle(address: str, port: int) -> None:
    """About two requests per second to `http://address:port`, for ever; failures are the mesh's to show."""
    for path in itertools.cycle(PATHS):
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(_get(address, port, path), BOUND)
        await asyncio.sleep(PAUSE)


async def _get(address: str, port: int, path: str) -> None:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        await writer.drain()
        while await reader.read(64 * 1024):
            pass
    finally:
        writer.close()
