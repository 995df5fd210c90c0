"""Read scrape jobs from the VictoriaMetrics operator's objects, and tell which VMAgent selects them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from meshscrape.istio.names import NAMESPACE_NAME
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.observe.cluster import VICTORIA, Cluster
from meshscrape.observe.declared_jobs import DeclaredJob, strings
from meshscrape.observe.model import Scraper
from meshscrape.observe.monitors import jobs_of_monitor

AGENTS = ("VMAgent", "VMSingle")
# Kinds of scrape objects: the word in selectors and job names, and the Prometheus Operator's similar kind.
SCRAPES = {
    "VMPodScrape": ("podScrape", "PodMonitor"),
    "VMServiceScrape": ("serviceScrape", "ServiceMonitor"),
    "VMScrapeConfig": ("scrapeConfig", "ScrapeConfig"),
}


def victoria_jobs(cluster: Cluster, scrapers: tuple[Scraper, ...]) -> Iterator[DeclaredJob]:
    """Return the jobs of all scrape objects, once for each VMAgent that selects the object."""
    scraper_of = {scraper.ref: scraper for scraper in scrapers}
    agents = [agent for kind in AGENTS for agent in cluster.inventory.of_kind(kind, VICTORIA)]
    for kind, (word, like) in SCRAPES.items():
        for scrape in cluster.inventory.of_kind(kind, VICTORIA):
            takers = [agent for agent in agents if selected_by_agent(agent, scrape, word, cluster)]
            for agent in takers:
                yield from jobs_of_monitor(scrape, None, scraper_of.get(agent.ref), like, word)
            if not agents:
                yield from jobs_of_monitor(scrape, None, None, like, word)
    for scrape in cluster.inventory.of_kind("VMStaticScrape", VICTORIA):
        takers = [agent for agent in agents if selected_by_agent(agent, scrape, "staticScrape", cluster)]
        for agent in takers:
            yield from _static_jobs(scrape, scraper_of.get(agent.ref))
        if not agents:
            yield from _static_jobs(scrape, None)


def selected_by_agent(agent: Manifest, scrape: Manifest, word: str, cluster: Cluster) -> bool:
    """Return whether a VMAgent selects a scrape object.

    Without both selectors it selects nothing, or everything if `selectAllByDefault` is set. With a selector
    alone it looks in its own namespace. With a namespace selector alone it selects all objects there.
    """
    spec = objects.as_mapping(agent.data.get("spec"))
    selector, namespaces = spec.get(f"{word}Selector"), spec.get(f"{word}NamespaceSelector")
    if selector is None and namespaces is None:
        return spec.get("selectAllByDefault") is True
    if selector is not None and not objects.selects(selector, objects.labels(scrape.data)):
        return False
    if namespaces is None:
        return scrape.ref.namespace == agent.ref.namespace
    labels = {NAMESPACE_NAME: scrape.ref.namespace}
    return objects.selects(namespaces, {**labels, **cluster.namespace_labels(scrape.ref.namespace)})


def _static_jobs(scrape: Manifest, scraper: Scraper | None) -> Iterator[DeclaredJob]:
    name = f"staticScrape/{scrape.ref.namespace}/{scrape.ref.name}"
    for index, endpoint in enumerate(objects.as_list(objects.dig(scrape.data, "spec", "targetEndpoints"))):
        job = DeclaredJob(
            name=f"{name}/{index}",
            ref=scrape.ref,
            scraper=scraper,
            scheme=str(objects.dig(endpoint, "scheme", default="http")).lower(),
            path=str(objects.dig(endpoint, "path", default="/metrics")),
            static=strings(objects.dig(endpoint, "targets")),
            raw=objects.as_mapping(endpoint),
        )
        tls = objects.as_mapping(objects.dig(endpoint, "tlsConfig"))
        yield replace(job, tls={"cert_file": tls["certFile"]}) if tls.get("certFile") else job
