"""The Kubernetes objects of a new Prometheus for the secured mesh, with or without the Operator."""

from __future__ import annotations

from typing import Any, Literal

from meshscrape.prometheus.addon import addon
from meshscrape.prometheus.operator import operator
from meshscrape.prometheus.options import PrometheusOptions

__all__ = ["PrometheusOptions", "prometheus_objects"]


def prometheus_objects(
    kind: Literal["addon", "operator"], options: PrometheusOptions
) -> tuple[dict[str, Any], ...]:
    """Return all objects of a new Prometheus, in the order to apply them.

    `addon`: ServiceAccount, roles, ConfigMap, Deployment, Service. `operator`: ServiceAccount, roles,
    Prometheus with a scrape class, PodMonitors, ServiceMonitors, PrometheusRule.
    """
    return addon(options) if kind == "addon" else operator(options)
