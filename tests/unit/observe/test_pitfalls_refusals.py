"""What the injector refuses, workloads without an Envoy, and templates of other controllers."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.observe.workload import ObservedWorkload
from support.objects import (
    CONFIG,
    SECURE,
    control_plane,
    deployment,
    namespace,
    observed,
    only,
    pitfalls,
    proxy_config,
)

INJECTED = [*control_plane(), namespace("default", istio_injection="enabled")]


def workload(annotations: dict[str, Any], **more: Any) -> ObservedWorkload:
    return only(observed(INJECTED, deployment(annotations=annotations, **more)).workloads)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("traffic.sidecar.istio.io/excludeInboundPorts", "*"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "8080,http"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "99999"),
        ("prometheus.istio.io/scrape-targets", "8080:/metrics,15020:/x"),
        ("prometheus.istio.io/scrape-targets", "99999:/metrics"),
    ],
)
def test_a_value_that_the_injector_refuses(name: str, value: str) -> None:
    """The injector refuses such pods, so nothing starts any more."""
    pitfall = only(pitfalls("annotation-refused", INJECTED, deployment(annotations={name: value})))
    assert pitfall.severity == "error" and name in pitfall.text
    assert workload({name: value}).refusal == pitfall.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("traffic.sidecar.istio.io/excludeInboundPorts", "3030, 9100"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "*"),
        ("traffic.sidecar.istio.io/includeInboundPorts", ""),
        ("prometheus.istio.io/scrape-targets", "8080:/metrics,9100:/custom"),
    ],
)
def test_values_that_the_injector_takes(name: str, value: str) -> None:
    """Blanks around ports, all ports, and no ports are fine."""
    assert workload({name: value}).refusals == ()


def test_a_configuration_that_cannot_be_read_is_refused() -> None:
    """The reason is data, so that nothing is planned for such a workload."""
    text = "proxyMetadata: {EXIT_ON_ZERO_ACTIVE_CONNECTIONS: true}"
    assert "EXIT_ON_ZERO_ACTIVE_CONNECTIONS" in workload({CONFIG: text}).refusal


# Without an Envoy


@pytest.mark.parametrize(
    "annotations",
    [proxy_config({"DISABLE_ENVOY": "true", **SECURE}), {"inject.istio.io/templates": "grpc-agent"}],
)
def test_no_envoy(annotations: dict[str, str]) -> None:
    """The agent runs alone: no secure port opens, whatever the variables say."""
    found = workload(annotations)
    assert found.envoy_missing and found.metrics.listening == () and found.metrics.mode == "none"
    assert only(pitfalls("no-envoy", INJECTED, deployment(annotations=annotations))).severity == "info"
    assert pitfalls("no-envoy", INJECTED, deployment()) == []


def test_stats_not_merged() -> None:
    """Envoy's statistics are on 15090 and 15091 only."""
    off = proxy_config({"PILOT_AGENT_MERGE_ENVOY_STATS": "false"})
    assert not workload(off).stats_merged and workload({}).stats_merged
    assert "15091" in only(pitfalls("stats-not-merged", INJECTED, deployment(annotations=off))).text


# Templates of other controllers


@pytest.mark.parametrize(
    ("api_version", "kind", "owned"),
    [
        ("serving.knative.dev/v1", "Revision", True),
        ("elasticsearch.k8s.elastic.co/v1", "Elasticsearch", True),
        ("monitoring.coreos.com/v1", "Prometheus", True),
        ("gateway.networking.k8s.io/v1", "Gateway", False),
    ],
)
def test_template_of_another_controller_is_reported(api_version: str, kind: str, owned: bool) -> None:
    """A change of such a template does not last: its owner writes it again."""
    app = deployment()
    app["metadata"]["ownerReferences"] = [
        {"apiVersion": api_version, "kind": kind, "name": "x", "controller": True}
    ]
    found = only(each for each in observed(INJECTED, app).workloads if each.ref.kind == "Deployment")
    assert (found.owned_by is not None) == owned
    if found.owned_by is not None:
        assert (found.owned_by.kind, found.owned_by.name) == (kind, "x")
