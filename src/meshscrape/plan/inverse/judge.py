"""Judge a plan that takes changes back by its predicted result: does each scrape go on?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshscrape.istio.names import METRICS_LOCALHOST_ACCESS_ONLY
from meshscrape.kube.objects import Ref
from meshscrape.observe.model import ObservedJob
from meshscrape.observe.observation import Observation
from meshscrape.plan.model import Missing
from meshscrape.plan.workloads import PLAINTEXT_PORTS


def judge_inverse(
    before: Observation, after: Observation, *, unscraped: bool = False
) -> dict[Ref, tuple[Missing, ...]]:
    """Return what would be worse after the plan, by the workload (or other object) that it happens to.

    A workload that a job reads over mutual TLS must be read afterwards: on a plaintext port that is open, or
    on a secure port as before. The same scraper must read it, if that is still there. `unscraped`: the user
    gives up the scrapes that no job takes over.
    """
    faults: dict[Ref, tuple[Missing, ...]] = {}
    workloads = {workload.ref: workload for workload in after.workloads}
    scrapers = {scraper.ref for scraper in after.scrapers}
    readers = _readers(after.scrape_jobs)
    for job in before.scrape_jobs:
        if job.over != "mtls":
            continue
        for ref in {**job.ports_of, **job.ports_after}:
            workload = workloads.get(ref)
            if workload is None or ref in faults:
                continue
            if ref == job.scraper and not workload.in_mesh:
                # Its own proxy is gone, and with it the statistics of that proxy.
                continue
            reading = [
                other
                for other in readers.get(ref, ())
                if job.scraper not in scrapers or other.scraper == job.scraper
            ]
            plaintext = [other for other in reading if other.over == "plaintext"]
            if plaintext and workload.metrics.hardened:
                faults[ref] = (_still_closed(plaintext[0]),)
            elif not reading and not unscraped:
                faults[ref] = (_unread(job),)
    known = {(pitfall.code, pitfall.ref) for pitfall in before.pitfalls}
    for pitfall in after.pitfalls:
        # Other errors were the user's before meshscrape; these would leave a workload without pods.
        fresh = (pitfall.code, pitfall.ref) not in known
        if pitfall.severity == "critical" and pitfall.ref is not None and fresh:
            missing = Missing(pitfall.code, pitfall.text.rstrip("."), pitfall.remedy.rstrip("."))
            faults.setdefault(pitfall.ref, (missing,))
    return faults


def _readers(jobs: Iterable[ObservedJob]) -> Mapping[Ref, list[ObservedJob]]:
    """Return the jobs that read each workload's proxy once all pods have restarted."""
    readers: dict[Ref, list[ObservedJob]] = {}
    for job in jobs:
        for ref, ports in job.ports_after.items():
            if ports and (job.over == "mtls" or not PLAINTEXT_PORTS.isdisjoint(ports)):
                readers.setdefault(ref, []).append(job)
    return readers


def _still_closed(job: ObservedJob) -> Missing:
    return Missing(
        "still-closed",
        f"{job.name} would read its plaintext ports, and something else keeps them closed",
        f"remove {METRICS_LOCALHOST_ACCESS_ONLY} where it is set: annotation, ProxyConfig object, mesh",
    )


def _unread(job: ObservedJob) -> Missing:
    return Missing(
        "unread-in-plaintext",
        f"{job.name} would no longer read it, and no plaintext job would",
        "add a plaintext job first, or end its scrapes: --unscraped",
    )
