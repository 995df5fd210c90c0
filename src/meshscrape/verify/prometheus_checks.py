"""What Prometheus must say about the mesh, judged purely from what its API answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from meshscrape.istio.names import MERGED_PATH
from meshscrape.prometheus.targets import MERGED_JOB
from meshscrape.verify.findings import CheckResult, Severity
from meshscrape.verify.matrix import host_port
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload
from meshscrape.verify.observations import printable

# Families of the proxy and the agent: everything else in a merged exposition is the application's.
_OURS = ("envoy_", "istio_agent_", "meshscrape_")
# Every Python process with prometheus_client has it, and nothing of ours does.
_WELL_KNOWN = "python_gc_objects_collected_total"
_MOST_QUERIES = 3


@dataclass(frozen=True, slots=True)
class PrometheusCheck:
    """What is expected in words, and what to do when it is not so."""

    expected: str
    remedy: str
    severity: Severity


CHECKS: Mapping[str, PrometheusCheck] = {
    "prometheus-target": PrometheusCheck(
        "Prometheus has this target, over https or through the scrape proxy, and reports it up",
        "see its error on Prometheus's page of targets; `meshscrape prometheus-config` writes the jobs",
        "broken",
    ),
    "prometheus-scheme": PrometheusCheck(
        "Prometheus scrapes no address of the mesh over plain http",
        "remove the job that does; use the jobs of `meshscrape prometheus-config`", "hole",
    ),
    "prometheus-identity": PrometheusCheck(
        "every target's SPIFFE ID is checked: no job reads the mesh with insecure_skip_verify",
        "scrape through the scrape proxy: use the jobs of `meshscrape prometheus-config`", "hole",
    ),
    "application-series": PrometheusCheck(
        "a query returns the application's series with the workload's labels",
        "see that the merged target is up and that no relabelling drops the series", "broken",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """An active target as Prometheus reports it; `job` is the name of its scrape job."""

    url: str
    health: str
    error: str
    labels: Mapping[str, str]
    job: str = ""


@dataclass(frozen=True, slots=True)
class ScrapeJob:
    """A scrape job as Prometheus runs it: its proxy (`host:port` or empty), and whether it checks nobody."""

    proxy: str = ""
    unverified: bool = False


@dataclass(frozen=True, slots=True)
class Scraping:
    """Prometheus's targets and jobs; `proxy` is the mesh's scrape proxy (`host:port`), empty for none."""

    targets: Sequence[ScrapeTarget]
    jobs: Mapping[str, ScrapeJob]
    proxy: str = ""

    def proxied(self, target: ScrapeTarget) -> bool:
        """Whether a target is read through the mesh's scrape proxy, so that plain http stays on this machine.

        An https:// target would be tunnelled through a proxy, not read by it.
        """
        job = self.jobs.get(target.job, ScrapeJob())
        return bool(self.proxy) and job.proxy == self.proxy and target.url.startswith("http://")

    def unverified(self, target: ScrapeTarget) -> bool:
        """Whether Prometheus believes whoever answers at the target's address."""
        job = self.jobs.get(target.job, ScrapeJob())
        return target.url.startswith("https://") and job.unverified


@dataclass(frozen=True, slots=True)
class WantedTarget:
    """A URL that Prometheus must scrape, and whose it is."""

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


def wanted_targets(mesh: MeshStatus) -> tuple[WantedTarget, ...]:
    """What Prometheus must scrape: the secure ports, and applications' own ports behind mutual TLS."""
    return tuple(target for workload in mesh.workloads for target in _targets(workload))


def wanted_series(workload: MeshWorkload, names: Iterable[str]) -> tuple[WantedSeries, ...]:
    """Queries for families that the application of `workload` exports itself, given all names merged."""
    own = sorted(name for name in names if not name.startswith(_OURS))
    chosen = [name for name in own if name == _WELL_KNOWN]
    chosen += [name for name in own if name != _WELL_KNOWN and not name.endswith("_created")]
    target = host_port(workload.addresses[0], workload.secure_merged or 0)
    labels = f'job="{MERGED_JOB}",instance="{target}",namespace="{workload.namespace}"'
    return tuple(
        WantedSeries(workload.title, target, name, f"{name}{{{labels}}}") for name in chosen[:_MOST_QUERIES]
    )


