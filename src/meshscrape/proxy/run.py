"""The scrape proxy's life: credentials, targets, Envoy, HTTP SD; and a complete stop at every stage."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from meshscrape.envoy import scrape_proxy
from meshscrape.envoy.bootstrap import envoy_arguments
from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.prometheus.targets import Target
from meshscrape.proxy import metrics
from meshscrape.proxy.access import LogPipe, parse_line
from meshscrape.proxy.discovery import Discovery, uncontested
from meshscrape.proxy.http_sd import HttpDiscovery, handler
from meshscrape.proxy.options import (
    ProxyOptions,
    await_credentials,
    certificate_ends,
    check_addresses,
    load_token,
)
from meshscrape.proxy.routing import Routing
from meshscrape.system.clock import utcnow
from meshscrape.system.envoy_admin import EnvoyAdmin
from meshscrape.system.envoy_process import find_envoy, start_envoy
from meshscrape.system.files import DirectoryLock, private_dir, remove_staged, write_atomic
from meshscrape.system.http.server import HttpServer
from meshscrape.system.life import run_until_signal
from meshscrape.system.ports import check_free
from meshscrape.system.processes import Process
from meshscrape.system.supervisor import Policy, Supervisor

logger = logging.getLogger(__name__)

ADMIN_SOCKET = "admin.sock"
BOOTSTRAP = "bootstrap.json"
PIPE = "access.pipe"
LOG = "envoy.log"
# The first restart comes at once: scrapes fail meanwhile.
ENVOY_POLICY = Policy(restarts=5, window=60.0, base=0.05, cap=5.0)
ENVOY_GRACE = 2.0
# inotify instances: token, clusters, routes; and for each trust domain two secrets with their directories.
WATCHES, WATCHES_PER_DOMAIN = 3, 4
FOLLOW_SECONDS = 0.2
# How long a line of the log may wait in Envoy before it is counted here.
FLUSH_MILLISECONDS = 200
PORTS_PATIENCE = 2.0
_LOOK = 0.02


def run(options: ProxyOptions) -> None:
    """Be the proxy until SIGTERM or SIGINT. Raises MeshscrapeError when it cannot start or go on."""
    run_until_signal(ScrapeProxy(options).run())


class ScrapeProxy:
    """One scrape proxy, made of its parts; `run` is its whole life."""

    def __init__(self, options: ProxyOptions) -> None:
        self._options = options
        self._directory = options.directory.absolute()
        self._admin = EnvoyAdmin(self._directory / ADMIN_SOCKET, timeout=2.0)
        self._discovery = Discovery(options.sources, self._check)
        self._http = HttpDiscovery(self._discovery.jobs)
        self._counters = metrics.ScrapeCounters()
        self._figures = metrics.ProxyFigures()
        self._credentials: Mapping[str, Path] = {}
        self._routed: list[Target] = []
        self._ready = False
        self._envoy: Supervisor | None = None

    async def run(self) -> None:
        """Start everything and keep it going. Never returns; cancelling it stops everything."""
        check_addresses(self._options)
        binary = find_envoy(self._options.envoy)
        token = load_token(self._options.token_file)
        self._discovery.start()
        with _own_directory(self._directory):
            self._credentials = await await_credentials(self._options)
            await self._await_ports()
            routing = Routing(
                self._directory, self._credentials, self._admin, self._options.requests_per_connection
            )
            self._routed = _all(self._discovery.targets())
            routing.write(self._routed)
            self._write_static(token)
            pipe = LogPipe(self._directory / PIPE, self._logged)
            try:
                await self._serve(token, binary, routing)
            finally:
                pipe.close()

    async def _serve(self, token: str, binary: Path, routing: Routing) -> None:
        self._envoy = self._supervised(binary)
        answers = handler(token, self._http, self._metrics, self._why_not_ready)
        async with (
            HttpServer(answers, addresses=[self._options.discovery]),
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._envoy.run())
            tasks.create_task(self._follow(routing))

    async def _await_ports(self) -> None:
        """Look that the ports are free; the Envoy of a predecessor that was just killed gets time to go."""
        deadline = time.monotonic() + PORTS_PATIENCE
        options = self._options
        remedies = {options.listen[1]: "change --listen", options.discovery[1]: "change --discovery"}
        while True:
            try:
                return check_free([options.listen, options.discovery], remedies)
            except InputError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOOK)

    def _write_static(self, token: str) -> None:
        host, port = self._options.listen
        envoy = scrape_proxy.ScrapeProxyOptions(
            node_id=f"scrape_proxy~{host}~{port}",
            address=host,
            port=port,
            admin_socket=ADMIN_SOCKET,
            files_dir=str(self._directory),
            access_log=str(self._directory / PIPE),
        )
        files = {
            scrape_proxy.TOKEN_FILE: scrape_proxy.token_resource([token]),
            BOOTSTRAP: scrape_proxy.bootstrap(envoy),
        }
        for name, resource in files.items():
            write_atomic(self._directory / name, json.dumps(resource, indent=1).encode())

    def _supervised(self, binary: Path) -> Supervisor:
        async def start() -> Process:
            self._counters.forget_connections()
            arguments = envoy_arguments(
                BOOTSTRAP, self._options.workers, drain_seconds=1, flush_milliseconds=FLUSH_MILLISECONDS
            )
            watches = WATCHES + WATCHES_PER_DOMAIN * len(self._credentials)
            return await start_envoy(binary, arguments, self._directory, ADMIN_SOCKET, LOG, watches=watches)

        return Supervisor("the proxy's Envoy", start, policy=ENVOY_POLICY, grace=ENVOY_GRACE)

    async def _follow(self, routing: Routing) -> None:
        """Announce the first targets once Envoy is live; then bring every change to it, and announce that."""
        while not await self._admin.ready():  # noqa: ASYNC110 - Envoy tells nobody
            await asyncio.sleep(_LOOK)
        self._announce(self._discovery.targets())
        self._ready = True
        logger.info("ready: %d targets", len(self._routed))
        behind = False
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            if self._discovery.look() or behind:
                behind = not await self._apply(routing)

    async def _apply(self, routing: Routing) -> bool:
        """Whether there is nothing left to do: Envoy has the targets, or they can never be used."""
        wanted, contested = uncontested(self._discovery.targets())
        targets = _all(wanted)
        try:
            await routing.apply(targets)
        except MeshscrapeError as error:
            self._figures.reload_failures += 1
            self._figures.current = False
            logger.error("the routes stay as they were: %s", error)
            return isinstance(error, InputError)
        self._routed = targets
        self._figures.reloads += 1
        self._announce(wanted)
        if contested:
            self._figures.current = False
            logger.error("nobody is scraped where two identities are expected: %s", ", ".join(contested))
        return True

    def _check(self, targets: Iterable[Target]) -> None:
        """InputError for one source's targets that contradict each other or need credentials not given."""
        expected = scrape_proxy.by_authority(targets)
        # Not known yet at the start: then writing the clusters says the same.
        if self._credentials:
            identities = {identity for identity, _ in expected.values()}
            scrape_proxy.check_credentials(identities, self._credentials)

    def _announce(self, targets: Mapping[str, Sequence[Target]]) -> None:
        self._figures.current = True
        self._figures.last_reload = utcnow().timestamp()
        self._counters.know(self._routed)
        self._http.publish(targets)

    def _logged(self, line: bytes) -> None:
        scrape = parse_line(line)
        if scrape is not None:
            self._counters.count(scrape)

    def _metrics(self) -> bytes:
        self._figures.envoy_restarts = self._envoy.restarts if self._envoy else 0
        ends = certificate_ends(self._credentials)
        return metrics.render(self._counters, self._discovery, self._figures, ends)

    def _why_not_ready(self) -> str:
        if self._envoy is None or self._envoy.pid is None:
            return "Envoy does not run"
        return "" if self._ready else "Envoy is not live yet"


@contextlib.contextmanager
def _own_directory(directory: Path) -> Iterator[None]:
    """Hold the directory; what belongs to this run alone is gone afterwards."""
    private_dir(directory)
    lock = DirectoryLock(directory, "a scrape proxy")
    try:
        remove_staged(directory)
        yield
    finally:
        for name in (ADMIN_SOCKET, PIPE, scrape_proxy.TOKEN_FILE):
            with contextlib.suppress(OSError):
                (directory / name).unlink()
        lock.release()


def _all(targets: Mapping[str, Iterable[Target]]) -> list[Target]:
    return [target for found in targets.values() for target in found]
