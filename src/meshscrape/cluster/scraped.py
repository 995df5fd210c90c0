"""Tell whether every moved target is up, from Prometheus's own API (`/api/v1/targets`). Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from meshscrape.istio.host_port import host_port
from meshscrape.istio.names import OPERATED_BY
from meshscrape.kube.objects import Inventory, Manifest, Object, Ref, as_list, dig, labels
from meshscrape.kube.selectors import selector_text
from meshscrape.kube.views.pod import pod_addresses
from meshscrape.observe.model import Over, Scraper
from meshscrape.observe.observation import Observation
from meshscrape.plan.workloads import PLAINTEXT_PORTS

API_PORT = 9090
_AUTHORITY = re.compile(r"[a-z]+://([^/?#]+)")


def prometheus_pods(observation: Observation, inventory: Inventory) -> tuple[list[Ref], list[Ref]]:
    """Return the ready pods of all Prometheus that scrape, and the scrapers that cannot be asked."""
    asked: list[Ref] = []
    others: list[Ref] = []
    for scraper in observation.scrapers:
        pods = _pods_of(scraper, observation, inventory) if scraper.kind in ("prometheus", "operator") else []
        ready = [pod.ref for pod in pods if _is_ready(pod.data)]
        asked += ready
        others += [] if ready else [scraper.ref]
    return asked, others


def prometheus_selectors(observation: Observation, inventory: Inventory) -> list[tuple[str, str]]:
    """Return the namespace and label selector of the pods of each Prometheus, now and after restarts."""
    selectors = []
    for scraper in observation.scrapers:
        if scraper.kind == "operator":
            selectors.append((scraper.namespace, f"{OPERATED_BY}={scraper.name}"))
        elif scraper.kind == "prometheus" and (workload := inventory.get(scraper.ref)):
            text = selector_text(dig(workload.data, "spec", "selector", default={}))
            selectors += [(scraper.namespace, text)] if text else []
    return selectors


def _pods_of(scraper: Scraper, observation: Observation, inventory: Inventory) -> list[Manifest]:
    if scraper.kind == "operator":
        pods = inventory.in_namespace(scraper.namespace, "Pod", "")
        return [pod for pod in pods if labels(pod.data).get(OPERATED_BY) == scraper.name]
    workload = observation.workload(scraper.ref)
    return list(workload.pods) if workload else []


def expected_targets(
    observation: Observation, refs: Iterable[Ref], over: Over, unasked: Collection[Ref] = ()
) -> dict[str, str]:
    """Return the pod behind each `ADDRESS:PORT` that a job scrapes: the ready ones.

    `over`: those scraped over mutual TLS, or the plaintext ports of proxies. Jobs of the scrapers in
    `unasked` are left out: no API tells whether their targets are up.
    """
    ports: dict[Ref, set[int]] = {}
    for job in observation.scrape_jobs:
        if job.over == over and job.scraper not in unasked:
            for ref, own in job.ports_of.items():
                read = set(own) if over == "mtls" else PLAINTEXT_PORTS.intersection(own)
                ports.setdefault(ref, set()).update(read)
    targets: dict[str, str] = {}
    workloads = {workload.ref: workload for workload in observation.workloads}
    for ref in refs:
        workload = workloads.get(ref)
        for pod in workload.pods if workload else ():
            if _is_ready(pod.data):
                for address in pod_addresses(pod.data)[:1]:
                    targets |= {host_port(address, port): str(pod.ref) for port in ports.get(ref, ())}
    return targets


def left_targets(observation: Observation, returned: Mapping[str, str]) -> frozenset[str]:
    """Return the secure places of the pods in `returned`, which no scraper may read any more.

    `returned` has the pod behind each plaintext target.
    """
    pods = set(returned.values())
    return frozenset(
        host_port(address, port)
        for workload in observation.workloads
        for pod in workload.pods
        if str(pod.ref) in pods
        for address in pod_addresses(pod.data)[:1]
        for port in workload.metrics.listening
    )


def health_by_target(documents: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the health of each active target by `ADDRESS:PORT`, from the answers of all Prometheus replicas.

    A target that one replica cannot scrape is not up.
    """
    states: dict[str, str] = {}
    for document in documents:
        for target in as_list(dig(document, "data", "activeTargets")):
            place = _AUTHORITY.match(str(dig(target, "scrapeUrl", default="")))
            health = str(dig(target, "health", default="unknown"))
            if place is not None and states.get(place[1], "up") == "up":
                states[place[1]] = health
    return states


def _is_ready(pod: Object) -> bool:
    conditions = as_list(dig(pod, "status", "conditions"))
    ready = any(
        dig(condition, "type") == "Ready" and dig(condition, "status") == "True" for condition in conditions
    )
    return ready and not dig(pod, "metadata", "deletionTimestamp")
