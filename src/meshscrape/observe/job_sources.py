"""Read scrape jobs from every kind of object that declares them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from meshscrape.errors import InputError
from meshscrape.istio.fields import load_documents
from meshscrape.kube import objects
from meshscrape.kube.objects import Ref
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.declared_jobs import DeclaredJob, Unreadable, config_jobs
from meshscrape.observe.google_monitoring import google_jobs
from meshscrape.observe.model import Scraper
from meshscrape.observe.monitors import SERVERS, monitor_jobs
from meshscrape.observe.victoria_metrics import AGENTS, victoria_jobs

# The key as YAML or JSON spells it.
_JOBS = re.compile(r"""scrape_configs["']?\s*:""")


def read_jobs(cluster: Cluster, scrapers: tuple[Scraper, ...]) -> tuple[list[DeclaredJob], list[Unreadable]]:
    """Return all jobs that the objects declare, and the configurations that cannot be read."""
    jobs: list[DeclaredJob] = []
    problems: list[Unreadable] = []
    by_config = {scraper.config: scraper for scraper in scrapers if scraper.config}
    for manifest in cluster.inventory.of_kind("ConfigMap", ""):
        data = objects.as_mapping(manifest.data.get("data"))
        texts = [text for text in data.values() if isinstance(text, str) and _JOBS.search(text)]
        scraper = by_config.get(manifest.ref)
        _add(manifest.ref, texts, scraper, jobs, problems)
    _additional(cluster, scrapers, jobs, problems)
    for collector in cluster.inventory.of_kind("OpenTelemetryCollector"):
        scraper = next((scraper for scraper in scrapers if scraper.ref == collector.ref), None)
        config = objects.dig(collector.data, "spec", "config")
        if isinstance(config, str):
            _add(collector.ref, [config], scraper, jobs, problems)
        elif isinstance(config, Mapping):
            jobs += config_jobs(config, collector.ref, scraper)
    jobs += monitor_jobs(cluster, scrapers)
    jobs += victoria_jobs(cluster, scrapers)
    jobs += google_jobs(cluster, scrapers)
    return jobs, problems


def _add(
    ref: Ref, texts: list[str], scraper: Scraper | None, jobs: list[DeclaredJob], problems: list[Unreadable]
) -> None:
    for text in texts:
        try:
            documents = load_documents(text, "line")
        except InputError as error:
            problems.append(Unreadable(ref, str(error)))
            continue
        for document in documents:
            jobs += config_jobs(document.data, ref, scraper)


def _additional(
    cluster: Cluster, scrapers: tuple[Scraper, ...], jobs: list[DeclaredJob], problems: list[Unreadable]
) -> None:
    """Read the jobs that a Prometheus object or a VMAgent has inline or in a Secret."""
    by_ref = {scraper.ref: scraper for scraper in scrapers}
    for manifest in (
        *(server for kind in SERVERS for server in cluster.inventory.of_kind(kind)),
        *(agent for kind in AGENTS for agent in cluster.inventory.of_kind(kind)),
    ):
        inline = objects.dig(manifest.data, "spec", "inlineScrapeConfig")
        if inline:
            _add(manifest.ref, [f"scrape_configs:\n{inline}"], by_ref.get(manifest.ref), jobs, problems)
        selected = objects.as_mapping(objects.dig(manifest.data, "spec", "additionalScrapeConfigs"))
        secret = cluster.inventory.get(Ref("", "Secret", manifest.ref.namespace, str(selected.get("name"))))
        key = str(selected.get("key"))
        if not selected:
            continue
        if secret is None:
            problems.append(
                Unreadable(manifest.ref, f"additionalScrapeConfigs: Secret {selected.get('name')} is missing")
            )
            continue
        text = objects.dig(secret.data, "stringData", key)
        if text is None:
            text = _decoded(objects.dig(secret.data, "data", key, default=""))
        _add(secret.ref, [f"scrape_configs:\n{text}"], by_ref.get(manifest.ref), jobs, problems)


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "unreadable: ["
