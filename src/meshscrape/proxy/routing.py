"""Makes the running Envoy know exactly the targets: files first, then its own word that it uses them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from meshscrape.dataplane import scrape_proxy
from meshscrape.errors import UnavailableError
from meshscrape.scrape.targets import Target
from meshscrape.system.envoy_admin import EnvoyAdmin
from meshscrape.system.files import write_atomic

PATIENCE = 10.0
_LOOK = 0.01
_CLUSTERS_VERSION = "cluster_manager.cds.version_text"
_ROUTES_VERSION = f"http.{scrape_proxy.LISTENER}.rds.{scrape_proxy.ROUTES}.version_text"


class Routing:
    """Envoy's clusters and routes as files in `directory`; `credentials` has a directory by trust domain.

    A connection to a target serves `requests_per_connection` scrapes, or as many as it can (0).
    """

    def __init__(
        self,
        directory: Path,
        credentials: Mapping[str, Path],
        admin: EnvoyAdmin,
        requests_per_connection: int = 0,
    ) -> None:
        self._directory = directory
        self._credentials = {name: str(path) for name, path in credentials.items()}
        self._admin = admin
        self._requests_per_connection = requests_per_connection
        self._version = 0
        self._clusters: frozenset[str] = frozenset()

    def write(self, targets: Iterable[Target]) -> None:
        """Write everything for an Envoy that does not run yet. Raises InputError (see `dataplane`)."""
        known = list(targets)
        clusters = self._clusters_of(known, "0")
        routes = scrape_proxy.routes_resource(known, "0")
        files = scrape_proxy.secret_files(self._credentials)
        files |= {scrape_proxy.CLUSTERS_FILE: clusters, scrape_proxy.ROUTES_FILE: routes}
        for name, resource in files.items():
            self._write(name, resource)
        self._clusters = _identities(known)

    async def apply(self, before: Iterable[Target], targets: Iterable[Target]) -> None:
        """Make the running Envoy go from the targets `before` to `targets`; done when it uses them.

        A cluster is there before the first route that leads to it, and goes after the last one: a scrape of
        another target meets no gap. Raises InputError when the targets contradict each other (nothing
        is written then), UnavailableError when Envoy does not follow within `PATIENCE` seconds.
        """
        wanted, old = list(targets), list(before)
        self._version += 1
        version = str(self._version)
        routes = scrape_proxy.routes_resource(wanted, version)
        wide = self._clusters_of([*old, *wanted], f"{version}+")
        exact = self._clusters_of(wanted, version)
        if _identities(wanted) - self._clusters:
            self._write(scrape_proxy.CLUSTERS_FILE, wide)
            await self._await(_CLUSTERS_VERSION, f"{version}+")
            self._clusters = _identities([*old, *wanted])
        self._write(scrape_proxy.ROUTES_FILE, routes)
        await self._await(_ROUTES_VERSION, version)
        if self._clusters != _identities(wanted):
            self._write(scrape_proxy.CLUSTERS_FILE, exact)
            self._clusters = _identities(wanted)

    def _clusters_of(self, targets: Iterable[Target], version: str) -> dict[str, object]:
        return scrape_proxy.clusters_resource(
            targets, self._credentials, str(self._directory), version, self._requests_per_connection
        )

    def _write(self, name: str, resource: Mapping[str, object]) -> None:
        write_atomic(self._directory / name, json.dumps(resource, separators=(",", ":")).encode())

    async def _await(self, statistic: str, version: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while await self._seen(statistic) != version:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "Envoy does not follow the targets", where=statistic, remedy="see its log"
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


def _identities(targets: Iterable[Target]) -> frozenset[str]:
    return frozenset(str(target.spiffe_id) for target in targets)
