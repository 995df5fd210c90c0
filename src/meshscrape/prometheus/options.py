"""The options of a new Prometheus in a cluster, with or without the Operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.istio.names import APPLICATION_INSTANCE, APPLICATION_NAME, MANAGED_BY
from meshscrape.prometheus.kubernetes_sd import ApplicationPort, ClusterJobs
from meshscrape.prometheus.limits import BODY_SIZE_LIMIT, SAMPLE_LIMIT
from meshscrape.prometheus.rules import RuleOptions
from meshscrape.prometheus.scrape_proxy_pod import IN_POD, ScrapeProxyPod
from meshscrape.prometheus.scraper_pod import CERTIFICATES

MANAGED_LABELS = {MANAGED_BY: "meshscrape"}
IMAGE = "prom/prometheus:v3.10.0"


@dataclass(frozen=True, slots=True)
class PrometheusOptions:
    """The options of a new Prometheus. All objects, with the ServiceAccount, are named `name`.

    `namespace`: where the objects are.
    `revision`: revision or tag of the control plane that injects it, if the namespace has no label for it.
    `namespaces`: scrape pods of these namespaces, with rights in them only; empty means the whole cluster.
    `harden`: close the plaintext metrics of Prometheus's own sidecar. `network_policy`: let only pods of
    `namespace` query Prometheus (addon). `keep_own_series`: keep `up` and `scrape_*` that an application
    exposes (for federation). `proxy`: scrape through a scrape proxy in the pod.
    Intervals are in Prometheus's syntax.
    """

    namespace: str
    name: str = "meshscrape-prometheus"
    revision: str = ""
    namespaces: tuple[str, ...] = ()
    applications: tuple[ApplicationPort, ...] = ()
    interval: str = "15s"
    timeout: str = "10s"
    retention: str = "15d"
    image: str = IMAGE
    harden: bool = False
    network_policy: bool = False
    keep_own_series: bool = False
    sample_limit: int = SAMPLE_LIMIT
    body_size_limit: str = BODY_SIZE_LIMIT
    rules: RuleOptions | None = field(default_factory=RuleOptions)
    labels: Mapping[str, str] = field(default_factory=dict)
    proxy: ScrapeProxyPod | None = None

    @property
    def service_account(self) -> str:
        """Return the name of its ServiceAccount."""
        return self.name

    def spiffe_id(self, trust_domain: str) -> str:
        """Return its SPIFFE ID in a mesh of `trust_domain`."""
        return f"spiffe://{trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def jobs(self) -> ClusterJobs:
        """Return the options of its scrape jobs."""
        return ClusterJobs(
            CERTIFICATES,
            self.namespaces,
            self.applications,
            keep_own_series=self.keep_own_series,
            sample_limit=self.sample_limit,
            body_size_limit=self.body_size_limit,
            proxy=IN_POD if self.proxy else None,
        )

    @property
    def selector(self) -> dict[str, str]:
        """Return the labels that select its objects."""
        return {APPLICATION_NAME: "prometheus", APPLICATION_INSTANCE: self.name}

    def metadata(self, name: str = "", namespace: str | None = None) -> dict[str, Any]:
        """Return the metadata of one of its objects; an empty `namespace` means a cluster-wide object."""
        place = self.namespace if namespace is None else namespace
        return {
            "name": name or self.name,
            **({"namespace": place} if place else {}),
            "labels": {**self.selector, **self.labels, **MANAGED_LABELS},
        }
