"""Envoy's admin interface on its Unix socket."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h11

from meshscrape.errors import UnavailableError

_CHUNK = 64 * 1024


class EnvoyAdmin:
    """Asks a running Envoy; every question is a connection of its own.

    Raises UnavailableError when nobody answers within `timeout` seconds, or answers with an error.
    """

    def __init__(self, socket_path: Path, *, timeout: float = 5.0) -> None:
        self._path = socket_path
        self._timeout = timeout

    async def ready(self) -> bool:
        """Whether Envoy is LIVE (`/ready` answers 200 only then); False too when nobody answers."""
        try:
            status, _ = await self.get("/ready")
        except UnavailableError:
            return False
        return status == 200

    async def config_dump(self) -> dict[str, Any]:
        """The whole configuration as Envoy runs it."""
        return await self._json("/config_dump")

    async def listeners(self) -> dict[str, Any]:
        """The listeners and the addresses that they are bound to."""
        return await self._json("/listeners?format=json")

    async def certs(self) -> dict[str, Any]:
        """The certificates in use, with serial numbers and expiry."""
        return await self._json("/certs")

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Counters and gauges whose name matches the regular expression `pattern` (all without one)."""
        query = f"&filter={quote(pattern, safe='')}" if pattern else ""
        document = await self._json(f"/stats?format=json{query}")
        return {stat["name"]: stat["value"] for stat in document["stats"] if "value" in stat}

    async def get(self, target: str) -> tuple[int, bytes]:
        """One GET of `target` (path and query): status and body."""
        try:
            return await asyncio.wait_for(self._exchange(target), self._timeout)
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            raise UnavailableError(
                f"Envoy's admin interface does not answer ({error or type(error).__name__})",
                where=str(self._path),
            ) from error

    async def _json(self, target: str) -> dict[str, Any]:
        status, body = await self.get(target)
        if status != 200:
            raise UnavailableError(f"Envoy answers {status} to {target}", where=str(self._path))
        document: dict[str, Any] = json.loads(body)
        return document

    async def _exchange(self, target: str) -> tuple[int, bytes]:
        reader, writer = await self._connect()
        try:
            connection = h11.Connection(h11.CLIENT)
            headers = [("host", "envoy"), ("connection", "close")]
            request = h11.Request(method="GET", target=target, headers=headers)
            writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
            await writer.drain()
            return await _response(connection, reader)
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # A socket's address has room for 107 bytes; a descriptor of the directory makes any path short.
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)


async def _response(connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[int, bytes]:
    status, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            return status, bytes(body)
