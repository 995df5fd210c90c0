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
from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.envoy_admin import EnvoyAdmin
from meshscrape.system.files import write_atomic

_HOSTS = '"virtual_hosts":['
PATIENCE = 10.0
_LOOK = 0.01
_CLUSTERS_VERSION = "cluster_manager.cds.version_text"
_ROUTES_VERSION = f"http.{scrape_proxy.LISTENER}.rds.{scrape_proxy.ROUTES}.version_text"


class Routing:
    """Envoy's clusters and routes as files in `directory`; `credentials` maps trust domains to directories.

    A connection to a target serves `requests_per_connection` scrapes; 0 means no limit.
    """

    def __init__(
        self,
        directory: Path,
        credentials: Mapping[str, Path],
        admin: EnvoyAdmin,
        requests_per_connection: int = 0,
        aliases: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._directory = directory
        self._credentials = {name: str(path) for name, path in credentials.items()}
        self._admin = admin
        self._requests_per_connection = requests_per_connection
        self._aliases = aliases
        # Envoy may have outlived another process like this one: versions must not repeat.
        self._run = time.time_ns()
        self._version = 0
        self._clusters: frozenset[SpiffeId] = frozenset()
        self._hosts: dict[str, tuple[list[tuple[str, scrape_proxy.Expected]], str]] = {}

    def write(self, targets: Iterable[Target]) -> None:
        """Write all files before Envoy starts; InputError for targets that have no configuration."""
        known = list(targets)
        version = f"{self._run}.0"
        clusters = self._clusters_of(_identities(known), version)
        routes = self._routes_of(known, version)
        for name, resource in scrape_proxy.secret_files(self._credentials).items():
            self._write(name, _json(resource))
        self._write(scrape_proxy.CLUSTERS_FILE, clusters)
        self._write(scrape_proxy.ROUTES_FILE, routes)
        self._clusters = _identities(known)

    async def started(self) -> None:
        """Wait until Envoy uses what `write` wrote. UnavailableError after `PATIENCE` seconds."""
        await self._await(_CLUSTERS_VERSION, f"{self._run}.0")
        await self._await(_ROUTES_VERSION, f"{self._run}.0")

    async def apply(self, targets: Iterable[Target]) -> None:
        """Give the running Envoy exactly these targets, and return when it uses them.

        A cluster is added before the first route to it and removed after the last one, so scrapes of other
        targets never fail. InputError if the targets contradict each other (nothing is written then),
        UnavailableError if Envoy does not apply them within `PATIENCE` seconds.
        """
        known = list(targets)
        wanted = _identities(known)
        self._version += 1
        version = f"{self._run}.{self._version}"
        routes = self._routes_of(known, version)
        if not wanted <= self._clusters:
            await self._use_clusters(self._clusters | wanted, f"{version}+")
        self._write(scrape_proxy.ROUTES_FILE, routes)
        await self._await(_ROUTES_VERSION, version)
        if wanted != self._clusters:
            await self._use_clusters(wanted, version)

    async def _use_clusters(self, identities: frozenset[SpiffeId], version: str) -> None:
        self._write(scrape_proxy.CLUSTERS_FILE, self._clusters_of(identities, version))
        await self._await(_CLUSTERS_VERSION, version)
        self._clusters = identities

    def _clusters_of(self, identities: Iterable[SpiffeId], version: str) -> str:
        return _json(
            scrape_proxy.clusters_resource(
                identities,
                self._credentials,
                str(self._directory),
                version,
                self._requests_per_connection,
                self._aliases,
            )
        )

    def _routes_of(self, targets: Iterable[Target], version: str) -> str:
        """Return the routes as JSON, and reuse the text of unchanged hosts.

        With thousands of targets and one change, rendering this text would dominate the time.
        """
        addresses: dict[str, list[tuple[str, scrape_proxy.Expected]]] = {}
        for authority, expected in scrape_proxy.by_authority(targets).items():
            addresses.setdefault(authority.rpartition(":")[0], []).append((authority, expected))
        known, self._hosts = self._hosts, {}
        for address, members in addresses.items():
            present = known.get(address)
            if present is None or present[0] != members:
                present = members, ",".join(map(_json, scrape_proxy.hosts_at(members)))
            self._hosts[address] = present
        empty = _json(scrape_proxy.routes_resource([], version))
        return empty.replace(_HOSTS, _HOSTS + "".join(f"{text}," for _, text in self._hosts.values()), 1)

    def _write(self, name: str, text: str) -> None:
        write_atomic(self._directory / name, text.encode())

    async def _await(self, statistic: str, version: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while await self._seen(statistic) != version:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "Envoy has not applied the targets", where=statistic, remedy="see its log"
                )
            await asyncio.sleep(_LOOK)

    async def _seen(self, statistic: str) -> str:
        query = f"/stats?format=json&type=TextReadouts&filter=^{statistic}$"
        try:
            status, body = await self._admin.get(query)
        except UnavailableError:
            return ""
        found = json.loads(body)["stats"] if status == 200 else []
        return next((str(each["value"]) for each in found if each.get("name") == statistic), "")


def _json(resource: Mapping[str, object]) -> str:
    return json.dumps(resource, separators=(",", ":"))


def _identities(targets: Iterable[Target]) -> frozenset[SpiffeId]:
    return frozenset(target.spiffe_id for target in targets)
