"""Find out what each scrape job reads of the mesh before any pod leaves it, to know which jobs to move.

A job that an earlier plan moved drops the pods with a secure port. To get the same plan again, its reading is
computed without that rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MONITORING_GROUP, SECURE_PORT_META
from meshscrape.istio.ports import MERGED
from meshscrape.kube.objects import Inventory, Manifest, Object, Ref, as_list, as_mapping, dig
from meshscrape.kube.yaml_text import dump, load_text
from meshscrape.observe import observe_jobs
from meshscrape.observe.model import ObservedJob, Scraper
from meshscrape.plan.edited_objects import Mutable, clone
from meshscrape.plan.model import Plan
from meshscrape.plan.workloads import PLAINTEXT_PORTS, Context
from meshscrape.prometheus.derived import without_drop

# The field with the endpoints of each kind of monitor.
ENDPOINTS = {"PodMonitor": "podMetricsEndpoints", "ServiceMonitor": "endpoints"}


@dataclass(frozen=True, slots=True)
class PlaintextReading:
    """The workloads whose plaintext ports one scrape job reads, after all pods match their templates."""

    job: ObservedJob
    refs: frozenset[Ref]
    merged: bool

    @property
    def rank(self) -> tuple[bool, str]:
        """Return a key that sorts jobs of the merged metrics before jobs of Envoy's statistics alone."""
        return not self.merged, self.job.job


def observe_unmoved(context: Context) -> tuple[ObservedJob, ...]:
    """Return the scrape jobs with the drafted listeners, and with every pod still in its plaintext job."""
    drafted = Plan(context.draft.changes()).apply(context.inventory)
    return observe_jobs(_without_drops(drafted), istio_version=context.intent.istio_version)


def readings_of(context: Context, scraper: Scraper) -> list[PlaintextReading]:
    """Return what a scraper's plaintext jobs read of the mesh; jobs of the merged metrics come first."""
    scrapers = {other.ref for other in context.observation.scrapers}
    mesh = {workload.ref for workload in context.observation.workloads} - scrapers
    readings = (_reading(job, mesh) for job in context.unmoved if job.scraper == scraper.ref)
    return sorted((reading for reading in readings if reading.refs), key=lambda reading: reading.rank)


def _reading(job: ObservedJob, mesh: Collection[Ref]) -> PlaintextReading:
    if job.over != "plaintext":
        return PlaintextReading(job, frozenset(), False)
    ports: dict[Ref, set[int]] = {}
    for ports_by_workload in (job.ports_of, job.ports_after):
        for ref, numbers in ports_by_workload.items():
            if ref in mesh:
                ports.setdefault(ref, set()).update(PLAINTEXT_PORTS.intersection(numbers))
    refs = frozenset(ref for ref, numbers in ports.items() if numbers)
    return PlaintextReading(job, refs, any(MERGED in numbers for numbers in ports.values()))


def cover(
    readings: Iterable[PlaintextReading], wanted: Collection[Ref], derived: Collection[str]
) -> list[PlaintextReading]:
    """Return the jobs to derive secure jobs from: a few jobs that together read all of `wanted`.

    The jobs in `derived` already have a secure job. They come first, so that a later plan changes nothing.
    """
    uncovered, chosen = set(wanted), []
    candidates = sorted(readings, key=lambda reading: (reading.job.job not in derived, reading.rank))
    while uncovered and candidates:
        best = max(
            candidates,
            key=lambda reading: (
                reading.job.job in derived and bool(reading.refs & uncovered),
                len(reading.refs & uncovered),
            ),
        )
        if not best.refs & uncovered:
            break
        chosen.append(best)
        candidates.remove(best)
        uncovered -= best.refs
    return chosen


def _without_drops(inventory: Inventory) -> Inventory:
    changed = [
        Manifest(manifest.ref, data, manifest.where)
        for manifest in inventory
        if (data := _stripped(manifest)) is not None and data != manifest.data
    ]
    return inventory.changed(changed, ()) if changed else inventory


def _stripped(manifest: Manifest) -> Object | None:
    """Return an object without the rules that drop secured pods; None if it cannot have such rules."""
    if manifest.ref.kind == "ConfigMap":
        texts = as_mapping(manifest.data.get("data"))
        moved = {key: _stripped_text(text) for key, text in texts.items() if SECURE_PORT_META in str(text)}
        return {**manifest.data, "data": {**texts, **moved}} if moved else None
    if manifest.ref.group == MONITORING_GROUP and manifest.ref.kind in ENDPOINTS:
        data: Mutable = clone(manifest.data)
        for endpoint in endpoints_of(data):
            if "relabelings" in endpoint:
                endpoint["relabelings"] = without_drop(endpoint["relabelings"])
        return data
    return None


def _stripped_text(text: Any) -> Any:
    try:
        config = load_text(str(text), "")
    except InputError:
        return text
    jobs = [job for job in as_list(dig(config, "scrape_configs")) if isinstance(job, dict)]
    for job in jobs:
        if "relabel_configs" in job:
            job["relabel_configs"] = without_drop(job["relabel_configs"])
    return dump(config) if jobs else text


def endpoints_of(monitor: Object) -> Iterator[Mutable]:
    """Return the endpoints of a PodMonitor or ServiceMonitor."""
    field = ENDPOINTS.get(str(monitor.get("kind")), "")
    for endpoint in as_list(dig(monitor, "spec", field)):
        if isinstance(endpoint, dict):
            yield endpoint
