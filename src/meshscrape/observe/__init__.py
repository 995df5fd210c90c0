"""Observe: what a cluster's objects say about its meshes, workloads, scrapers, and the traps they are in."""

from __future__ import annotations

from dataclasses import replace

from meshscrape.istio.versions import UNKNOWN, parse_version
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.control import read_control
from meshscrape.observe.jobs import read_jobs
from meshscrape.observe.model import Observation
from meshscrape.observe.pitfalls import find_pitfalls
from meshscrape.observe.pitfalls.view import View
from meshscrape.observe.scraped_by import find_consumers
from meshscrape.observe.scrapers import find_scrapers
from meshscrape.observe.workloads import Workloads


def observe(inventory: Inventory, *, istio_version: str | None = None) -> Observation:
    """What the objects say. `istio_version` (`1.31.0`) stands in where nothing in them tells the version."""
    given = parse_version(istio_version) if istio_version else UNKNOWN
    cluster = Cluster(inventory)
    control = read_control(cluster, given)
    found = tuple(Workloads(cluster, control).read())
    scrapers = find_scrapers(cluster, control, found)
    jobs, unreadable = read_jobs(cluster, scrapers)
    consumers = find_consumers(jobs, found, control.mesh.prometheus_merge)
    names: dict[Ref, list[str]] = {}
    for consumer in consumers:
        for ref in consumer.matches:
            names.setdefault(ref, []).append(consumer.name)
    found = tuple(
        replace(
            each,
            workload=replace(
                each.workload, scraped_by=tuple(dict.fromkeys(names.get(each.workload.ref, ())))
            ),
        )
        for each in found
    )
    view = View(cluster, control, found, tuple(jobs), tuple(unreadable), scrapers, consumers)
    return Observation(
        control_planes=control.planes,
        mesh=control.mesh,
        workloads=tuple(each.workload for each in found),
        consumers=consumers,
        scrapers=scrapers,
        pitfalls=find_pitfalls(view),
    )
