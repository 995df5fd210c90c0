"""Run the agent: inputs, certificate, Envoy, health. Stop it completely from any stage."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path

from meshscrape import __version__
from meshscrape.agent import envoy
from meshscrape.agent.allow_list import AllowListFile
from meshscrape.agent.credentials import CaClientOptions, CredentialRenewer
from meshscrape.agent.merged import BUFFERS, LARGEST_BUFFER, PATHS, MergedMetrics
from meshscrape.agent.metrics import AgentFigures, agent_families
from meshscrape.agent.publication import Places
from meshscrape.agent.schedule import Timing
from meshscrape.agent.served import ServedCertificate
from meshscrape.agent.sources import MergedOptions
from meshscrape.exposition.health import Family
from meshscrape.exposition.source import MergeLimits
from meshscrape.istio.allow_list import Scraper
from meshscrape.istio.settings import AgentSettings
from meshscrape.system import life
from meshscrape.system.clock import utcnow
from meshscrape.system.envoy_admin import EnvoyAdmin
from meshscrape.system.files import DirectoryLock, private_dir, remove_staged
from meshscrape.system.http.server import Handler, HttpServer, Request, Response, routes
from meshscrape.system.memory import keep_freed_memory
from meshscrape.system.processes import Process
from meshscrape.system.supervisor import Policy, Supervisor
from meshscrape.system.tasks import guarded

logger = logging.getLogger(__name__)

READY = "/healthz/ready"
_ADDED_BY_ENVOY = "x-forwarded-for"
# Five restarts within a minute. The first is immediate, because the workload's ports are closed meanwhile.
ENVOY_POLICY = Policy(restarts=5, window=60.0, base=0.05, cap=5.0)
# This must be shorter than the time that a supervisor gives an agent to stop (processes.STOP_GRACE).
ENVOY_GRACE = 3.0
PORTS_PATIENCE = 1.0
# How often an agent that is not ready yet checks its state (seconds).
_LOOK = 0.05


def run(settings: AgentSettings) -> None:
    """Run the agent until SIGTERM, SIGINT or SIGHUP. Raise MeshscrapeError if it cannot start or continue."""
    keep_freed_memory(BUFFERS, LARGEST_BUFFER)
    life.run(Agent(settings).run())
    logger.info("stopped")


class Agent:
    """One workload's agent."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._state = settings.state_dir.absolute()
        self._started_at, self._began = utcnow(), time.monotonic()
        self._startup: float | None = None
        self._credentials = CredentialRenewer(_ca_options(settings), _places(settings, self._state))
        self._admin = EnvoyAdmin(self._state / envoy.ADMIN_SOCKET, timeout=2.0)
        self._envoy: Supervisor | None = None
        self._scrapers = AllowListFile(settings.scrapers_file) if settings.scrapers_file else None
        self._served = ServedCertificate(self._admin, self._credentials)

    async def run(self) -> None:
        """Start all parts and run until cancelled, then stop them all."""
        self._credentials.check_inputs()
        scrapers = self._scrapers.read() if self._scrapers else ()
        files = envoy.render(self._settings, scrapers) if self._settings.envoy else None
        binary = envoy.find_binary(self._settings) if files else None
        with _own_directory(self._state):
            if files:
                await envoy.await_ports(self._settings, files, PORTS_PATIENCE)
            try:
                async with self._serving():
                    await self._credentials.first()
                    if files and binary:
                        envoy.write_files(self._state, files)
                        self._envoy = self._supervised(binary)
                    await self._keep_going()
            finally:
                self._credentials.close()

    def _supervised(self, binary: Path) -> Supervisor:
        async def start() -> Process:
            return await envoy.start(binary, self._state, self._settings.envoy_concurrency)

        return Supervisor("envoy", start, policy=ENVOY_POLICY, grace=ENVOY_GRACE)

    async def why_not_ready(self) -> str:
        """Return why the workload is not ready, or an empty text if it is ready."""
        issued = self._credentials.issued
        if issued is None:
            return self._credentials.problem
        if not issued.valid(utcnow()):
            return (
                f"the certificate has expired at {issued.not_after.isoformat()}: {self._credentials.problem}"
            )
        if not self._settings.envoy:
            return ""
        if self._envoy is None or self._envoy.pid is None:
            return "Envoy is not running"
        return "" if await self._admin.ready() else "Envoy is not live"

    async def _keep_going(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(guarded(self._credentials.keep, "the renewal of the certificate"))
                if self._envoy is not None:
                    group.create_task(guarded(self._envoy.run, "the supervisor of Envoy"))
                    group.create_task(guarded(self._served.follow, "the check of Envoy's certificate"))
                    if self._scrapers is not None:
                        follow = partial(self._scrapers.follow, self._use_scrapers)
                        group.create_task(guarded(follow, "the allow list's follower"))
                group.create_task(self._say_when_ready())
        except BaseExceptionGroup as failures:
            raise life.first_failure(failures) from None

    def _use_scrapers(self, scrapers: Sequence[Scraper]) -> None:
        envoy.write_scrapers(self._state, scrapers)

    async def _say_when_ready(self) -> None:
        while reason := await self.why_not_ready():
            logger.debug("not ready: %s", reason)
            await asyncio.sleep(_LOOK)
        self._startup = time.monotonic() - self._began
        logger.info("ready as %s after %.2f s", self._settings.spiffe_id, self._startup)

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        settings = self._settings
        merged = [(settings.inside_address, settings.merged_port)]
        # If there is an Envoy, it serves health on the pod's address and forwards the request to this server.
        health = [] if settings.envoy else [(settings.inside_address, settings.health_port)]
        async with (
            HttpServer(self._handler(), addresses=merged),
            HttpServer(routes({READY: self._answer_ready}), addresses=health),
        ):
            yield

    def _handler(self) -> Handler:
        settings = self._settings
        merged = MergedMetrics(
            MergedOptions(
                sources=settings.sources,
                inside_address=settings.inside_address,
                envoy_admin=self._state / envoy.ADMIN_SOCKET if settings.envoy else None,
                merge_envoy=settings.merge_envoy,
                allow_scrape_series=settings.merge_scrape_series,
                limits=MergeLimits(settings.merge_max_bytes, settings.merge_max_series),
            ),
            self.own_metrics,
        )
        return routes({READY: self._answer_ready, **dict.fromkeys(PATHS, merged.handle)})

    async def _answer_ready(self, request: Request) -> Response:
        reason = await self.why_not_ready()
        # Requests from the network come through Envoy. They must not reveal addresses or paths.
        inside = _ADDED_BY_ENVOY not in request.headers
        if reason:
            return Response(503, f"{reason if inside else 'not ready'}\n".encode())
        # Ready, but the certificate could not be renewed or written: `up` shows that.
        problem = f"{self._credentials.problem}\n" if inside and self._credentials.problem else ""
        return Response(200, f"ready\n{problem}".encode())

    def own_metrics(self) -> list[Family]:
        """Return the agent's own families."""
        credentials = self._credentials
        figures = AgentFigures(
            version=__version__,
            started_at=self._started_at,
            startup=self._startup,
            not_after=credentials.issued.not_after if credentials.issued else None,
            requests=credentials.requests,
            failures=credentials.failures,
            request_seconds=credentials.latency,
            renewals=credentials.renewals,
            envoy_restarts=self._envoy.restarts if self._envoy else None,
            envoy_current=self._served.current and credentials.written,
            scrapers_current=self._scrapers.current if self._scrapers else None,
        )
        return agent_families(figures, utcnow())


@contextlib.contextmanager
def _own_directory(state: Path) -> Iterator[None]:
    """Lock the state directory, and remove files that a killed agent or this agent's Envoy left there.

    Credentials stay for the next agent. An empty directory is removed at the end.
    """
    private_dir(state)
    lock = DirectoryLock(state, "an agent")
    socket = state / envoy.ADMIN_SOCKET
    try:
        remove_staged(state)
        socket.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            socket.unlink(missing_ok=True)
            state.rmdir()
        lock.release()


def _ca_options(settings: AgentSettings) -> CaClientOptions:
    return CaClientOptions(
        address=settings.ca_address,
        roots=settings.ca_root,
        token=settings.token_path,
        identity=settings.spiffe_id,
        ttl=settings.secret_ttl,
        algorithm=settings.key_algorithm,
        rsa_bits=settings.rsa_bits,
        timing=Timing(settings.grace_ratio, settings.grace_jitter, settings.renewal_spread),
        wait=settings.ca_wait,
    )


def _places(settings: AgentSettings, state: Path) -> Places:
    return Places(
        state / envoy.CREDENTIALS, settings.output_certs, settings.output_certs_mode, settings.scrapers_ca
    )
