"""Istio's own samples, read from the module cache, with what a test changes in them."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import yaml

from conformance.cluster import programs
from conformance.kube import Object

SCRAPE_INTERVAL = "1s"  # the samples' 15 s would only make every test wait
PROXIES = ("kubernetes-pods", "istio-secure")  # the jobs that read proxies
SLOW = {"scrape_interval": "30s", "scrape_timeout": "10s"}  # the API server's metrics are large
SECURE_PORTS = {"ENVOY_SECURE_METRICS_PORT": "15091", "ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}


@cache
def _read(path: str) -> list[Object]:
    file = programs.source("istio", "istio.io/istio") / "samples" / path
    return [value for value in yaml.safe_load_all(file.read_text()) if value]


def sample(path: str) -> list[Object]:
    """Return the objects of a file below Istio's `samples/`."""
    return copy.deepcopy(_read(path))


def httpbin() -> list[Object]:
    """Return httpbin: ServiceAccount, Service, Deployment."""
    return sample("httpbin/httpbin.yaml")


def gateway() -> list[Object]:
    """Return httpbin's gateway by the Gateway API."""
    return sample("httpbin/gateway-api/httpbin-gateway.yaml")


def prometheus(*, secure: bool) -> list[Object]:
    """Return Istio's Prometheus add-on, or the guide's with a certificate; both scrape every second."""
    objects = sample("addons/extras/prometheus-secure-metrics.yaml" if secure else "addons/prometheus.yaml")
    for value in objects:
        if value["kind"] == "ConfigMap":
            configuration = yaml.safe_load(value["data"]["prometheus.yml"])
            configuration["global"] |= {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": SCRAPE_INTERVAL}
            for job in configuration["scrape_configs"]:
                pace = {} if job["job_name"].startswith(PROXIES) else SLOW
                for key in ("scrape_interval", "scrape_timeout"):
                    job.pop(key, None)
                job |= pace
            value["data"]["prometheus.yml"] = yaml.safe_dump(configuration, sort_keys=False)
    return objects


def annotate(deployment: Object, **annotations: str) -> Object:
    """Return a workload with annotations on its pod template."""
    changed: dict[str, Any] = copy.deepcopy(deployment)
    meta = changed["spec"]["template"].setdefault("metadata", {})
    meta["annotations"] = {**meta.get("annotations", {}), **annotations}
    return changed


def proxy_metadata(**values: str) -> str:
    """Return the text of the annotation `proxy.istio.io/config` that sets variables of the proxy."""
    return str(yaml.safe_dump({"proxyMetadata": values}))
