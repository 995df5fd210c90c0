"""Run the scrape proxy: credentials, targets, Envoy, HTTP SD. Stop it completely from any stage."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from meshscrape.envoy import scrape_proxy
from meshscrape.envoy.bootstrap import envoy_arguments
from meshscrape.envoy.shared_targets import SharedTargets
from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.prometheus.targets import Target
from meshscrape.proxy import metrics
from meshscrape.proxy.access import LogPipe, parse_line
from meshscrape.proxy.discovery import Discovery
from meshscrape.proxy.expectations import Changed, Expectations
from meshscrape.proxy.http_sd import CHANGES, TARGETS, HttpDiscovery, Index, handler
from meshscrape.proxy.linked_credentials import LinkedCredentials
from meshscrape.proxy.options import (
    ProxyOptions,
    aliases_by_domain,
    await_credentials,
    certificate_ends,
    check_addresses,
    own_identity,
)
from meshscrape.proxy.presented import PresentedCertificates
from meshscrape.proxy.routing import Routing
from meshscrape.proxy.separate_envoy import SeparateEnvoy, become_envoy, make_pipe
from meshscrape.proxy.sharing import TargetSharing
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system import life
from meshscrape.system.bearer import load_token
from meshscrape.system.clock import utcnow
from meshscrape.system.envoy_admin import EnvoyAdmin
from meshscrape.system.envoy_process import find_envoy, start_envoy
from meshscrape.system.files import DirectoryLock, private_dir, remove_staged, write_atomic
from meshscrape.system.http.server import HttpServer, Request, Response
from meshscrape.system.net import await_free
from meshscrape.system.processes import Process
from meshscrape.system.supervisor import Policy, Supervisor
from meshscrape.system.tasks import guarded

logger = logging.getLogger(__name__)

ADMIN_SOCKET = "admin.sock"
SHARE_SOCKET = "share.sock"
BOOTSTRAP = "bootstrap.json"
PIPE = "access.pipe"
LOG = "envoy.log"
# The first restart is immediate, because scrapes fail without Envoy.
ENVOY_POLICY = Policy(restarts=5, window=60.0, base=0.05, cap=5.0)
ENVOY_GRACE = 2.0
# inotify instances that Envoy needs: token, clusters, routes, and per trust domain two secrets with their
# directories.
WATCHES, WATCHES_PER_DOMAIN = 3, 4
RETRY_SECONDS = 0.2
PAUSE_FACTOR, LONGEST_PAUSE = 5.0, 1.0
# How long a log line may wait in Envoy before it is counted here (seconds).
FLUSH_MILLISECONDS = 200
PORTS_PATIENCE = 2.0
_LOOK = 0.02


def run(options: ProxyOptions) -> None:
    """Run the proxy until SIGTERM, SIGINT or SIGHUP. Raise MeshscrapeError if it cannot start or continue."""
    life.run(ScrapeProxy(options).run())
    logger.info("stopped")


def run_envoy(directory: Path, named: Path | None, workers: int, patience: float) -> None:
    """Become the Envoy of the proxy in `directory`. Raises MeshscrapeError when it cannot."""
    arguments = envoy_arguments(BOOTSTRAP, workers, drain_seconds=1, flush_milliseconds=FLUSH_MILLISECONDS)
    names = (BOOTSTRAP, ADMIN_SOCKET, PIPE)
    become_envoy(find_envoy(named), arguments, directory.absolute(), names, patience)


class ScrapeProxy:
    """One scrape proxy."""

    def __init__(self, options: ProxyOptions) -> None:
        self._options = options
        self._directory = options.directory.absolute()
        self._admin = EnvoyAdmin(self._directory / ADMIN_SOCKET, timeout=2.0)
        self._discovery = Discovery(options.sources, self._check)
        self._http = HttpDiscovery(self._discovery.jobs)
        self._sharing = TargetSharing(self._discovery.by_job)
        self._counters = metrics.ScrapeCounters()
        self._figures = metrics.ProxyFigures()
        self._contested: tuple[str, ...] = ()
        self._credentials: Mapping[str, Path] = {}
        self._expected = Expectations()
        # What changed, of which HTTP SD and the metrics do not know yet, because Envoy does not use it yet.
        self._unannounced: list[Changed] = []
        self._ready = asyncio.Event()
        self._envoy: Supervisor | SeparateEnvoy | None = None

    async def run(self) -> None:
        """Start all parts and run until cancelled, then stop them all."""
        check_addresses(self._options)
        binary = find_envoy(self._options.envoy)
        token = load_token(self._options.token_file, shared=self._options.share_token)
        await self._discovery.start()
        with _own_directory(self._directory, keep=self._options.separate_envoy):
            self._credentials = await await_credentials(self._options.credentials, self._options.patience)
            await self._await_ports()
            linked = LinkedCredentials(self._directory, self._credentials)
            routing = Routing(
                self._directory,
                linked.places,
                self._admin,
                self._options.requests_per_connection,
                aliases_by_domain(self._options.aliases, next(iter(self._credentials))),
            )
            first = self._expected.update(self._discovery)
            self._unannounced.append(first)
            routing.write(self._expected, first.addresses)
            self._write_static(token)
            if separate := self._options.separate_envoy:
                make_pipe(self._directory / PIPE)
            pipe = LogPipe(self._directory / PIPE, self._logged, keep=separate)
            try:
                await self._serve(token, binary, routing, linked)
            finally:
                pipe.close()

    async def _serve(self, token: str, binary: Path, routing: Routing, linked: LinkedCredentials) -> None:
        envoy = self._envoy = self._separate() if self._options.separate_envoy else self._supervised(binary)
        presented = PresentedCertificates(self._admin, self._credentials, lambda: envoy.tail(50))
        answers = handler(
            token, self._http, self._sharing.answer, self._metrics, self._why_not_ready, self._index
        )
        # Envoy has verified who asks there.
        socket = self._directory / SHARE_SOCKET if self._options.share else None
        async with (
            HttpServer(answers, addresses=[self._options.discovery]),
            HttpServer(self._shared_answer, unix_socket=socket),
            asyncio.TaskGroup() as tasks,
        ):
            follow = partial(self._follow, routing, presented)
            check = partial(self._follow_credentials, presented)
            tasks.create_task(guarded(envoy.run, "the supervisor of Envoy"))
            tasks.create_task(self._discovery.follow())
            tasks.create_task(guarded(follow, "the routing of targets"))
            tasks.create_task(guarded(check, "the check of credentials"))
            tasks.create_task(guarded(linked.follow, "the links to credentials"))

    async def _shared_answer(self, request: Request) -> Response:
        """Answer another proxy, or a Prometheus, that Envoy has let in at `--share`."""
        return await (self._sharing if request.path == CHANGES else self._http).answer(request)

    async def _await_ports(self) -> None:
        options = self._options
        remedies = {options.listen[1]: "change --listen", options.discovery[1]: "change --discovery"}
        own = [options.discovery]
        if not options.separate_envoy:
            own.append(options.listen)
            if options.share:
                own.append(options.share)
                remedies[options.share[1]] = "change --share"
        await await_free(own, remedies, PORTS_PATIENCE)

    def _write_static(self, token: str) -> None:
        host, port = self._options.listen
        envoy = scrape_proxy.ScrapeProxyOptions(
            node_id=f"scrape_proxy~{host}~{port}",
            address=host,
            port=port,
            admin_socket=ADMIN_SOCKET,
            files_dir=str(self._directory),
            access_log="" if self._options.separate_envoy else str(self._directory / PIPE),
            shared=self._shared(),
            sharing=sorted(self._credentials).index(next(iter(self._credentials))),
        )
        files = {
            scrape_proxy.TOKEN_FILE: scrape_proxy.token_resource([token]),
            BOOTSTRAP: scrape_proxy.bootstrap(envoy),
        }
        for name, resource in files.items():
            write_atomic(self._directory / name, json.dumps(resource, indent=1).encode())

    def _shared(self) -> SharedTargets | None:
        """Return where the targets are shared: with the first credentials, whose identity may always ask."""
        if self._options.share is None:
            return None
        own = own_identity(next(iter(self._credentials.values())))
        paths = (CHANGES, *(f"{TARGETS}{job}" for job in self._discovery.jobs))
        followers = tuple(dict.fromkeys((own, *self._options.share_with)))
        return SharedTargets(*self._options.share, followers, paths, SHARE_SOCKET)

    def _separate(self) -> SeparateEnvoy:
        return SeparateEnvoy(self._admin, self._counters.forget_connections)

    def _supervised(self, binary: Path) -> Supervisor:
        async def start() -> Process:
            self._counters.forget_connections()
            arguments = envoy_arguments(
                BOOTSTRAP, self._options.workers, drain_seconds=1, flush_milliseconds=FLUSH_MILLISECONDS
            )
            watches = WATCHES + WATCHES_PER_DOMAIN * len(self._credentials)
            return await start_envoy(binary, arguments, self._directory, ADMIN_SOCKET, LOG, watches=watches)

        return Supervisor("the proxy's Envoy", start, policy=ENVOY_POLICY, grace=ENVOY_GRACE)

    async def _follow(self, routing: Routing, presented: PresentedCertificates) -> None:
        """Announce the first targets when Envoy has them; then apply and announce every change."""
        # A separate Envoy is watched in turns. Before it is seen running, a probe is answered "not ready".
        while not (self._envoy and self._envoy.running and await self._admin.ready()):  # noqa: ASYNC110 - Envoy sends no event
            await asyncio.sleep(_LOOK)
        await routing.started()
        await presented.check(self._identities())
        self._announce()
        self._ready.set()
        logger.info("ready: %d targets", len(self._expected))
        while True:
            await self._discovery.changed.wait()
            self._discovery.changed.clear()
            # Followers verify their targets themselves, so they need not wait for this proxy's Envoy.
            self._sharing.changed()
            began = time.monotonic()
            done = await self._apply(routing)
            # Envoy reads all routes again after every change. Changes that go on are gathered, so that this
            # takes a bounded part of a core with ten thousand targets, and a single one waits for nothing.
            await asyncio.sleep(min(LONGEST_PAUSE, PAUSE_FACTOR * (time.monotonic() - began)))
            if not done:
                await asyncio.sleep(RETRY_SECONDS)
                self._discovery.changed.set()

    async def _follow_credentials(self, presented: PresentedCertificates) -> None:
        await self._ready.wait()
        await presented.follow(self._identities)

    async def _apply(self, routing: Routing) -> bool:
        """Apply the targets to Envoy and announce them; return False if it must be tried again.

        After an InputError it is not tried again, because the same targets would fail again.
        """
        changed = self._expected.update(self._discovery)
        self._unannounced.append(changed)
        try:
            await routing.apply(self._expected, changed.addresses)
        except MeshscrapeError as error:
            self._figures.reload_failures += 1
            self._figures.current = False
            logger.error("the previous targets stay in use: %s", error)
            return isinstance(error, InputError)
        self._figures.reloads += 1
        self._announce()
        return True

    def _identities(self) -> list[SpiffeId]:
        return list(self._expected.identities)

    def _check(self, targets: Sequence[Target], divisible: bool) -> None:
        """Raise InputError if a source contradicts itself or needs credentials that were not given."""
        if not divisible:
            scrape_proxy.by_authority(targets)
        # At the start the trust domains are not known yet. Then writing the clusters raises the same error.
        if self._credentials:
            domains = {target.spiffe_id.trust_domain: target.spiffe_id for target in targets}
            scrape_proxy.check_credentials(domains.values(), self._credentials)

    def _announce(self) -> None:
        """Let HTTP SD and the metrics follow what Envoy uses now."""
        contested = self._expected.contested
        self._figures.current = not contested
        self._figures.last_reload = utcnow().timestamp()
        for changed in self._unannounced:
            now = [target for address in changed.addresses for target in self._expected.at(address)]
            self._counters.know(now, changed.removed)
        self._unannounced.clear()
        targets, hidden = self._discovery.by_job(), frozenset(contested)
        self._http.publish(lambda job: _without(targets[job], hidden))
        if contested and contested != self._contested:
            logger.error("not scraped, because two identities are expected: %s", ", ".join(contested[:20]))
        self._contested = contested

    def _logged(self, line: bytes) -> None:
        scrape = parse_line(line)
        if scrape is not None:
            self._counters.count(scrape)

    def _metrics(self) -> bytes:
        self._figures.envoy_restarts = self._envoy.restarts if self._envoy else 0
        self._figures.envoy_up = self._envoy is not None and self._envoy.running
        ends = certificate_ends(self._credentials)
        return metrics.render(self._counters, self._discovery, self._figures, ends)

    def _index(self) -> Index:
        problems = {
            state.source.name: state.problem.text for state in self._discovery.states if state.problem.error
        }
        return Index(self._discovery.jobs, problems, self._contested, self._figures.current)

    def _why_not_ready(self) -> str:
        if self._envoy is None or not self._envoy.running:
            return "Envoy is not running"
        if not self._ready.is_set():
            return "Envoy is not live yet"
        # Old targets are scraped all the same, but a proxy that can never follow them is not ready.
        return next((state.refused for state in self._discovery.states if state.refused), "")


@contextlib.contextmanager
def _own_directory(directory: Path, *, keep: bool = False) -> Iterator[None]:
    """Hold the lock on the directory; at the end, remove the files of this run."""
    private_dir(directory)
    lock = DirectoryLock(directory, "a scrape proxy", "--dir")
    try:
        remove_staged(directory)
        yield
    finally:
        for name in () if keep else (ADMIN_SOCKET, SHARE_SOCKET, PIPE, scrape_proxy.TOKEN_FILE):
            with contextlib.suppress(OSError):
                (directory / name).unlink()
        lock.release()


def _without(parts: Iterable[Sequence[Target]], authorities: frozenset[str]) -> list[Target]:
    return [target for targets in parts for target in targets if target.authority not in authorities]
