"""One verification, from the status document to the report."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic

from meshscrape.errors import InputError
from meshscrape.istio.names import MERGED_PATH
from meshscrape.spiffe.certificates import Signer
from meshscrape.system.clock import utcnow
from meshscrape.verify import checks
from meshscrape.verify import prometheus_checks as targets
from meshscrape.verify.certificates import seen_certificates
from meshscrape.verify.exposed import ADMIN_CHECK, METRICS_CHECK, plan_exposed
from meshscrape.verify.findings import CheckResult, Report
from meshscrape.verify.identities import Identities, UnavailableIdentity, identities
from meshscrape.verify.matrix import SCRAPER, WHOLE, PlannedCheck, Probe, plan
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload, parse_mesh
from meshscrape.verify.observations import Answered, NotObserved, Observation, TimedOut
from meshscrape.verify.open_ports import Bounds, open_ports
from meshscrape.verify.probes import Timeouts, Visitor
from meshscrape.verify.prometheus_api import check_prometheus
from meshscrape.verify.prometheus_checks import WantedSeries, wanted_series
from meshscrape.verify.scraped import sample_names

Progress = Callable[[int, int, str], None]

_MOST_SILENCES = 5

CHECK_NAMES = (*checks.CHECKS, *targets.CHECKS)


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How to verify.

    `scraper` is NAMESPACE/NAME of the workload to scrape as (by default the mesh's Prometheus). `only` and
    `skip` name checks. `patience` is how many seconds Prometheus may take to see what has just come.
    `stranger` is another CA to try; by default one that looks like the mesh's is made up. `scan` bounds the
    search for open ports at addresses of other machines.
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
    """Progress that nobody looks at."""


async def verify(
    status: Mapping[str, object], options: VerifyOptions | None = None, progress: Progress = _silent
) -> Report:
    """Visit every port of the mesh that `status` (a MeshStatus document) describes, and judge what came back.

    `progress(done, total, message)` is called as probes end. Findings are in the report; MeshscrapeError
    only when verification itself could not run (bad options, no usable scraper credentials).
    """
    options = options or VerifyOptions()
    mesh = parse_mesh(status)
    scraper = scraper_of(mesh, options.scraper)
    check_options(options)
    started, began = utcnow(), monotonic()
    planned = [each for each in await _plan(mesh, scraper, options) if _selected(each.check, options)]
    run = _Run(options, progress, _probes(mesh, planned, options))
    async with identities(
        mesh, scraper, life=options.short_life, stranger=options.stranger, waiting=run.wait_for_end
    ) as known:
        seen = await run.observe_all(known)
        certificates = (*known.certificates(), *seen_certificates(planned, seen))
    now = utcnow()
    judged = (checks.judge(each, [seen[case.probe] for case in each.cases], now) for each in planned)
    results = [*checks.settle(judged)]
    results += await _prometheus(mesh, seen, options, run)
    return Report(tuple(results), str(scraper.spiffe_id), started, monotonic() - began, certificates, mesh)


async def _plan(mesh: MeshStatus, scraper: MeshWorkload, options: VerifyOptions) -> list[PlannedCheck]:
    """What the status announces, and what listens beside it."""
    planned = list(plan(mesh, scraper))
    if any(_selected(name, options) for name in (METRICS_CHECK, ADMIN_CHECK)):
        planned += plan_exposed(mesh, await open_ports(mesh, options.scan))
    return planned


class _Run:
    """Observes every distinct probe once, bounded in all and per target, and counts."""

    def __init__(self, options: VerifyOptions, progress: Progress, probes: Sequence[Probe]) -> None:
        self._options = options
        self._progress = progress
        self._probes = probes
        self._done = 0
        self._silences: Counter[str] = Counter()
        self._everywhere = asyncio.Semaphore(options.concurrency)
        self._targets: dict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(options.per_target)
        )

    async def observe_all(self, known: Identities) -> dict[Probe, Observation]:
        """What each probe saw. Requests of one identity to one port are made one after the other."""
        visits: dict[tuple[object, ...], list[Probe]] = defaultdict(list)
        for probe in self._probes:
            own = () if probe.kind == "http" else (probe,)
            visits[probe.target, probe.identity, *own].append(probe)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._observe(probes, known)) for probes in visits.values()]
        return {probe: seen for task in tasks for probe, seen in task.result()}

    def wait_for_end(self, left: timedelta) -> None:
        """Say that only a certificate's end is waited for."""
        self.say(f"waiting {left.total_seconds():.0f} s for a certificate to end")

    def say(self, message: str) -> None:
        """Show `message` with the count so far."""
        self._progress(self._done, len(self._probes), message)

    async def _observe(self, probes: Sequence[Probe], known: Identities) -> list[tuple[Probe, Observation]]:
        target, identity = probes[0].target, probes[0].identity
        try:
            # Before a slot is taken: an expired certificate is waited for, and must not keep others waiting.
            contexts = await known.contexts(identity)
        except UnavailableIdentity as error:
            return [(probe, self._count(probe, target, NotObserved(str(error)))) for probe in probes]
        async with self._targets[target], self._everywhere:
            visitor = Visitor(contexts, self._options.timeouts)
            try:
                return [
                    (probe, self._count(probe, target, await self._visit(visitor, probe, target)))
                    for probe in probes
                ]
            finally:
                await visitor.close()

    async def _visit(self, visitor: Visitor, probe: Probe, target: str) -> Observation:
        """One visit, unless the port has been silent so often that waiting again would tell nothing new."""
        if self._silences[target] >= _MOST_SILENCES:
            return NotObserved(f"not tried any more: {_MOST_SILENCES} probes of this port were not answered")
        return await visitor.observe(probe)

    def _count(self, probe: Probe, target: str, seen: Observation) -> Observation:
        self._done += 1
        self._silences[target] += isinstance(seen, TimedOut)
        self.say(f"{target} as {probe.identity.workload or probe.identity.kind}")
        return seen


