"""Give the running Envoy exactly the current targets, and wait until its statistics confirm them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from meshscrape.envoy import scrape_proxy
from meshscrape.errors import UnavailableError
from meshscrape.istio.layouts import Layout
from meshscrape.proxy.expectations import Expectations
from meshscrape.proxy.host_table import HostTable
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.envoy_admin import EnvoyAdmin
from meshscrape.system.files import write_atomic

PATIENCE = 10.0
# Envoy sends no event, so its statistics are polled: less and less often, to leave a busy machine time.
_LOOK, _LONGEST_LOOK, _SLOWER = 0.01, 0.1, 1.3
_CLUSTERS_VERSION = "cluster_manager.cds.version_text"
_ROUTES_VERSION = f"http.{scrape_proxy.LISTENER}.rds.{scrape_proxy.ROUTES}.version_text"


class Routing:
    """Envoy's clusters and routes as files in `directory`.

    `credentials` maps trust domains to directories and to how their files are named.

    A connection to a target serves `requests_per_connection` scrapes; 0 means no limit.
    """

    def __init__(
        self,
        directory: Path,
        credentials: Mapping[str, tuple[str, Layout]],
        admin: EnvoyAdmin,
        requests_per_connection: int = 0,
        aliases: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._directory = directory
        self._credentials = credentials
        self._admin = admin
        self._requests_per_connection = requests_per_connection
        self._aliases = aliases
        # Envoy may have outlived another process like this one: versions must not repeat.
        self._run = time.time_ns()
        self._version = 0
        self._clusters: frozenset[SpiffeId] = frozenset()
        self._hosts = HostTable()

    def write(self, expected: Expectations, addresses: Iterable[str]) -> None:
        """Write all files before Envoy starts, for the targets at `addresses`.

        Raises InputError for targets that have no configuration.
        """
        version = f"{self._run}.0"
        clusters = self._clusters_of(expected.identities, version)
        self._know(expected, addresses)
        for name, resource in scrape_proxy.secret_files(self._credentials).items():
            self._write(name, _json(resource).encode())
        self._write(scrape_proxy.CLUSTERS_FILE, clusters)
        self._write(scrape_proxy.ROUTES_FILE, self._routes(version))
        self._clusters = expected.identities

    async def started(self) -> None:
        """Wait until Envoy uses what `write` wrote. Raise UnavailableError after `PATIENCE` seconds."""
        await self._await(_CLUSTERS_VERSION, f"{self._run}.0")
        await self._await(_ROUTES_VERSION, f"{self._run}.0")

    async def apply(self, expected: Expectations, changed: Iterable[str]) -> None:
        """Give the running Envoy exactly the expected targets, and return when it uses them.

        `changed` are the addresses where something differs from what was given last, here or to `write`. A
        cluster is added before the first route to it and removed after the last one, so scrapes of other
        targets never fail. Raises UnavailableError if Envoy does not apply them within `PATIENCE` seconds:
        call it again then, without the addresses.
        """
        wanted = expected.identities
        self._version += 1
        version = f"{self._run}.{self._version}"
        self._know(expected, changed)
        if not wanted <= self._clusters:
            await self._use_clusters(self._clusters | wanted, f"{version}+")
        self._write(scrape_proxy.ROUTES_FILE, self._routes(version))
        await self._await(_ROUTES_VERSION, version)
        if wanted != self._clusters:
            await self._use_clusters(wanted, version)

    async def _use_clusters(self, identities: frozenset[SpiffeId], version: str) -> None:
        self._write(scrape_proxy.CLUSTERS_FILE, self._clusters_of(identities, version))
        await self._await(_CLUSTERS_VERSION, version)
        self._clusters = identities

    def _clusters_of(self, identities: Iterable[SpiffeId], version: str) -> bytes:
        resource = scrape_proxy.clusters_resource(
            identities,
            self._credentials,
            str(self._directory),
            version,
            self._requests_per_connection,
            self._aliases,
        )
        return _json(resource).encode()

    def _know(self, expected: Expectations, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._hosts.put(address, expected.at(address))

    def _routes(self, version: str) -> bytes:
        return scrape_proxy.routes_file(self._hosts.encoded(), version)

    def _write(self, name: str, content: bytes) -> None:
        write_atomic(self._directory / name, content)

    async def _await(self, statistic: str, version: str) -> None:
        deadline, pause = time.monotonic() + PATIENCE, _LOOK
        while await self._seen(statistic) != version:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "Envoy has not applied the targets", where=statistic, remedy="see its log"
                )
            await asyncio.sleep(pause)
            pause = min(_LONGEST_LOOK, pause * _SLOWER)

    async def _seen(self, statistic: str) -> str:
        query = f"/stats?format=json&type=TextReadouts&filter=^{statistic}$"
        try:
            status, body = await self._admin.get(query)
        except UnavailableError:
            return ""
        statistics = json.loads(body)["stats"] if status == 200 else []
        return next((str(reading["value"]) for reading in statistics if reading.get("name") == statistic), "")


def _json(resource: Mapping[str, object]) -> str:
    return json.dumps(resource, separators=(",", ":"))
