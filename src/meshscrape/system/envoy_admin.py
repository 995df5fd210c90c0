"""Envoy's admin interface on its Unix socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from meshscrape.errors import UnavailableError
from meshscrape.system.http.client import FetchLimits, fetch


class EnvoyAdmin:
    """A client of a running Envoy's admin interface; each call opens its own connection.

    Methods raise UnavailableError when Envoy answers with an error, or not within `timeout` seconds.
    """

    def __init__(self, socket_path: Path, *, timeout: float = 5.0) -> None:
        self._path = socket_path
        self._timeout = timeout

    async def ready(self) -> bool:
        """Return whether Envoy is LIVE: whether it answers, and answers 200 to `/ready`."""
        try:
            status, _ = await self.get("/ready")
        except UnavailableError:
            return False
        return status == 200

    async def config_dump(self) -> dict[str, Any]:
        """Return the whole configuration as Envoy runs it."""
        return await self._json("/config_dump")

    async def listeners(self) -> dict[str, Any]:
        """Return the listeners and the addresses that they are bound to."""
        return await self._json("/listeners?format=json")

    async def certs(self) -> dict[str, Any]:
        """Return the certificates in use, with serial numbers and expiry."""
        return await self._json("/certs")

    async def serials(self) -> set[int]:
        """Return the serial numbers of Envoy's own certificates in use, of every chain."""
        return serial_numbers(await self.certs())

    async def secrets(self) -> list[dict[str, Any]]:
        """Return the secrets in use (`Secret` messages), with private keys redacted."""
        dump = await self._json("/config_dump?mask=dynamic_active_secrets")
        active = [entry for part in dump["configs"] for entry in part.get("dynamic_active_secrets", ())]
        return [entry["secret"] for entry in active if "secret" in entry]

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Return counters and gauges whose name matches the regular expression `pattern` (default: all)."""
        query = f"&filter={quote(pattern, safe='')}" if pattern else ""
        document = await self._json(f"/stats?format=json{query}")
        return {stat["name"]: stat["value"] for stat in document["stats"] if "value" in stat}

    async def get(self, target: str) -> tuple[int, bytes]:
        """Send a GET of `target` (path and query); return status and body."""
        limits = FetchLimits(connect=self._timeout, read=self._timeout, total=self._timeout)
        try:
            return await fetch(f"http://envoy{target}", unix_socket=self._path, limits=limits)
        except UnavailableError as error:
            raise UnavailableError(f"Envoy's admin interface: {error.what}", where=str(self._path)) from error

    async def _json(self, target: str) -> dict[str, Any]:
        status, body = await self.get(target)
        if status != 200:
            raise UnavailableError(f"Envoy answers {status} to {target}", where=str(self._path))
        document: dict[str, Any] = json.loads(body)
        return document


def serial_numbers(certs: Mapping[str, Any]) -> set[int]:
    """Return the serial numbers of Envoy's own certificates in an answer to `/certs`."""
    chains = [entry.get("cert_chain", ()) for entry in certs.get("certificates", ())]
    return {int(certificate["serial_number"], 16) for chain in chains for certificate in chain}
