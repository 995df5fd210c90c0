"""Tell in a few words what to do next about each workload: the first step that is not done yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshscrape.istio import ports
from meshscrape.kube.objects import Ref
from meshscrape.observe.model import ObservedJob, Pitfall, Scraper
from meshscrape.observe.workload import ObservedWorkload

_PLAINTEXT = frozenset({ports.MERGED, ports.STATS})
_SEVERE = ("critical", "error")
_RESTARTABLE = ("Deployment", "StatefulSet", "DaemonSet")


def next_steps(
    workloads: Iterable[ObservedWorkload],
    jobs: Iterable[ObservedJob],
    scrapers: Iterable[Scraper],
    pitfalls: Iterable[Pitfall],
) -> dict[Ref, str]:
    """Return the next step for each workload."""
    severe: dict[Ref | None, list[str]] = {}
    for pitfall in pitfalls:
        if pitfall.severity in _SEVERE:
            severe.setdefault(pitfall.ref, []).append(pitfall.code)
    readers: dict[Ref, list[ObservedJob]] = {}
    for job in jobs:
        for ref in dict.fromkeys((*job.ports_of, *job.ports_after)):
            readers.setdefault(ref, []).append(job)
    scraper_of = {scraper.ref: scraper for scraper in scrapers}
    return {
        workload.ref: _next_step(
            workload,
            readers.get(workload.ref, []),
            scraper_of.get(workload.ref),
            tuple(dict.fromkeys(severe.get(workload.ref, ()))),
        )
        for workload in workloads
    }


def _next_step(
    workload: ObservedWorkload, jobs: list[ObservedJob], scraper: Scraper | None, severe: tuple[str, ...]
) -> str:
    if severe:
        return f"correct: {', '.join(severe)}"
    if scraper is not None:
        return "read: explain --code scraper-ambient" if scraper.ambient else _scraper_step(scraper)
    if workload.kind == "ambient":
        return "nothing: ztunnel encrypts"
    if not workload.in_mesh:
        return "nothing, or: plan --inject"
    if workload.envoy_missing:
        return "nothing: it has no Envoy"
    if workload.owned_by is not None and not workload.metrics.listening:
        return f"change {workload.owned_by.kind} {workload.owned_by.name}"
    if workload.stale:
        kind = workload.ref.kind.lower() if workload.ref.kind in _RESTARTABLE else ""
        return f"restart: rollout restart {kind}/{workload.name}" if kind else "recreate its pods"
    return _metrics_step(workload, jobs)


def _scraper_step(scraper: Scraper) -> str:
    if scraper.stopped:
        return "scale it up: it has 0 replicas"
    if scraper.kind not in ("prometheus", "vmagent"):
        return "check its own configuration"
    if not scraper.output_certs:
        return "give it a certificate: plan"
    return "done: it has a certificate" if scraper.injected else "inject it"


def _metrics_step(workload: ObservedWorkload, jobs: list[ObservedJob]) -> str:
    listening = workload.metrics.listening
    if not listening:
        return "open a secure port: plan"
    secure = any(job.over == "mtls" and _reads(job, workload.ref, listening) for job in jobs)
    if not secure:
        return "scrape the secure port: plan"
    if any(job.over == "plaintext" and _reads(job, workload.ref, _PLAINTEXT) for job in jobs):
        return "leave the plaintext job: plan"
    return "done" if workload.metrics.hardened else "close 15090 and 15020: plan"


def _reads(job: ObservedJob, ref: Ref, wanted: Iterable[int]) -> bool:
    numbers: Mapping[Ref, tuple[int, ...]] = {**job.ports_of, **job.ports_after}
    return not set(wanted).isdisjoint(numbers.get(ref, ()))