def judge_target(wanted: WantedTarget, seen: Scraping) -> CheckResult:
    """Whether Prometheus has the wanted target, and up."""
    name, found = "prometheus-target", target_of(wanted, seen)
    if not found:
        return _result(name, wanted.workload, wanted.target, f"no active target {wanted.url}")
    worst = next((each for each in found if each.health != "up"), None)
    if worst is None:
        through = " through the scrape proxy" if seen.proxied(found[0]) else ""
        return _passed(name, wanted.workload, wanted.target, f"{found[0].url} is up{through}")
    reason = f": {printable(worst.error, 200)}" if worst.error else ""
    return _result(name, wanted.workload, wanted.target, f"{worst.url} is {worst.health}{reason}")


def target_of(wanted: WantedTarget, seen: Scraping) -> list[ScrapeTarget]:
    """Prometheus's targets that read what is wanted, securely."""
    plain = "http://" + wanted.url.removeprefix("https://")
    return [
        each for each in seen.targets if each.url == wanted.url or (each.url == plain and seen.proxied(each))
    ]


def judge_schemes(mesh: MeshStatus, seen: Scraping) -> CheckResult:
    """Whether any target reads an address of the mesh without TLS."""
    plain = sorted(
        {
            each.url
            for each in _of_mesh(mesh, seen)
            if not each.url.startswith("https://") and not seen.proxied(each)
        }
    )
    if plain:
        shown = f"plain targets: {printable(', '.join(plain), 300)}"
        return _result("prometheus-scheme", mesh.prometheus_workload, "", shown)
    words = f"{len(seen.targets)} active targets, none of the mesh over plain http"
    return _passed("prometheus-scheme", mesh.prometheus_workload, "", words)


def judge_identities(mesh: MeshStatus, seen: Scraping) -> CheckResult:
    """Whether every target's SPIFFE ID is checked; without a scrape proxy nobody could, which is a note."""
    name, prometheus = "prometheus-identity", mesh.prometheus_workload
    blind = [each for each in _of_mesh(mesh, seen) if seen.unverified(each)]
    if not blind:
        checked = sum(1 for each in seen.targets if seen.proxied(each))
        return _passed(name, prometheus, "", f"{checked} targets through the scrape proxy, none unverified")
    jobs = ", ".join(sorted({each.job for each in blind}))
    words = f"{len(blind)} targets of the jobs {printable(jobs)} with insecure_skip_verify"
    failed = _result(name, prometheus, "", words)
    return failed if seen.proxy else replace(failed, outcome="noted")


def _of_mesh(mesh: MeshStatus, seen: Scraping) -> list[ScrapeTarget]:
    """Targets at addresses of the mesh; Prometheus's own inside address is its localhost."""
    addresses = {address for each in mesh.workloads for address in each.addresses}
    addresses |= {each.inside_address for each in mesh.workloads if each.title != mesh.prometheus_workload}
    return [each for each in seen.targets if _host(each.url) in addresses]


def judge_series(wanted: WantedSeries, found: int) -> CheckResult:
    """Whether the query returned anything."""
    seen = f"{found} series of {wanted.name}"
    if found:
        return _passed("application-series", wanted.workload, wanted.target, seen)
    return _result("application-series", wanted.workload, wanted.target, f"no series for {wanted.query}")


def unable(prometheus: str, reason: str) -> tuple[CheckResult, ...]:
    """The results when Prometheus's API does not answer: none of its checks could be made."""
    return tuple(
        CheckResult(name, prometheus, "", "skipped", f"could not be checked: {reason}", check.expected,
                    check.remedy, check.severity)
        for name, check in CHECKS.items()
    )  # fmt: skip


def _targets(workload: MeshWorkload) -> Iterable[WantedTarget]:
    address = workload.addresses[0]
    paths = [(workload.secure_merged, MERGED_PATH), (workload.secure_stats, MERGED_PATH)]
    paths += [
        (each.port, each.metrics) for each in workload.application if each.metrics and each.mtls != "DISABLE"
    ]
    for port, path in paths:
        if port is not None:
            authority = host_port(address, port)
            yield WantedTarget(workload.title, authority, f"https://{authority}{path}")


def _host(url: str) -> str:
    authority = url.partition("://")[2].partition("/")[0]
    return authority.rpartition(":")[0].strip("[]") or authority


def _passed(name: str, workload: str, target: str, seen: str) -> CheckResult:
    check = CHECKS[name]
    return CheckResult(name, workload, target, "passed", seen, check.expected, check.remedy, check.severity)


def _result(name: str, workload: str, target: str, seen: str) -> CheckResult:
    check = CHECKS[name]
    return CheckResult(name, workload, target, "failed", seen, check.expected, check.remedy, check.severity)
