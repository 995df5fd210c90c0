"""Read the scrape jobs of Google's Managed Service for Prometheus: PodMonitoring and ClusterPodMonitoring.

The rules are those of `pkg/operator/apis/monitoring/v1/pod_config.go` in
GoogleCloudPlatform/prometheus-engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.declared_jobs import DeclaredDiscovery, DeclaredJob
from meshscrape.observe.discovery import META
from meshscrape.observe.model import Scraper
from meshscrape.observe.relabel import rules_of

GROUP = "monitoring.googleapis.com"


def google_jobs(cluster: Cluster, scrapers: tuple[Scraper, ...]) -> Iterator[DeclaredJob]:
    """Return the jobs of Google's monitoring objects, which its managed collectors run."""
    collector = next((scraper for scraper in scrapers if scraper.kind == "gmp"), None)
    for kind in ("PodMonitoring", "ClusterPodMonitoring"):
        for monitoring in cluster.inventory.of_kind(kind, GROUP):
            endpoints = objects.as_list(objects.dig(monitoring.data, "spec", "endpoints"))
            for endpoint in endpoints:
                yield _job(monitoring, endpoint, collector)


def _job(monitoring: Manifest, endpoint: Any, collector: Scraper | None) -> DeclaredJob:
    spec = objects.as_mapping(monitoring.data.get("spec"))
    port = objects.dig(endpoint, "port")
    everywhere = monitoring.ref.kind == "ClusterPodMonitoring"
    # A ClusterPodMonitoring has no namespace of its own; the inventory files it under `default`.
    prefix = monitoring.ref.kind if everywhere else f"PodMonitoring/{monitoring.ref.namespace}"
    rules: list[dict[str, Any]] = [
        {"source_labels": [f"{META}namespace"], "target_label": "namespace"},
        {"target_label": "job", "replacement": monitoring.ref.name},
    ]
    if isinstance(port, int):
        # The port need not be declared: the rules give every target of the pod the same address.
        rules += [
            {
                "source_labels": [f"{META}pod_name"],
                "target_label": "instance",
                "replacement": f"$1:{port}",
            },
            {
                "source_labels": [f"{META}pod_ip"],
                "target_label": "__address__",
                "replacement": f"$1:{port}",
            },
        ]
    return DeclaredJob(
        name=f"{prefix}/{monitoring.ref.name}/{port}",
        ref=monitoring.ref,
        scraper=collector,
        scheme=str(objects.dig(endpoint, "scheme", default="http")).lower(),
        path=str(objects.dig(endpoint, "path", default="/metrics")),
        tls={"cert": True} if objects.dig(endpoint, "tls", "cert") else {},
        discoveries=(DeclaredDiscovery("pod", () if everywhere else (monitoring.ref.namespace,)),),
        rules=rules_of(rules),
        pod_selector=objects.as_mapping(spec.get("selector")),
        port_name=None if isinstance(port, int) else str(port),
        running_only=spec.get("filterRunning") is not False,
        raw=objects.as_mapping(endpoint),
    )
