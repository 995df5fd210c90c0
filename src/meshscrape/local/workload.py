"""Run one workload: its application processes, its agent and its token; and observe their state."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from meshscrape.ca.tokens import TokenIssuer
from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE
from meshscrape.local.layout import ApplicationPlan, WorkloadPlan
from meshscrape.spiffe.certificates import load_certificates
from meshscrape.system.clock import utcnow
from meshscrape.system.files import private_dir, write_atomic
from meshscrape.system.followed import Problem
from meshscrape.system.http.client import FetchLimits, fetch
from meshscrape.system.proc import child_named, is_child
from meshscrape.system.processes import Process, spawn
from meshscrape.system.supervisor import Supervisor
from meshscrape.system.tasks import guarded

TOKEN_LIFETIME = timedelta(hours=1)
_LIMITS = FetchLimits(connect=1.0, read=2.0, total=2.0, body_bytes=1 << 16)
_LOOK_UNREADY, _LOOK_READY = 0.1, 1.0
_LOOK_TOKEN = 30.0


@dataclass(frozen=True, slots=True)
class CertificateSeen:
    """The workload's current certificate."""

    serial: str
    not_after: datetime


class RunningWorkload:
    """Run a plan as long as `run` runs. The attributes are its currently observed state.

    `joined` becomes true when the workload is first ready, and stays true. So a workload that fails later
    remains a target of Prometheus, with `up` 0.
    """

    def __init__(self, plan: WorkloadPlan, tokens: TokenIssuer, changed: Callable[[], None]) -> None:
        self.plan = plan
        self.ready = False
        self.joined = False
        self.message = "starting"
        self.certificate: CertificateSeen | None = None
        self.agent = Supervisor(f"agent of {plan.title}", self._start_agent)
        self.applications = [
            Supervisor(f"application {application.name} of {plan.title}", partial(self._start, application))
            for application in plan.applications
        ]
        self._tokens = tokens
        self._changed = changed
        self._credentials = asyncio.Event()
        self._envoy: tuple[int, int] | None = None
        self._token = Problem("the token for the CA stays as it was")
        self._accepting: set[tuple[int, str, int]] = set()

    @property
    def agent_directory(self) -> Path:
        """Return the agent's own directory."""
        return self.plan.settings.state_dir

    @property
    def restarts(self) -> int:
        """Return how often its processes were restarted."""
        return sum(supervisor.restarts for supervisor in (self.agent, *self.applications))

    @property
    def envoy_pid(self) -> int | None:
        """Return Envoy's process ID while it runs."""
        return self._envoy[1] if self._envoy and self.agent.pid == self._envoy[0] else None

    async def run(self) -> None:
        """Run until cancelled. Raise ComponentFailed if one of its processes dies too often."""
        private_dir(self.plan.directory)
        private_dir(self.agent_directory)
        self._write_token()
        self._write_scrapers()
        if self.plan.routes:
            write_atomic(self.plan.routes_file, self.plan.routes.encode())
        try:
            async with asyncio.TaskGroup() as tasks:
                title = self.plan.title
                tasks.create_task(guarded(self.agent.run, f"the supervisor of the agent of {title}"))
                tasks.create_task(guarded(self._refresh_token, f"the token's renewal of {title}"))
                tasks.create_task(guarded(self._look, f"the observation of {title}"))
                for application in self.applications:
                    tasks.create_task(self._run_application(application))
        finally:
            self.ready = False

    def follow(self, plan: WorkloadPlan) -> None:
        """Change to a plan that `runs_as` the current one, without a restart."""
        before, self.plan = self.plan.scrapers_text, plan
        if plan.scrapers_text != before:
            self._write_scrapers()
            self._changed()

    def _write_scrapers(self) -> None:
        write_atomic(self.plan.scrapers_file, self.plan.scrapers_text.encode())

    async def _run_application(self, application: Supervisor) -> None:
        if not self.plan.settings.envoy:
            # The application needs its certificate (it scrapes or serves with it), so wait for it first.
            await self._credentials.wait()
        await application.run()

    async def _start(self, plan: ApplicationPlan) -> Process:
        guard = [sys.executable, "-S", "-E", "-s", str(Path(__file__).with_name("guard.py"))]
        log = self.plan.directory / f"{plan.name}.log"
        # Do not run in the workload's own directory: a file server must not find the token and the key there.
        directory = self.plan.directory / "application"
        private_dir(directory)
        return await spawn([*guard, *plan.argv], env=dict(plan.environment), cwd=directory, log_file=log)

    async def _start_agent(self) -> Process:
        role = self.plan.settings.role
        argv = [sys.executable, "-m", "meshscrape", "agent", "proxy", role]
        log = self.plan.directory / "agent.log"
        return await spawn(argv, env=dict(self.plan.agent_environment), cwd=self.plan.directory, log_file=log)

    def _write_token(self) -> datetime:
        now = utcnow()
        namespace, account = self.plan.settings.namespace, self.plan.settings.service_account
        token = self._tokens.issue(namespace, account, now, TOKEN_LIFETIME)
        write_atomic(self.plan.token, token.encode())
        return now + TOKEN_LIFETIME / 2

    async def _refresh_token(self) -> None:
        due = utcnow() + TOKEN_LIFETIME / 2
        while True:
            # Check the wall clock often: after a suspend the token may have expired.
            await asyncio.sleep(_LOOK_TOKEN)
            if utcnow() >= due:
                try:
                    due = self._write_token()
                    self._token.clear()
                except MeshscrapeError as error:
                    # The current token stays valid for the same time again, and the next attempt comes soon.
                    self._token.note(error)

    async def _look(self) -> None:
        """Observe readiness, Envoy's process and the certificate, for ever."""
        while True:
            before = (self.ready, self.message, self.certificate, self._envoy)
            self.ready, self.message = await self._readiness()
            self.joined = self.joined or self.ready
            self.certificate = self._present_certificate()
            if self.certificate is not None:
                self._credentials.set()
            self._find_envoy()
            if before != (self.ready, self.message, self.certificate, self._envoy):
                self._changed()
            await asyncio.sleep(_LOOK_READY if self.ready else _LOOK_UNREADY)

    def _find_envoy(self) -> None:
        """Update `envoy_pid`: keep the known process while it lives, else take the agent's current child."""
        agent = self.agent.pid
        if agent is None or not self.plan.settings.envoy:
            self._envoy = None
        elif self._envoy is None or self._envoy[0] != agent or not is_child(self._envoy[1], agent):
            pid = child_named(agent, "envoy")
            self._envoy = (agent, pid) if pid else None

    async def _readiness(self) -> tuple[bool, str]:
        settings = self.plan.settings
        try:
            url = f"http://{settings.inside_address}:{settings.merged_port}/healthz/ready"
            status, body = await fetch(url, limits=_LIMITS)
        except UnavailableError:
            if self.agent.pid is None and self.agent.restarts:
                return False, f"the agent is being restarted; its last output: {self.agent.tail(1)}"
            return False, "the agent does not answer yet"
        said = body.decode("utf-8", "replace").strip().splitlines()
        if status != 200:
            return False, f"the agent is not ready: {said[0][:200]}" if said else "the agent is not ready"
        for application, running in zip(self.plan.applications, self.applications, strict=True):
            if running.pid is None:
                return False, f"{application.name} is not running"
            for host, port in application.listens:
                # Check once per process, to spare the application repeated connections.
                place = (running.pid, host, port)
                if place not in self._accepting and not await accepts(host, port):
                    return False, f"{application.name} does not accept connections on {host}:{port} yet"
                self._accepting.add(place)
        return True, "; ".join(self._problems(said))

    def _problems(self, said: Sequence[str]) -> list[str]:
        """Return the problems of a ready workload; `said` is its agent's answer, in lines."""
        logs = [supervisor.log_problem for supervisor in (self.agent, *self.applications)]
        return [line[:500] for line in (*said[1:2], self._token.text, *logs) if line]

    def _present_certificate(self) -> CertificateSeen | None:
        path = self.agent_directory / "credentials" / CERTIFICATE_CHAIN_FILE
        try:
            leaf = load_certificates(path.read_bytes(), str(path))[0]
        except (OSError, MeshscrapeError):
            return None
        return CertificateSeen(f"{leaf.serial_number:x}", leaf.not_valid_after_utc)


async def accepts(host: str, port: int) -> bool:
    """Return whether a TCP connection to `host:port` is accepted within a second."""
    try:
        # Before Python 3.12, wait_for can swallow a cancellation, so this uses asyncio.timeout.
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
