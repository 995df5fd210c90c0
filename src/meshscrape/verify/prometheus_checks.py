"""Judge what Prometheus's API says about the mesh (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from meshscrape.istio.host_port import host_port, split_host_port
from meshscrape.istio.names import MERGED_PATH
from meshscrape.prometheus.targets import MERGED_JOB
from meshscrape.verify.check import Check, CheckVerdict
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload
from meshscrape.verify.observations import printable

# Families of the proxy and the agent. All other families in a merged exposition are the application's.
_OURS = ("envoy_", "istio_agent_", "meshscrape_")
# Every Python process with prometheus_client has this family; the proxy and the agent do not.
_WELL_KNOWN = "python_gc_objects_collected_total"
_MOST_QUERIES = 3


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """An active target as Prometheus reports it. `job` is the name of its scrape job."""

    url: str
    health: str
    error: str
    labels: Mapping[str, str]
    job: str = ""


@dataclass(frozen=True, slots=True)
class ScrapeJob:
    """A scrape job of Prometheus: its proxy (`host:port`, or empty), and whether it trusts any server."""

    proxy: str = ""
    unverified: bool = False


@dataclass(frozen=True, slots=True)
class Scraping:
    """Prometheus's targets and jobs; `proxy` is the mesh's scrape proxy (`host:port`), empty for none."""

    targets: Sequence[ScrapeTarget]
    jobs: Mapping[str, ScrapeJob]
    proxy: str = ""

    def proxied(self, target: ScrapeTarget) -> bool:
        """Return whether a target is read through the mesh's scrape proxy: plain http stays on this machine.

        A proxy would tunnel an https:// target instead of reading it.
        """
        job = self.jobs.get(target.job, ScrapeJob())
        return bool(self.proxy) and job.proxy == self.proxy and target.url.startswith("http://")

    def unverified(self, target: ScrapeTarget) -> bool:
        """Return whether Prometheus does not verify the server at the target's address."""
        job = self.jobs.get(target.job, ScrapeJob())
        return target.url.startswith("https://") and job.unverified


@dataclass(frozen=True, slots=True)
class WantedTarget:
    """A URL that Prometheus must scrape, and its workload."""

    workload: str
    target: str
    url: str


@dataclass(frozen=True, slots=True)
class WantedSeries:
    """A family of an application, and the query that must find it."""

    workload: str
    target: str
    name: str
    query: str


@dataclass(frozen=True, slots=True)
class PrometheusView:
    """What a Prometheus check judges: the mesh, what Prometheus scrapes, and the series that it stored."""

    mesh: MeshStatus
    scraping: Scraping
    series: Sequence[tuple[WantedSeries, int]] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict about one target of one workload; both may be empty."""

    workload: str
    target: str
    verdict: CheckVerdict


JudgeView: TypeAlias = Callable[[PrometheusView], Iterator[Judged]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusCheck(Check):
    """A check of Prometheus. With `reads_scrapes` it needs to know what the merged ports contain."""

    judge: JudgeView
    reads_scrapes: bool = False


def wanted_targets(mesh: MeshStatus) -> tuple[WantedTarget, ...]:
    """Return the targets that Prometheus must scrape: secure ports, and application ports with mutual TLS."""
    return tuple(target for workload in mesh.workloads for target in _targets(workload))


def wanted_series(workload: MeshWorkload, names: Iterable[str]) -> tuple[WantedSeries, ...]:
    """Return queries for families that the application itself exports, from `names` on the merged port."""
    own = sorted(name for name in names if not name.startswith(_OURS))
    chosen = [name for name in own if name == _WELL_KNOWN]
    chosen += [name for name in own if name != _WELL_KNOWN and not name.endswith("_created")]
    target = host_port(workload.addresses[0], workload.secure_merged or 0)
    labels = f'job="{MERGED_JOB}",instance="{target}",namespace="{workload.namespace}"'
    return tuple(
        WantedSeries(workload.title, target, name, f"{name}{{{labels}}}") for name in chosen[:_MOST_QUERIES]
    )


def targets(view: PrometheusView) -> Iterator[Judged]:
    """Judge every wanted target."""
    for wanted in wanted_targets(view.mesh):
        yield Judged(wanted.workload, wanted.target, judge_target(wanted, view.scraping))


def schemes(view: PrometheusView) -> Iterator[Judged]:
    """Judge whether any target is read in plaintext."""
    yield Judged(view.mesh.prometheus_workload, "", judge_schemes(view.mesh, view.scraping))


def identities(view: PrometheusView) -> Iterator[Judged]:
    """Judge whether any target is read without a check of its identity."""
    yield Judged(view.mesh.prometheus_workload, "", judge_identities(view.mesh, view.scraping))


def series(view: PrometheusView) -> Iterator[Judged]:
    """Judge every wanted series."""
    for wanted, count in view.series:
        yield Judged(wanted.workload, wanted.target, judge_series(wanted, count))


def judge_target(wanted: WantedTarget, scraping: Scraping) -> CheckVerdict:
    """Pass when Prometheus has the wanted target and reports it up."""
    targets = target_of(wanted, scraping)
    if not targets:
        return CheckVerdict("failed", f"no active target {wanted.url}")
    worst = next((target for target in targets if target.health != "up"), None)
    if worst is None:
        through = " through the scrape proxy" if scraping.proxied(targets[0]) else ""
        return CheckVerdict("passed", f"{targets[0].url} is up{through}")
    reason = f": {printable(worst.error, 200)}" if worst.error else ""
    return CheckVerdict("failed", f"{worst.url} is {worst.health}{reason}")


def target_of(wanted: WantedTarget, scraping: Scraping) -> list[ScrapeTarget]:
    """Return Prometheus's targets that read the wanted URL securely."""
    plain = "http://" + wanted.url.removeprefix("https://")
    return [
        target
        for target in scraping.targets
        if target.url == wanted.url or (target.url == plain and scraping.proxied(target))
    ]


