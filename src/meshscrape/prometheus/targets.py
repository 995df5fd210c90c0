"""Targets for Prometheus: addresses with the expected SPIFFE ID."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.istio.host_port import host_port
from meshscrape.istio.names import MERGED_PATH
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.spiffe.ids import SpiffeId

MERGED_JOB = "istio-secure-merged-metrics"
ENVOY_JOB = "istio-secure-envoy-metrics"
APPLICATION_JOB = "istio-secure-application-metrics"
# The proxy's own metrics.
PROXY_JOB = "meshscrape-scrape-proxy"
JOBS = (MERGED_JOB, ENVOY_JOB, APPLICATION_JOB)


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint over mutual TLS: `https://address:port path`, with the expected `spiffe_id`.

    Every sample gets the `labels`: namespace, pod, workload.

    Another address of the same endpoint (dual stack) is not `main`: it may be scraped, but discovery does not
    announce it, because each sample would come twice. One that is not `ready` yet is not announced either.
    """

    address: str
    port: int
    spiffe_id: SpiffeId
    labels: Mapping[str, str]
    path: str = MERGED_PATH
    main: bool = True
    ready: bool = True

    @property
    def authority(self) -> str:
        """Return `host:port`, an IPv6 address in brackets."""
        return host_port(self.address, self.port)

    @property
    def url(self) -> str:
        """Return the whole URL, as Prometheus shows it when it scrapes directly."""
        return f"https://{self.authority}{self.path}"

    @property
    def proxied_url(self) -> str:
        """Return the whole URL, as Prometheus shows it when it scrapes through the scrape proxy."""
        return f"http://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class ScrapedWorkload:
    """The facts about a workload that determine its targets. Port 0 is off; `mtls_ports` use mutual TLS."""

    namespace: str
    pod: str
    workload: str
    spiffe_id: SpiffeId
    address: str
    secure_merged_port: int
    secure_envoy_port: int
    sources: tuple[ScrapeSource, ...] = ()
    mtls_ports: frozenset[int] = frozenset()


def targets_of(workload: ScrapedWorkload) -> dict[str, list[Target]]:
    """Return the workload's targets by job; jobs without a target are absent.

    An application's own port is a target if Envoy answers there with mutual TLS (STRICT or PERMISSIVE). A
    port with its own TLS (scheme https) would be TLS inside TLS, so it is only read through the merge.
    """
    labels = {"namespace": workload.namespace, "pod": workload.pod, "workload": workload.workload}

    def target(port: int, path: str = MERGED_PATH) -> Target:
        return Target(workload.address, port, workload.spiffe_id, labels, path)

    targets: dict[str, list[Target]] = {}
    if workload.secure_merged_port:
        targets[MERGED_JOB] = [target(workload.secure_merged_port)]
    if workload.secure_envoy_port:
        targets[ENVOY_JOB] = [target(workload.secure_envoy_port)]
    own = [s for s in workload.sources if s.port in workload.mtls_ports and s.scheme == "http"]
    if own:
        targets[APPLICATION_JOB] = [target(source.port, source.path) for source in own]
    return targets


def by_job(workloads: Iterable[ScrapedWorkload]) -> dict[str, list[Target]]:
    """Return all targets by job, every job present, in a stable order."""
    jobs: dict[str, list[Target]] = {job: [] for job in JOBS}
    for workload in workloads:
        for job, targets in targets_of(workload).items():
            jobs[job].extend(targets)
    for targets in jobs.values():
        targets.sort(key=lambda target: (target.authority, target.path))
    return jobs


def file_sd(targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Return target groups of Prometheus's file_sd format (also vmagent's and the Collector's)."""
    groups = []
    for target in targets:
        labels = dict(target.labels)
        if target.path != MERGED_PATH:
            labels["__metrics_path__"] = target.path
        groups.append({"targets": [target.authority], "labels": labels})
    return groups
