"""Find out which job scrapes which workload, how, and with which labels: try each job on each target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from meshscrape.istio.host_port import host_port
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.observe.declared_jobs import DeclaredJob, Unreadable, is_endpoints
from meshscrape.observe.discovery import META, Labels, pod_targets, predicted, service_targets, shapes
from meshscrape.observe.model import ObservedJob, Over, Scraper
from meshscrape.observe.relabel import relabel
from meshscrape.observe.scrape_proxies import is_proxied
from meshscrape.observe.workload import ResolvedWorkload

# Scrapers with jobs in formats or places that are not read here.
_CONFIGURED_ELSEWHERE = ("other", "azure", "arms")
# Scrapers with a Prometheus configuration. When the dump does not have it, their jobs are unknown.
_CONFIGURED_HERE = ("prometheus", "vmagent", "otel")
_OTHER_ROLES = ("service", "node", "ingress")


@dataclass(frozen=True, slots=True)
class _Scrape:
    """One target after relabelling: its address and path, and the labels that its samples get."""

    over: Over
    port: int
    url: str
    labels: Labels

    @property
    def identity(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Return URL and labels: Prometheus drops a target whose URL and labels equal another one's."""
        return self.url, tuple(sorted(self.labels.items()))


@dataclass(slots=True)
class _Matched:
    """A job and its targets over one kind of connection: now, and once all pods are as declared."""

    job: DeclaredJob
    over: Over
    now: dict[Ref, list[_Scrape]] = field(default_factory=dict)
    after: dict[Ref, list[_Scrape]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Targets:
    """The targets that discovery makes of a workload's pods: by role pod, and behind its Services."""

    pods: list[tuple[Manifest, list[Labels]]]
    behind: list[tuple[Manifest, Manifest, list[tuple[Labels, str]]]]

    @classmethod
    def of(cls, workload: ResolvedWorkload, pods: list[Manifest], services: bool) -> _Targets:
        """Return the targets of `pods`; with `services`, also those behind Services, at twice the cost."""
        return cls(
            [(pod, list(pod_targets(pod))) for pod in pods],
            [
                (pod, service, list(service_targets(pod, service)))
                for pod in pods
                for service in (workload.services if services else ())
            ],
        )


def observed_jobs(
    jobs: list[DeclaredJob], workloads: Iterable[ResolvedWorkload], prometheus_merge: bool
) -> tuple[ObservedJob, ...]:
    """Return all jobs that discover pods, with their targets; `certain` is False when objects do not tell."""
    matched: dict[tuple[int, Over], _Matched] = {}
    relevant = [(index, job) for index, job in enumerate(jobs) if _finds_pods(job)]
    services = any(
        bool(job.static) or any(is_endpoints(discovery.role) for discovery in job.discoveries)
        for _, job in relevant
    )
    for workload in workloads:
        if not relevant:
            break
        now = _Targets.of(workload, shapes(workload, prometheus_merge), services)
        after = now
        if workload.pods:
            after = _Targets.of(workload, [predicted(workload, prometheus_merge)], services)
        for index, job in relevant:
            _match(matched, index, job, workload, now, after)
    several = Counter(index for index, _ in matched)
    scrape_jobs = [
        _observed(match, tell=several[index] > 1)
        for (index, _), match in sorted(matched.items(), key=lambda item: item[0])
    ]
    matching = {index for index, _ in matched}
    scrape_jobs += [
        _unmatched(job) for index, job in enumerate(jobs) if index not in matching and _counts(job)
    ]
    return tuple(scrape_jobs)


def unread_scrapers(
    scrapers: Iterable[Scraper], jobs: Iterable[DeclaredJob], unreadable: Iterable[Unreadable] = ()
) -> tuple[Scraper, ...]:
    """Return the scrapers whose jobs are not all among the objects.

    `unreadable` are configurations that are missing or cannot be read. A job with static targets counts as
    known, even when no workload here is a target of it.
    """
    certain = {job.scraper.ref for job in jobs if job.scraper and not job.elsewhere}
    broken = {configuration.ref for configuration in unreadable}
    return tuple(
        scraper
        for scraper in scrapers
        if scraper.kind in _CONFIGURED_ELSEWHERE
        or scraper.ref in broken
        or (scraper.kind in _CONFIGURED_HERE and scraper.ref not in certain and not scraper.takes_monitors)
    )


def _match(
    matched: dict[tuple[int, Over], _Matched],
    index: int,
    job: DeclaredJob,
    workload: ResolvedWorkload,
    now: _Targets,
    after: _Targets,
) -> None:
    ambient = job.scraper is not None and job.scraper.ambient and workload.kind == "ambient"
    scrapes_now = _distinct(_scraped(job, now))
    scrapes_after = scrapes_now if after is now else _distinct(_scraped(job, after))
    for scrapes, when in ((scrapes_now, "now"), (scrapes_after, "after")):
        for scrape in scrapes:
            over: Over = "ztunnel" if ambient and scrape.over == "plaintext" else scrape.over
            match = matched.setdefault((index, over), _Matched(job, over))
            by_workload = match.now if when == "now" else match.after
            by_workload.setdefault(workload.ref, []).append(scrape)


def _distinct(scrapes: Iterable[_Scrape]) -> list[_Scrape]:
    return list({scrape.identity: scrape for scrape in scrapes}.values())


def _counts(job: DeclaredJob) -> bool:
    """Return whether to report a job without matches: it discovers pods, names targets or looks elsewhere."""
    return (
        bool(job.static)
        or job.elsewhere
        or any(discovery.role not in _OTHER_ROLES for discovery in job.discoveries)
    )


def _finds_pods(job: DeclaredJob) -> bool:
    return bool(job.static) or any(discovery.role not in _OTHER_ROLES for discovery in job.discoveries)


def _scraped(job: DeclaredJob, targets: _Targets) -> Iterator[_Scrape]:
    for discovery in job.discoveries:
        namespaces = discovery.namespaces
        if discovery.role == "pod":
            for pod, candidates in targets.pods:
                if namespaces and pod.ref.namespace not in namespaces:
                    continue
                if discovery.selector is not None and not objects.selects(
                    discovery.selector, objects.labels(pod.data)
                ):
                    continue
                if job.pod_selector is not None and not objects.selects(
                    job.pod_selector, objects.labels(pod.data)
                ):
                    continue
                yield from _tried(job, (labels for labels in candidates if _has_port(job, labels)))
        elif is_endpoints(discovery.role):
            for pod, service, behind_service in targets.behind:
                if namespaces and pod.ref.namespace not in namespaces:
                    continue
                if job.service_selector is not None and not objects.selects(
                    job.service_selector, objects.labels(service.data)
                ):
                    continue
                yield from _tried(
                    job, (labels for labels, name in behind_service if _leads(job, labels, name))
                )
    if job.static:
        yield from _static(job, targets.behind)


def _static(
    job: DeclaredJob, behind: list[tuple[Manifest, Manifest, list[tuple[Labels, str]]]]
) -> Iterator[_Scrape]:
    """Yield the scrapes of static targets that are Services: `NAME.NAMESPACE.svc:PORT`."""
    for target in job.static:
        host, _, port = target.rpartition(":")
        name, _, rest = host.partition(".")
        namespace = rest.partition(".")[0] or (job.scraper.namespace if job.scraper else "default")
        for pod, service, candidates in behind:
            if (service.ref.namespace, service.ref.name) != (namespace, name):
                continue
            if objects.dig(service.data, "spec", "clusterIP") == "None":
                # The name of a headless Service leads to its pods, at any port.
                ip = str(objects.dig(pod.data, "status", "podIP", default=""))
                yield from _tried(job, [{"__address__": host_port(ip, port)}] if ip else [])
                continue
            numbers = {
                str(objects.dig(port, "port")): str(objects.dig(port, "name", default=""))
                for port in objects.as_list(objects.dig(service.data, "spec", "ports"))
            }
            wanted = numbers.get(port)
            yield from _tried(
                job, (labels for labels, leads in candidates if wanted is not None and leads == wanted)
            )


def _has_port(job: DeclaredJob, labels: Labels) -> bool:
    if job.running_only and labels[f"{META}pod_phase"] in ("Succeeded", "Failed"):
        return False
    if job.port_name is not None and labels.get(f"{META}pod_container_port_name") != job.port_name:
        return False
    number = labels.get(f"{META}pod_container_port_number")
    return job.port_number is None or number == str(job.port_number)


def _leads(job: DeclaredJob, labels: Labels, name: str) -> bool:
    if job.port_name is not None:
        return name == job.port_name
    return job.port_number is None or labels["__address__"].endswith(f":{job.port_number}")


def _tried(job: DeclaredJob, targets: Iterable[Labels]) -> Iterator[_Scrape]:
    for target in targets:
        # Prometheus sets these labels before it relabels, unless discovery has set them.
        given = {"job": job.name, "__scheme__": job.scheme, "__metrics_path__": job.path}
        result = relabel(target | given, job.rules)
        if result is None or not result.get("__address__"):
            continue
        address, scheme = result["__address__"], result.get("__scheme__", "http").lower()
        port = address.rpartition(":")[2]
        number = int(port) if port.isdigit() and _has_explicit_port(address) else None
        labels = {key: value for key, value in result.items() if not key.startswith("__") and value}
        labels.setdefault("instance", address)
        yield _Scrape(
            over=over_of(job, scheme),
            port=number or (443 if scheme == "https" else 80),
            url=f"{scheme}://{address}{result.get('__metrics_path__', '')}",
            labels=labels,
        )


def _has_explicit_port(address: str) -> bool:
    # An IPv6 address without brackets has colons and no port.
    return address.count(":") == 1 or "]:" in address


def over_of(job: DeclaredJob, scheme: str) -> Over:
    """Return the kind of a job's connection: plaintext, TLS without a client certificate, or mutual TLS.

    A scrape proxy in the scraper's pod speaks mutual TLS for the jobs that go through it.
    """
    if scheme != "https":
        return "mtls" if is_proxied(job) else "plaintext"
    return "mtls" if job.tls.get("cert_file") or job.tls.get("cert") else "tls-unverified"


def _name(job: DeclaredJob) -> str:
    owner = job.scraper.ref if job.scraper else job.ref
    return f"{owner.namespace}/{owner.name}: {job.name}"


def _observed(matched: _Matched, tell: bool) -> ObservedJob:
    job, now, after = matched.job, dict(sorted(matched.now.items())), dict(sorted(matched.after.items()))
    ports = {ref: _ports(scrapes) for ref, scrapes in now.items()}
    scraper = job.scraper
    return ObservedJob(
        name=_name(job) + (f" ({matched.over})" if tell else ""),
        ref=job.ref,
        job=job.name,
        over=matched.over,
        matches=tuple(ports),
        ports=tuple(sorted({port for numbers in ports.values() for port in numbers})),
        scraper=scraper.ref if scraper else None,
        spiffe_id=_identity(job),
        static=bool(job.static),
        verified=is_proxied(job),
        ports_of=ports,
        ports_after={ref: _ports(scrapes) for ref, scrapes in after.items()},
        labels_of={ref: tuple(scrape.labels for scrape in scrapes) for ref, scrapes in now.items()},
        labels_after={ref: tuple(scrape.labels for scrape in scrapes) for ref, scrapes in after.items()},
    )


def _identity(job: DeclaredJob) -> str | None:
    """Return the identity that a job's scrapes have: of its scraper's sidecar, or of its scrape proxy."""
    scraper = job.scraper
    return scraper.spiffe_id if scraper and (scraper.injected or is_proxied(job)) else None


def _ports(scrapes: Iterable[_Scrape]) -> tuple[int, ...]:
    return tuple(sorted({scrape.port for scrape in scrapes}))


def _unmatched(job: DeclaredJob) -> ObservedJob:
    scraper = job.scraper
    return ObservedJob(
        name=_name(job),
        ref=job.ref,
        job=job.name,
        over=over_of(job, job.scheme),
        matches=(),
        ports=(),
        scraper=scraper.ref if scraper else None,
        spiffe_id=_identity(job),
        certain=not job.elsewhere,
        static=bool(job.static),
        verified=is_proxied(job),
    )
