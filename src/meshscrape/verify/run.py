"""Run one verification, from the status document to the report."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from time import monotonic
from typing import TypeVar

from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.spiffe.certificates import Signer
from meshscrape.system.clock import utcnow
from meshscrape.system.files import read_input
from meshscrape.verify.certificates import seen_certificates
from meshscrape.verify.check import Check, CheckVerdict, PlannedCheck, judge, plan, result_of, settle
from meshscrape.verify.exposure import ASKED_PATHS
from meshscrape.verify.findings import CheckResult, Report
from meshscrape.verify.identities import Identities, UnavailableIdentity, identities
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload, parse_mesh
from meshscrape.verify.observations import Answered, NotObserved, Observation, TimedOut
from meshscrape.verify.open_ports import Bounds, find_open_ports
from meshscrape.verify.ports import Port, announced_ports, open_ports
from meshscrape.verify.probe import SCRAPER, WHOLE, Probe
from meshscrape.verify.probes import Timeouts, Visitor
from meshscrape.verify.prometheus_api import check_prometheus
from meshscrape.verify.prometheus_checks import WantedSeries, wanted_series
from meshscrape.verify.registry import CHECKS, GATES, PORT_CHECKS, PROMETHEUS_CHECKS
from meshscrape.verify.scraped import sample_names

Progress = Callable[[int, int, str], None]
AnyCheck = TypeVar("AnyCheck", bound=Check)

_MOST_SILENCES = 5
# A connection that only waits for its end costs only a descriptor on both sides.
_WAITING = 256


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Options of a verification.

    `scraper` is NAMESPACE/NAME of the workload to scrape as (by default the mesh's Prometheus). `only` and
    `skip` name checks. `patience` is how many seconds to wait for Prometheus to discover new targets.
    `stranger` is another CA to try; by default one that looks like the mesh's is made for this run. `scan`
    bounds the search for open ports at addresses of other machines.
    """

    scraper: str = ""
    only: frozenset[str] = frozenset()
    skip: frozenset[str] = frozenset()
    timeouts: Timeouts = field(default_factory=Timeouts)
    concurrency: int = 24
    per_target: int = 4
    short_life: timedelta = timedelta(seconds=3)
    patience: float = 15.0
    stranger: Signer | None = None
    scan: Bounds = field(default_factory=Bounds)


def _silent(done: int, total: int, message: str) -> None:
    """Show no progress."""


async def verify(
    status: Mapping[str, object], options: VerifyOptions | None = None, progress: Progress = _silent
) -> Report:
    """Visit every port of the mesh in `status` (a MeshStatus document), and judge what came back.

    `progress(done, total, message)` is called as probes end. Findings are in the report. Raises
    MeshscrapeError when verification itself could not run (bad options, no usable scraper credentials).
    """
    options = options or VerifyOptions()
    mesh = parse_mesh(status)
    scraper = scraper_of(mesh, options.scraper)
    check_options(options)
    started, began = utcnow(), monotonic()
    planned = list(plan(await _ports(mesh, options), _chosen(PORT_CHECKS, options)))
    run = _Run(options, progress, _probes(mesh, planned, options))
    async with identities(
        mesh, scraper, life=options.short_life, stranger=options.stranger, waiting=run.wait_for_end
    ) as known:
        observations = await run.observe_all(known)
        certificates = (*known.certificates(), *seen_certificates(planned, observations))
    # Judging reads whole expositions; in a thread it does not keep a watcher's metrics from being served.
    results = await asyncio.to_thread(_judged, planned, observations)
    results += await _prometheus(mesh, observations, options, run)
    return Report(tuple(results), str(scraper.spiffe_id), started, monotonic() - began, certificates, mesh)


async def _ports(mesh: MeshStatus, options: VerifyOptions) -> list[Port]:
    """Return the ports that the status document names, and other open ports."""
    ports = list(announced_ports(mesh, await asyncio.to_thread(_proxy_token, mesh)))
    if any(check.needs_scan for check in _chosen(PORT_CHECKS, options)):
        ports += open_ports(mesh, await find_open_ports(mesh, options.scan), ASKED_PATHS)
    return ports


def _proxy_token(mesh: MeshStatus) -> str:
    """Return the scrape proxy's token; empty when it cannot be read, so that its checks cannot be made."""
    try:
        return read_input(Path(mesh.proxy_token), "the proxy's token").decode("ascii", "replace").strip()
    except MeshscrapeError:
        return ""


def _judged(planned: Sequence[PlannedCheck], observations: Mapping[Probe, Observation]) -> list[CheckResult]:
    now = utcnow()
    judged = (judge(check, [observations[case.probe] for case in check.cases], now) for check in planned)
    return [*settle(judged, GATES)]


