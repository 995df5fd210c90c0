"""Observing survives junk in the objects of collectors, permissions, networks and policies."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.observe.observation_document import observation_document
from support.objects import (
    Object,
    control_plane,
    deployment,
    istio,
    legacy_sidecar,
    meta,
    namespace,
    observed,
    service,
)
from support.scraping_objects import (
    envoy_stats,
    operated_prometheus,
    operator,
    permissions,
    pod_monitor,
    prometheus,
    secure_job,
)

_JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 15092, "", "x", "*", "a: [", "{", [], [None], ["x"], {}, {"x": None}, [[]], 1.5]
)


def custom(api_version: str, kind: str, **spec: Any) -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": meta("x"), "spec": spec}


def crowded() -> list[Object]:
    """A cluster with every kind of object that declares, runs, allows or blocks scrapes."""
    endpoint = {"port": "http-envoy-prom", "path": "/stats/prometheus", "tlsConfig": {"caFile": "/ca"}}
    collector = {
        "targetAllocator": {"enabled": True, "prometheusCR": {"enabled": True}},
        "config": {"receivers": {"prometheus": {"config": {"scrape_configs": [envoy_stats()]}}}},
    }
    peer = {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {}}
    rules = [{"from": [peer], "to": [peer], "ports": [{"port": 15092, "endPort": 15093}]}]
    source = {"source": {"principals": ["*"], "notNamespaces": ["x"]}}
    operation = {"operation": {"ports": ["15091"], "notPaths": ["/x*"], "methods": ["GET"]}}
    when = {"key": "request.headers[x]", "notValues": ["a"]}
    role, binding = permissions()
    return [
        *control_plane("1.30.0"),
        namespace("default", istio_injection="enabled"),
        deployment(annotations={"prometheus.istio.io/scrape-targets": "8080:/metrics"}),
        service(),
        legacy_sidecar(app="httpbin"),
        *prometheus(secure_job(), envoy_stats(), rbac=False),
        operated_prometheus(),
        pod_monitor(),
        operator("ScrapeConfig", "s", {"staticConfigs": [{"targets": ["httpbin:15020"]}], "jobName": "j"}),
        operator("ServiceMonitor", "m", {"selector": {}, "endpoints": [endpoint], "jobLabel": "app"}),
        custom("operator.victoriametrics.com/v1beta1", "VMAgent", selectAllByDefault=True, volumes=[{}]),
        custom("operator.victoriametrics.com/v1beta1", "VMServiceScrape", selector={}, endpoints=[endpoint]),
        custom(
            "operator.victoriametrics.com/v1beta1", "VMStaticScrape", targetEndpoints=[{"targets": ["a:1"]}]
        ),
        custom("monitoring.googleapis.com/v1", "PodMonitoring", selector={}, endpoints=[{"port": 15020}]),
        custom("azmonitoring.coreos.com/v1", "PodMonitor", selector={}, podMetricsEndpoints=[endpoint]),
        custom("opentelemetry.io/v1beta1", "OpenTelemetryCollector", **collector),
        custom("networking.k8s.io/v1", "NetworkPolicy", podSelector={}, ingress=rules, egress=rules),
        istio(
            "security",
            "AuthorizationPolicy",
            "p",
            "default",
            {"rules": [{"from": [source], "to": [operation], "when": [when]}]},
        ),
        role,
        binding,
    ]


_CLUSTER = crowded()


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


_PLACES = [path for path in _places(_CLUSTER) if len(path) > 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_PLACES), _JUNK), min_size=1, max_size=4))
def test_malformed_collectors_and_policies_do_not_crash(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """The result is an observation that is JSON, or one line for the user."""
    parts = copy.deepcopy(_CLUSTER)
    for path, junk in changes:
        target: Any = parts
        try:
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = copy.deepcopy(junk)
        except (KeyError, IndexError, TypeError):
            continue
    try:
        found = observed(parts)
    except InputError:
        return
    json.dumps(observation_document(found))