async def _prometheus(
    mesh: MeshStatus, seen: Mapping[Probe, Observation], options: VerifyOptions, run: _Run
) -> list[CheckResult]:
    if not any(_selected(name, options) for name in targets.CHECKS):
        return []
    if not mesh.prometheus_url:
        return [
            CheckResult("prometheus-target", "", "", "noted", "the mesh has no Prometheus", "a Prometheus")
        ]
    series = [wanted for each in mesh.workloads for wanted in _series(each, seen)]
    results = await check_prometheus(mesh, series, options.patience, run.say)
    return [each for each in results if _selected(each.check, options)]


def _series(workload: MeshWorkload, seen: Mapping[Probe, Observation]) -> tuple[WantedSeries, ...]:
    """What Prometheus must have of the application, judging by what the merged port has just answered."""
    if workload.secure_merged is None:
        return ()
    answer = seen.get(_scrape(workload))
    return wanted_series(workload, sample_names(answer.body)) if isinstance(answer, Answered) else ()


def _scrape(workload: MeshWorkload) -> Probe:
    return Probe(workload.addresses[0], workload.secure_merged or 0, SCRAPER, path=MERGED_PATH, limit=WHOLE)


def _probes(mesh: MeshStatus, planned: Sequence[PlannedCheck], options: VerifyOptions) -> tuple[Probe, ...]:
    """Every distinct probe of the plan, and those that Prometheus's checks need besides."""
    probes = dict.fromkeys(case.probe for each in planned for case in each.cases)
    if mesh.prometheus_url and _selected("application-series", options):
        probes |= dict.fromkeys(_scrape(each) for each in mesh.workloads if each.secure_merged is not None)
    return tuple(probes)


def scraper_of(mesh: MeshStatus, title: str) -> MeshWorkload:
    """The workload NAMESPACE/NAME to scrape as, by default the mesh's Prometheus; InputError for none."""
    wanted = title or mesh.prometheus_workload
    if not wanted:
        raise InputError("the mesh has no Prometheus", remedy="name a scraper with --as NAMESPACE/NAME")
    scraper = mesh.workload(wanted)
    if not scraper.credentials:
        raise InputError(f"workload {wanted} has no credentials", remedy="name another scraper with --as")
    return scraper


def check_options(options: VerifyOptions) -> None:
    """InputError for a name that is not a check's."""
    for name in sorted(options.only | options.skip):
        if name not in CHECK_NAMES:
            raise InputError(f"{name!r} is not a check", remedy=f"there are: {', '.join(CHECK_NAMES)}")


def _selected(check: str, options: VerifyOptions) -> bool:
    return (not options.only or check in options.only) and check not in options.skip
