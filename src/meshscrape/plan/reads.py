"""Measured reads of proxies' plaintext ports: more of them than the known scrape jobs explain is a reader.

The objects of a cluster tell which scrapers may read. Counters of the proxies tell how often each is read:
pilot-agent counts each read of its merged metrics, and Envoy each request to 15090, where its statistics are
kept. A Prometheus that scrapes both also knows how often it scraped each pod itself, by its own samples of
`up`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.ports import MERGED, SECURE_MERGED, SECURE_STATS, STATS
from meshscrape.kube.objects import as_list, as_mapping, dig
from meshscrape.observe.model import ObservedJob
from meshscrape.observe.workload import ObservedWorkload

# The agent reads 15090 itself, once for each read of the merged metrics.
QUERY = (
    'label_replace(sum by (namespace, pod) (rate(istio_agent_scrapes_total[30m])), "port", "15020", "", "")'
    " or label_replace(sum by (namespace, pod) "
    '(rate(envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix="stats"}[30m])), '
    '"port", "15090", "", "")'
    " or sum by (namespace, pod, job) (count_over_time(up[30m])) / 1800"
)
# `rate` extrapolates to the ends of its window: over 30 minutes that is some percent, or one read.
_SHARE = 0.05
_ONE_READ = 1 / 1800
_FORM = "give the JSON answer of /api/v1/query to the query in docs/kubernetes.md"
_Pod = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads per second of each pod: `measured` by port, and those that Prometheus made, `made` by job."""

    measured: Mapping[_Pod, Mapping[int, float]] = field(default_factory=dict)
    made: Mapping[_Pod, Mapping[str, float]] = field(default_factory=dict)

    def covers(self, workload: ObservedWorkload) -> bool:
        """Return whether both plaintext ports of all pods of a workload were measured."""
        pods = [(pod.ref.namespace, pod.ref.name) for pod in workload.running]
        return bool(pods) and all({MERGED, STATS} <= self.measured.get(pod, {}).keys() for pod in pods)


def parse_reads(text: str, where: str) -> Reads:
    """Return what one answer of Prometheus's API to `QUERY` holds. Raises InputError for anything else."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError("not JSON", where=where, remedy=_FORM) from error
    if dig(document, "status") != "success" or dig(document, "data", "resultType") != "vector":
        raise InputError("not an answer with a vector", where=where, remedy=_FORM)
    measured: dict[_Pod, dict[int, float]] = {}
    made: dict[_Pod, dict[str, float]] = {}
    for number, sample in enumerate(as_list(dig(document, "data", "result")), 1):
        labels, rate = as_mapping(dig(sample, "metric")), _rate(sample, f"{where}: sample {number}")
        pod = (str(labels.get("namespace", "")), str(labels.get("pod", "")))
        if not all(pod):
            # Targets that are not pods have samples of `up` too.
            continue
        port = str(labels.get("port", ""))
        if port in (str(MERGED), str(STATS)):
            measured.setdefault(pod, {})[int(port)] = rate
        elif "job" in labels:
            made.setdefault(pod, {})[str(labels["job"])] = rate
    if not measured:
        raise InputError("it has no reads of any pod", where=where, remedy=_FORM)
    return Reads(measured, made)


def joined(several: Iterable[Reads]) -> Reads:
    """Return the reads of several answers, one for each Prometheus that scrapes (replicas, for example).

    Each counts the same reads, so the highest counts; what each made by itself adds up.
    """
    measured: dict[_Pod, dict[int, float]] = {}
    made: dict[_Pod, dict[str, float]] = {}
    for reads in several:
        for pod, by_port in reads.measured.items():
            own = measured.setdefault(pod, {})
            for port, rate in by_port.items():
                own[port] = max(rate, own.get(port, 0.0))
        for pod, by_job in reads.made.items():
            for job, rate in by_job.items():
                rates = made.setdefault(pod, {})
                rates[job] = rates.get(job, 0.0) + rate
    return Reads(measured, made)


def unexplained(reads: Reads, workload: ObservedWorkload, jobs: Iterable[ObservedJob]) -> str:
    """Return which pod of a workload is read more often than `jobs` explain, in words; else empty."""
    known = list(jobs)
    by_port = {
        MERGED: _labels_of(known, workload, {MERGED, SECURE_MERGED}),
        STATS: _labels_of(known, workload, {STATS, SECURE_STATS}),
    }
    for pod in workload.running:
        key = (pod.ref.namespace, pod.ref.name)
        measured, made = reads.measured.get(key, {}), reads.made.get(key, {})
        for port, rate in sorted(measured.items()):
            explained = sum(made.get(job, 0.0) for job in by_port[port])
            if port == STATS:
                explained += measured.get(MERGED, 0.0)
            if rate > explained * (1 + _SHARE) + _ONE_READ:
                return (
                    f"{key[0]}/{key[1]}: {rate * 60:.1f} reads of {port} a minute, and the known jobs make "
                    f"{explained * 60:.1f} of them"
                )
    return ""


def _labels_of(jobs: Iterable[ObservedJob], workload: ObservedWorkload, ports: set[int]) -> set[str]:
    """Return the values of the label `job` of what the jobs that read these ports yield."""
    return {
        labels.get("job", "")
        for job in jobs
        if not ports.isdisjoint(job.ports_of.get(workload.ref, ()))
        for labels in job.labels_of.get(workload.ref, ())
    }


def _rate(sample: Any, where: str) -> float:
    value = as_list(dig(sample, "value"))
    try:
        rate = float(value[1])
    except (IndexError, TypeError, ValueError) as error:
        raise InputError("a sample without a value", where=where, remedy=_FORM) from error
    if not math.isfinite(rate) or rate < 0:
        raise InputError(f"{value[1]} is not a rate", where=where, remedy=_FORM)
    return rate