class _Run:
    """Observe every distinct probe once, with bounds in all and per target, and count."""

    def __init__(self, options: VerifyOptions, progress: Progress, probes: Sequence[Probe]) -> None:
        self._options = options
        self._progress = progress
        self._probes = probes
        self._done = 0
        self._silences: Counter[str] = Counter()
        self._everywhere = asyncio.Semaphore(options.concurrency)
        self._waiting = asyncio.Semaphore(_WAITING)
        self._targets: dict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(options.per_target)
        )

    async def observe_all(self, known: Identities) -> dict[Probe, Observation]:
        """Return what each probe saw. Requests of one identity to one port follow each other."""
        visits: dict[tuple[object, ...], list[Probe]] = defaultdict(list)
        for probe in self._probes:
            own = () if probe.kind == "http" else (probe,)
            visits[probe.target, probe.identity, *own].append(probe)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._observe(probes, known)) for probes in visits.values()]
        return {probe: observation for task in tasks for probe, observation in task.result()}

    def wait_for_end(self, left: timedelta) -> None:
        """Show that the run only waits for a certificate to expire."""
        self.say(f"waiting {left.total_seconds():.0f} s for a certificate to end")

    def say(self, message: str) -> None:
        """Show `message` with the count so far."""
        self._progress(self._done, len(self._probes), message)

    async def _observe(self, probes: Sequence[Probe], known: Identities) -> list[tuple[Probe, Observation]]:
        target, identity = probes[0].target, probes[0].identity
        try:
            # Wait until a certificate has expired before taking a slot, so that other visits need not wait.
            contexts = await known.contexts(identity)
        except UnavailableIdentity as error:
            return [(probe, self._count(probe, target, NotObserved(str(error)))) for probe in probes]
        async with AsyncExitStack() as stack:
            for slot in self._slots(probes[0]):
                await stack.enter_async_context(slot)
            visitor = Visitor(contexts, self._options.timeouts)
            try:
                return [
                    (probe, self._count(probe, target, await self._visit(visitor, probe, target)))
                    for probe in probes
                ]
            finally:
                await visitor.close()

    def _slots(self, probe: Probe) -> tuple[asyncio.Semaphore, ...]:
        """Return the slots that a visit must hold; a visit that only waits takes none from the others."""
        if probe.kind == "silence":
            return (self._waiting,)
        return (self._targets[probe.target], self._everywhere)

    async def _visit(self, visitor: Visitor, probe: Probe, target: str) -> Observation:
        """Make one visit, unless the port was silent so often that another visit would tell nothing new."""
        if self._silences[target] >= _MOST_SILENCES:
            return NotObserved(f"not tried any more: {_MOST_SILENCES} probes of this port got no answer")
        return await visitor.observe(probe)

    def _count(self, probe: Probe, target: str, observation: Observation) -> Observation:
        self._done += 1
        self._silences[target] += isinstance(observation, TimedOut) and probe.kind != "silence"
        self.say(f"{target} as {probe.identity.workload or probe.identity.kind}")
        return observation


async def _prometheus(
    mesh: MeshStatus, observations: Mapping[Probe, Observation], options: VerifyOptions, run: _Run
) -> list[CheckResult]:
    checks = _chosen(PROMETHEUS_CHECKS, options)
    if not checks:
        return []
    if not mesh.prometheus_url:
        return [result_of(checks[0], "", "", CheckVerdict("noted", "the mesh has no Prometheus"))]
    wanted = any(check.reads_scrapes for check in checks)
    series = await asyncio.to_thread(_all_series, mesh, observations) if wanted else []
    return list(await check_prometheus(mesh, checks, series, options.patience, run.say))


def _all_series(mesh: MeshStatus, observations: Mapping[Probe, Observation]) -> list[WantedSeries]:
    return [one for workload in mesh.workloads for one in _series(workload, observations)]


def _series(workload: MeshWorkload, observations: Mapping[Probe, Observation]) -> tuple[WantedSeries, ...]:
    """Return the series that Prometheus must have, from the merged port's latest answer."""
    if workload.secure_merged is None:
        return ()
    answer = observations.get(_scrape(workload))
    return wanted_series(workload, sample_names(answer.body)) if isinstance(answer, Answered) else ()


def _scrape(workload: MeshWorkload) -> Probe:
    return Probe(workload.addresses[0], workload.secure_merged or 0, SCRAPER, limit=WHOLE)


def _probes(mesh: MeshStatus, planned: Sequence[PlannedCheck], options: VerifyOptions) -> tuple[Probe, ...]:
    """Return every distinct probe of the plan and of the checks of Prometheus."""
    probes = dict.fromkeys(case.probe for check in planned for case in check.cases)
    if mesh.prometheus_url and any(check.reads_scrapes for check in _chosen(PROMETHEUS_CHECKS, options)):
        probes |= dict.fromkeys(
            _scrape(workload) for workload in mesh.workloads if workload.secure_merged is not None
        )
    return tuple(probes)


def scraper_of(mesh: MeshStatus, title: str) -> MeshWorkload:
    """Return the workload NAMESPACE/NAME to scrape as, by default the mesh's Prometheus.

    Raises InputError when there is none, or it has no credentials.
    """
    wanted = title or mesh.prometheus_workload
    if not wanted:
        raise InputError(
            "the mesh has no Prometheus",
            remedy="declare one in the manifest, or run `meshscrape verify --as NAMESPACE/NAME`",
        )
    scraper = mesh.workload(wanted)
    if not scraper.has_identity:
        raise InputError(f"workload {wanted} has no credentials", remedy="name another scraper with --as")
    return scraper


def check_options(options: VerifyOptions) -> None:
    """Raise InputError for a name in `only` or `skip` that is not a check."""
    for option, names in (("--only", options.only), ("--skip", options.skip)):
        for name in sorted(names - frozenset(CHECKS)):
            near = get_close_matches(name, CHECKS, 3)
            raise InputError(
                f"{name!a} is not a check",
                where=option,
                remedy=f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(CHECKS)}",
            )


def _chosen(checks: Sequence[AnyCheck], options: VerifyOptions) -> tuple[AnyCheck, ...]:
    """Return the checks that the options select."""
    return tuple(
        check
        for check in checks
        if (not options.only or check.name in options.only) and check.name not in options.skip
    )