def judge_schemes(mesh: MeshStatus, scraping: Scraping) -> CheckVerdict:
    """Pass when no target reads an address of the mesh without TLS."""
    plain = sorted(
        {
            target.url
            for target in _of_mesh(mesh, scraping)
            if not target.url.startswith("https://") and not scraping.proxied(target)
        }
    )
    if plain:
        return CheckVerdict("failed", f"plain targets: {printable(', '.join(plain), 300)}")
    return CheckVerdict("passed", f"{len(scraping.targets)} active targets, none of the mesh over plain http")


def judge_identities(mesh: MeshStatus, scraping: Scraping) -> CheckVerdict:
    """Pass when every target's SPIFFE ID is checked. Without a scrape proxy, note that none can be."""
    blind = [target for target in _of_mesh(mesh, scraping) if scraping.unverified(target)]
    if not blind:
        checked = sum(1 for target in scraping.targets if scraping.proxied(target))
        return CheckVerdict("passed", f"{checked} targets through the scrape proxy, none unverified")
    jobs = ", ".join(sorted({target.job for target in blind}))
    words = f"{len(blind)} targets of the jobs {printable(jobs)} with insecure_skip_verify"
    return CheckVerdict("failed" if scraping.proxy else "noted", words)


def _of_mesh(mesh: MeshStatus, scraping: Scraping) -> list[ScrapeTarget]:
    """Return the targets at addresses of the mesh; Prometheus's own inside address is its localhost."""
    addresses = {address for workload in mesh.workloads for address in workload.addresses}
    addresses |= {
        workload.inside_address for workload in mesh.workloads if workload.title != mesh.prometheus_workload
    }
    return [target for target in scraping.targets if _host(target.url) in addresses]


def judge_series(wanted: WantedSeries, count: int) -> CheckVerdict:
    """Pass when the query returned a series."""
    if count:
        return CheckVerdict("passed", f"{count} series of {wanted.name}")
    return CheckVerdict("failed", f"no series for {wanted.query}")


def _targets(workload: MeshWorkload) -> Iterable[WantedTarget]:
    address = workload.addresses[0]
    paths = [(workload.secure_merged, MERGED_PATH), (workload.secure_stats, MERGED_PATH)]
    paths += [
        (port.port, port.metrics) for port in workload.application if port.metrics and port.mtls != "DISABLE"
    ]
    for port, path in paths:
        if port is not None:
            authority = host_port(address, port)
            yield WantedTarget(workload.title, authority, f"https://{authority}{path}")


def _host(url: str) -> str:
    authority = url.partition("://")[2].partition("/")[0]
    split = split_host_port(authority)
    return split[0] if split else authority.strip("[]")
