"""Report from a cluster's objects what it contains and which known pitfalls apply."""

from __future__ import annotations

from meshscrape.istio.versions import UNKNOWN, parse_version
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.components import plaintext_components
from meshscrape.observe.control import Control, read_control
from meshscrape.observe.declared import Declarations
from meshscrape.observe.job_sources import read_jobs
from meshscrape.observe.model import ObservedJob
from meshscrape.observe.next_steps import next_steps
from meshscrape.observe.observation import Observation
from meshscrape.observe.pitfalls import find_pitfalls
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.pod_listers import unknown_listers
from meshscrape.observe.resolved import Resolver
from meshscrape.observe.scrape_jobs import observed_jobs, unread_scrapers
from meshscrape.observe.scrapers import find_scrapers, operator_version
from meshscrape.observe.workload import ObservedWorkload, ResolvedWorkload, fields_of


def observe(inventory: Inventory, *, istio_version: str | None = None, upgraded: bool = False) -> Observation:
    """Return the observation of a cluster from its objects.

    `istio_version` (`1.31.0`) is used when no object tells the version. `upgraded`: every control plane has
    that version now, whatever the objects tell.
    """
    cluster, control, resolved = _resolved(inventory, istio_version, upgraded=upgraded)
    scrapers = find_scrapers(cluster, control, resolved)
    jobs, unreadable = read_jobs(cluster, scrapers)
    scrape_jobs = observed_jobs(jobs, resolved, control.mesh.prometheus_merge)
    readers: dict[Ref, list[str]] = {}
    for scrape_job in scrape_jobs:
        for ref in scrape_job.matches:
            readers.setdefault(ref, []).append(scrape_job.name)
    workloads = tuple(
        ObservedWorkload(
            **fields_of(workload), scraped_by=tuple(dict.fromkeys(readers.get(workload.ref, ())))
        )
        for workload in resolved
    )
    unread = unread_scrapers(scrapers, jobs, unreadable)
    facts = Facts(
        cluster=cluster,
        control=control,
        workloads=workloads,
        jobs=tuple(jobs),
        unreadable=tuple(unreadable),
        scrapers=scrapers,
        unread_scrapers=unread,
        scrape_jobs=scrape_jobs,
        operator_version=operator_version(cluster),
    )
    pitfalls = find_pitfalls(facts)
    return Observation(
        control_planes=control.planes,
        mesh=control.mesh,
        workloads=workloads,
        scrape_jobs=scrape_jobs,
        scrapers=scrapers,
        unread_scrapers=unread,
        unknown_listers=unknown_listers(workloads, scrapers, inventory),
        operator_version=facts.operator_version,
        plaintext_components=plaintext_components(cluster),
        pitfalls=pitfalls,
        next_steps=next_steps(workloads, scrape_jobs, scrapers, pitfalls),
    )


def resolve_workloads(
    inventory: Inventory, *, istio_version: str | None = None
) -> tuple[ResolvedWorkload, ...]:
    """Return the workloads without the scrape jobs that read them, which take most of the time."""
    return tuple(_resolved(inventory, istio_version)[2])


def observe_jobs(inventory: Inventory, *, istio_version: str | None = None) -> tuple[ObservedJob, ...]:
    """Return the scrape jobs alone, without pitfalls."""
    cluster, control, resolved = _resolved(inventory, istio_version)
    jobs, _ = read_jobs(cluster, find_scrapers(cluster, control, resolved))
    return observed_jobs(jobs, resolved, control.mesh.prometheus_merge)


def _resolved(
    inventory: Inventory, istio_version: str | None, *, upgraded: bool = False
) -> tuple[Cluster, Control, list[ResolvedWorkload]]:
    given = parse_version(istio_version) if istio_version else UNKNOWN
    cluster = Cluster(inventory)
    control = read_control(cluster, given, upgraded=upgraded)
    resolver = Resolver(cluster, control)
    return cluster, control, [resolver.resolve(each) for each in Declarations(cluster, control).read()]
