"""Run CA, workloads and Prometheus as supervised child processes, and follow changes of the manifest."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from meshscrape.agent.envoy import find_binary, port_remedies
from meshscrape.ca.tokens import TokenIssuer
from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.istio.host_port import parse_host_port
from meshscrape.istio.names import MESHSCRAPE_ENVOY, MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION, ROOTS_FILE
from meshscrape.kube.mesh import parse_mesh
from meshscrape.kube.mesh_spec import MeshSpec, load_documents
from meshscrape.local.addresses import Subnet
from meshscrape.local.binaries import ensure_prometheus
from meshscrape.local.ca_process import CaProcess
from meshscrape.local.environment import base_environment
from meshscrape.local.layout import Key, Site, WorkloadPlan, keys_of, plan_mesh
from meshscrape.local.prometheus import PrometheusFiles, TargetHealth, observe_targets
from meshscrape.local.publisher import Publisher
from meshscrape.local.state import StateDirectory
from meshscrape.local.status_document import mesh_document, proxy_entry, workload_entry
from meshscrape.local.traffic import trickle
from meshscrape.local.workload import RunningWorkload
from meshscrape.prometheus.config import CaMetrics, DirectScrapes
from meshscrape.system.envoy_process import check_runs
from meshscrape.system.followed import FollowedFile
from meshscrape.system.life import first_failure
from meshscrape.system.net import check_free
from meshscrape.system.supervisor import Supervisor
from meshscrape.system.tasks import guarded

WATCH_SECONDS = 0.25
PROMETHEUS_SECONDS = 1.0

STARTING, READY, STOPPING = "Starting", "Ready", "Stopping"
EXAMPLE = Path(__file__).with_name("example") / "mesh.yaml"


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """The options of `up`: the manifest, the scrape interval (seconds), whether to make traffic.

    With `direct`, Prometheus scrapes without a scrape proxy and does not verify its targets.
    """

    manifest: Path
    scrape_interval: float = 5.0
    traffic: bool = False
    direct: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(slots=True)
class _Slot:
    """A workload and its task. A workload that an edit added may fail without ending the mesh."""

    running: RunningWorkload
    task: asyncio.Task[None]
    failure: str = ""


class LocalMesh:
    """One mesh on this machine. `prepare` checks the input; `run` runs the mesh until cancelled."""

    def __init__(
        self,
        options: MeshOptions,
        state: StateDirectory,
        subnet: Subnet,
        report: Callable[[str], None],
    ) -> None:
        self.phase = STARTING
        self.ready = asyncio.Event()
        self.health: dict[tuple[str, str], TargetHealth] = {}
        self.files = PrometheusFiles(state.run / "prometheus", direct=options.direct)
        self._publisher = Publisher(state, self.files)
        self._unused = ""
        self._trust_domain = ""
        self._options = options
        self._state = state
        self._subnet = subnet
        self._report = report
        self._slots: dict[Key, _Slot] = {}
        self._plans: dict[Key, WorkloadPlan] = {}
        self._changed = asyncio.Event()
        self._tokens: TokenIssuer | None = None
        self._ca: Supervisor | None = None
        self._manifest = FollowedFile(options.manifest, "the mesh's manifest", _parse, settled=True)
        self._site = Site(
            run=state.run,
            ca_address=subnet.ca_address,
            ca_metrics=CaMetrics(subnet.ca_metrics_address, str(state.run / "ca-metrics-token")),
            ca_root=state.ca / ROOTS_FILE,
            environment=base_environment(options.environment),
            envoy=options.environment.get(MESHSCRAPE_ENVOY, ""),
            direct=options.direct,
            requests_per_connection=options.environment.get(MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION, ""),
        )

    async def prepare(self) -> None:
        """Read the manifest, plan the mesh and find its programs, without starting or writing anything.

        Raises InputError if the manifest is wrong or one of its ports is taken on this machine. Raises
        MissingBinaryError if Prometheus is needed, missing, and cannot be fetched.
        """
        mesh = self._manifest.read()
        self._trust_domain = mesh.trust_domain
        self._plans = self._plan(mesh)
        if self.prometheus_plan is not None:
            binaries = await ensure_prometheus(self._options.environment, self._report)
            self._site = replace(self._site, prometheus=binaries.server)
            self._plans = self._plan(mesh)
        for address in (self._subnet.ca_address, self._subnet.ca_metrics_address):
            host, port = parse_host_port(address)
            check_free([(host, port)], {port: "let it listen on another address than the CA's"})
        for plan in self._plans.values():
            _check(plan)
        for named in {plan.settings.envoy_binary for plan in self._plans.values() if plan.settings.envoy}:
            if named is not None:
                await asyncio.to_thread(check_runs, named.absolute())

    @property
    def prometheus_plan(self) -> WorkloadPlan | None:
        """Return the workload that runs Prometheus, if any."""
        return next((plan for plan in self._plans.values() if plan.prometheus), None)

    @property
    def prometheus_url(self) -> str | None:
        """Return the URL of Prometheus's pages and API."""
        plan = self.prometheus_plan
        listens = plan.prometheus.listens if plan and plan.prometheus else ()
        return f"http://{listens[0][0]}:{listens[0][1]}" if listens else None

    @property
    def gateway_url(self) -> str | None:
        """Return the URL where the first gateway accepts plain HTTP from outside."""
        for plan in self._plans.values():
            if plan.kind == "gateway" and plan.settings.inbound:
                return f"http://{plan.addresses.pod}:{plan.settings.inbound[0].port}"
        return None

    async def run(self) -> None:
        """Start all processes, keep them running and follow the manifest, until cancelled.

        Raises ComponentFailed if the CA or a workload of the first manifest dies too often.
        """
        self._tokens = TokenIssuer.load_or_create(self._state.run / "issuer")
        self._write_prometheus_files()
        self._publisher.publish(self.document())
        try:
            async with asyncio.TaskGroup() as tasks:
                ca = CaProcess(self._state, self._site, self._manifest.value.trust_domain)
                self._ca = ca.supervisor
                tasks.create_task(guarded(ca.supervisor.run, "the supervisor of the CA"))
                tasks.create_task(guarded(self._publish_changes, "the publication of the status"))
                await ca.wait()
                for plan in self._plans.values():
                    self._start(tasks, plan, essential=True)
                tasks.create_task(guarded(partial(self._follow, tasks), "the manifest's follower"))
                tasks.create_task(guarded(self._observe_prometheus, "the observation of Prometheus"))
                if self._options.traffic:
                    tasks.create_task(self._make_traffic())
        finally:
            self.phase = STOPPING

    def document(self) -> dict[str, Any]:
        """Return the current status document."""
        url, plan = self.prometheus_url, self.prometheus_plan
        return mesh_document(
            phase=self.phase,
            message="; ".join(self.problems()),
            pid=os.getpid(),
            state=self._state.path,
            trust_domain=self._trust_domain,
            ca={
                "address": self._site.ca_address,
                "rootCertificate": str(self._site.ca_root),
                "pid": self._ca.pid if self._ca else None,
            },
            prometheus={"url": url, "workload": plan.title} if url and plan else None,
            scrape_proxy=self._scrape_proxy(),
            workloads=[
                workload_entry(slot.running, self.health, slot.failure, self.files.shown_url)
                for slot in self._slots.values()
            ],
        )

    def _scrape_proxy(self) -> dict[str, Any] | None:
        for slot in self._slots.values():
            running = slot.running
            for application, supervisor in zip(running.plan.applications, running.applications, strict=True):
                if application.scrape_proxy is not None:
                    return proxy_entry(application.scrape_proxy, supervisor.pid)
        return None

    def awaited_targets(self) -> list[tuple[str, str, str]]:
        """Return (job, URL, last error or health) of every target that Prometheus does not report as up."""
        missing = []
        for job, targets in self.files.targets.items():
            for target in targets:
                url = self.files.shown_url(target)
                status = self.health.get((job, url))
                if status is None or status.health != "up":
                    problem = "Prometheus has not discovered it yet"
                    missing.append((job, url, status.last_error or status.health if status else problem))
        return missing

    def _plan(self, mesh: MeshSpec) -> dict[Key, WorkloadPlan]:
        pairs = {key: self._subnet.allocate("/".join(key)) for key in keys_of(mesh)}
        return plan_mesh(mesh, pairs, self._site)

    def _write_prometheus_files(self) -> None:
        plan = self.prometheus_plan
        if plan is not None:
            direct = DirectScrapes(str(plan.scraper_credentials), str(self.files.targets_directory))
            through = plan.scrape_proxy.jobs if plan.scrape_proxy else direct
            self.files.write_config(through, self._options.scrape_interval, self._site.ca_metrics)

    def _start(self, tasks: asyncio.TaskGroup, plan: WorkloadPlan, *, essential: bool) -> None:
        if self._tokens is None:
            raise RuntimeError("a workload cannot start before the mesh does")
        running = RunningWorkload(plan, self._tokens, self._changed.set)

        async def keep() -> None:
            try:
                await running.run()
            except* MeshscrapeError as group:
                if essential:
                    raise
                slot.failure = str(first_failure(group))
                self._report(f"{plan.title}: {slot.failure}")
                self._changed.set()

        slot = _Slot(running, tasks.create_task(keep()))
        self._slots[plan.key] = slot

    async def _stop(self, key: Key) -> None:
        slot = self._slots.pop(key)
        self._update_targets()
        slot.task.cancel()
        await asyncio.wait({slot.task})

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Apply the manifest whenever it changes. An unusable manifest changes only `problems`."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            before = self._manifest.problem.error
            if self._manifest.changed():
                try:
                    await self._apply(tasks)
                    self._unused = ""
                except MeshscrapeError as error:
                    self._unused = f"the changed manifest is not used: {error}"
                    self._report(self._unused)
                self._changed.set()
            elif self._manifest.problem.error is not before:
                self._changed.set()

    async def _apply(self, tasks: asyncio.TaskGroup) -> None:
        """Start and stop workloads to match the manifest. An InputError is raised before any change."""
        wanted = self._wanted()
        kept = {
            key
            for key, slot in self._slots.items()
            if key in wanted and wanted[key].runs_as(slot.running.plan) and not slot.failure
        }
        for key in kept:
            self._slots[key].running.follow(wanted[key])
        gone = [key for key in self._slots if key not in kept]
        new = [key for key in wanted if key not in kept]
        for key in gone:
            await self._stop(key)
            if key not in wanted:
                self._subnet.release("/".join(key))
        self._plans = wanted
        if any(wanted[key].prometheus for key in new):
            self._write_prometheus_files()
        for key in new:
            self._start(tasks, wanted[key], essential=False)
        names = ", ".join("/".join(key) for key in sorted({*gone, *new})) or "nothing"
        self._report(f"the manifest has changed; changed here: {names}")

    def _wanted(self) -> dict[Key, WorkloadPlan]:
        """Return the plans of the manifest. Raise InputError if the running mesh cannot change to it."""
        mesh = self._manifest.value
        try:
            wanted = self._plan(mesh)
            if mesh.trust_domain != self._trust_domain:
                raise InputError(
                    "the trust domain of a running mesh cannot change", remedy="start the mesh again"
                )
            scraper = next((plan for plan in wanted.values() if plan.prometheus), None)
            if scraper is not None and self._site.prometheus is None:
                raise InputError(
                    "Prometheus cannot be added to a running mesh",
                    where=scraper.where,
                    remedy="start the mesh again",
                )
            for key, plan in wanted.items():
                if key not in self._slots:
                    _check(plan)
        except MeshscrapeError:
            for key in set(keys_of(mesh)) - self._plans.keys():
                self._subnet.release("/".join(key))
            raise
        return wanted

    def _update_targets(self) -> None:
        if self.prometheus_plan is not None:
            running = [slot.running for slot in self._slots.values() if slot.running.joined]
            self._publisher.write_targets(workload.plan.scraped for workload in running)

    def problems(self) -> list[str]:
        """Return the problems of the mesh as a whole, one line each; workloads have their own messages."""
        logs = [self._ca.log_problem] if self._ca else []
        unusable = self._manifest.problem.text
        manifest = f"the changed manifest is not used: {unusable}" if unusable else self._unused
        lines = [manifest, *self._publisher.problems(), *logs]
        return [line for line in lines if line]

    async def _observe_prometheus(self) -> None:
        while True:
            url = self.prometheus_url
            try:
                targets = await observe_targets(url) if url else []
                self.health = {(target.job, target.url): target for target in targets}
            except UnavailableError:
                self.health = {}
            self._changed.set()
            await asyncio.sleep(PROMETHEUS_SECONDS)

    async def _publish_changes(self) -> None:
        """Update the target files, the phase and the status document after each change."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                self._update_targets()
                slots = self._slots.values()
                if len(slots) == len(self._plans) and all(slot.running.ready for slot in slots):
                    self.phase = READY
                    self.ready.set()
                self._publisher.publish(self.document())
        finally:
            self.phase = STOPPING
            self._publisher.publish(self.document())

    async def _make_traffic(self) -> None:
        await self.ready.wait()
        if self.gateway_url is not None:
            await trickle(self.gateway_url)


def _check(plan: WorkloadPlan) -> None:
    """Raise MissingBinaryError if the plan needs a missing Envoy, InputError if one of its ports is taken."""
    settings = plan.settings
    if settings.envoy:
        find_binary(settings)
    remedies = port_remedies(settings)
    wanted = [(settings.inside_address, settings.merged_port)]
    if settings.envoy:
        own = [*remedies, *(inbound.port for inbound in settings.inbound)]
        wanted += [(address, port) for address in settings.pod_addresses for port in own]
    for application in plan.applications:
        wanted += application.listens
    check_free(dict.fromkeys(wanted), remedies)


def _parse(content: bytes, where: str) -> MeshSpec:
    return parse_mesh(load_documents(content.decode("utf-8", "replace"), where), where=where)
