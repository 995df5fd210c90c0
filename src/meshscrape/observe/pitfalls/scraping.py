"""Pitfalls between scrapers and workloads: targets that go dark, double scrapes, refused scrapes."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.istio import ports
from meshscrape.kube.objects import Ref
from meshscrape.observe.declared_jobs import DeclaredJob
from meshscrape.observe.model import ObservedJob, Pitfall, WorkloadPort
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.workload import ObservedWorkload

_PLAINTEXT = (ports.MERGED, ports.STATS)


def scraping_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of jobs and workloads together."""
    yield from _unread(facts)
    for declared in facts.jobs:
        yield from _static_tls(declared)
    jobs: dict[Ref, list[ObservedJob]] = {}
    for job in facts.scrape_jobs:
        for ref in job.matches:
            jobs.setdefault(ref, []).append(job)
    for workload in facts.workloads:
        mine = jobs.get(workload.ref, [])
        if workload.in_mesh and mine:
            yield from _dark_or_twice(workload, mine)
            yield from _tls_on_plaintext(workload, mine)
            yield from _application(workload, mine)


def _unread(facts: Facts) -> Iterator[Pitfall]:
    for scraper in facts.unread_scrapers:
        # The ARMS agent has its own pitfall.
        if scraper.kind != "arms":
            yield Pitfall(
                "scraper-not-read",
                "warning",
                scraper.ref,
                f"{scraper.product} scrapes here, and these objects do not show which ports: it may read the "
                "plaintext metrics ports.",
                "Check its configuration, or measure which clients read, before you close plaintext ports.",
            )


def _reaches(job: ObservedJob, workload: ObservedWorkload, wanted: tuple[int, ...]) -> bool:
    return any(port in wanted for port in job.ports_of.get(workload.ref, ()))


def _dark_or_twice(workload: ObservedWorkload, jobs: list[ObservedJob]) -> Iterator[Pitfall]:
    plain = [job for job in jobs if job.over == "plaintext" and _reaches(job, workload, _PLAINTEXT)]
    secure = [
        job for job in jobs if job.over == "mtls" and _reaches(job, workload, workload.metrics.listening)
    ]
    names = ", ".join(sorted(job.name for job in plain))
    metrics = workload.metrics
    closed = [port for port in _PLAINTEXT if metrics.hardened or metrics.half_hardened == _other(port)]
    dark = [job for job in plain if _reaches(job, workload, tuple(closed))]
    if dark:
        yield Pitfall(
            "dark-after-hardening",
            "error",
            workload.ref,
            f"The plaintext ports are closed (METRICS_LOCALHOST_ACCESS_ONLY), but {names} still scrapes "
            "them: these targets are down.",
            "Remove the workload from that job, or let it scrape the secure port.",
        )
    elif plain and secure:
        yield Pitfall(
            "scraped-twice",
            "warning",
            workload.ref,
            f"{', '.join(sorted(job.name for job in secure))} scrapes it over mTLS, and {names} in plain "
            "text too: every series is there twice, and the plaintext ports cannot be closed.",
            "Let the plaintext job drop pods that have a secure port, then close the plaintext ports.",
        )


def _other(port: int) -> str:
    return str(ports.STATS if port == ports.MERGED else ports.MERGED)


def _tls_on_plaintext(workload: ObservedWorkload, jobs: list[ObservedJob]) -> Iterator[Pitfall]:
    wrong = [port for port in _PLAINTEXT if port not in workload.metrics.listening]
    for job in jobs:
        numbers = [port for port in job.ports_of.get(workload.ref, ()) if port in wrong]
        if job.over != "plaintext" and numbers:
            yield Pitfall(
                "https-on-plaintext-port",
                "error",
                workload.ref,
                f"{job.name} scrapes {', '.join(map(str, numbers))} over TLS, but 15090 and 15020 speak "
                "plain HTTP only: the target is down.",
                "Scrape the secure ports 15091 or 15092, or set scheme: http.",
            )


def _static_tls(job: DeclaredJob) -> Iterator[Pitfall]:
    """Report static targets that read a plaintext port over TLS.

    A static target may name a port that no Service has; then it matches no workload.
    """
    ports_named = tuple(f":{port}" for port in _PLAINTEXT)
    targets = [target for target in job.static if target.endswith(ports_named)]
    if targets and job.scheme == "https":
        yield Pitfall(
            "https-on-plaintext-port",
            "error",
            job.ref,
            f"Job {job.name} scrapes {', '.join(targets)} over TLS, but 15090 and 15020 speak plain HTTP "
            "only: the target is down.",
            "Scrape the secure ports 15091 or 15092, or set scheme: http.",
        )


def _application(workload: ObservedWorkload, jobs: list[ObservedJob]) -> Iterator[Pitfall]:
    """Judge scrapes of an application's own port: over TLS through the sidecar, or plaintext under STRICT."""
    if workload.kind != "sidecar" or not workload.interception.captured:
        return
    port_of = {port.number: port for port in workload.container_ports}
    for job in jobs:
        for number in job.ports_of.get(workload.ref, ()):
            port = port_of.get(number)
            excluded = str(number) in workload.interception.exclude
            if port is None or excluded or number in workload.metrics.listening:
                continue
            mode = workload.mtls.of(number)
            if job.over == "plaintext" and mode == "STRICT":
                yield _refused(workload, job, number)
            elif job.over != "plaintext":
                yield from _over_tls(workload, job, port, mode)


def _refused(workload: ObservedWorkload, job: ObservedJob, number: int) -> Pitfall:
    return Pitfall(
        "plaintext-under-strict",
        "error",
        workload.ref,
        f"{job.name} scrapes port {number} in plain text, but mTLS is STRICT there: the sidecar refuses it.",
        "Let the agent merge these metrics (prometheus.io annotations) and scrape the merged secure port.",
    )


def _over_tls(
    workload: ObservedWorkload, job: ObservedJob, port: WorkloadPort, mode: str
) -> Iterator[Pitfall]:
    if mode != "STRICT":
        yield Pitfall(
            "application-port-permissive",
            "error",
            workload.ref,
            f"{job.name} scrapes the application's port {port.number} over TLS, but mTLS is {mode} "
            "there: the sidecar takes mTLS only with Istio's ALPN, which Prometheus does not send, and "
            "passes the TLS on to the application.",
            "Set STRICT for that port, or scrape the merged secure port (15092) instead.",
        )
    elif port.protocol != "http":
        yield Pitfall(
            "application-port-not-http",
            "error",
            workload.ref,
            f"{job.name} scrapes port {port.number} over mTLS, but for Istio it is not HTTP "
            f"(Service port {port.service_port_name or 'without a name'!r}): Prometheus negotiates HTTP/2, "
            "which is passed on as it is, and the application does not understand it.",
            "Name the Service's port http-…, or set appProtocol: http (or enable_http2: false in the job).",
        )
