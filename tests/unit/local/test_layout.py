"""From the example's manifest to plans: addresses, environments, routes, commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshscrape.errors import InputError
from meshscrape.kube.mesh import parse_mesh
from meshscrape.kube.mesh_spec import MeshSpec, load_documents
from meshscrape.local.addresses import AddressPair
from meshscrape.local.environment import base_environment
from meshscrape.local.layout import Key, Site, WorkloadPlan, keys_of, plan_mesh
from meshscrape.local.mesh import EXAMPLE
from meshscrape.prometheus.config import CaMetrics
from support.mesh import PROMETHEUS_ID, SECURE, prometheus_manifest, workload_manifest

SITE = Site(
    run=Path("/run"),
    ca_address="127.20.0.1:15012",
    ca_metrics=CaMetrics("127.20.0.1:15014", "/run/ca-metrics-token"),
    ca_root=Path("/ca/root-cert.pem"),
    environment=base_environment({"PATH": "/usr/bin:/bin", "HOME": "/h"}),
    prometheus=Path("/opt/prometheus-3"),
)


def _mesh(*parts: str) -> MeshSpec:
    return parse_mesh(load_documents("\n---\n".join(parts), "mesh.yaml"))


def _plans(mesh: MeshSpec) -> dict[Key, WorkloadPlan]:
    keys = keys_of(mesh)
    pairs = {key: AddressPair(f"127.20.1.{n}", f"127.20.2.{n}") for n, key in enumerate(keys, 1)}
    return plan_mesh(mesh, pairs, SITE)


@pytest.fixture(scope="module")
def example() -> dict[Key, WorkloadPlan]:
    """The plans of the example mesh."""
    return _plans(_mesh(EXAMPLE.read_text()))


def test_the_example_is_hardened_and_lets_only_prometheus_scrape(example: dict[Key, WorkloadPlan]) -> None:
    """Every proxy of the example has both secure ports and exactly one entry on its allow list."""
    for key, plan in example.items():
        if plan.kind == "credentials":
            continue
        settings = plan.settings
        assert (settings.secure_stats_port, settings.secure_merged_port) == (15091, 15092), key
        assert [str(scraper) for scraper in settings.scrapers] == [f"spiffe:{PROMETHEUS_ID}"]
    assert example["default", "httpbin"].settings.localhost_only
    assert example["istio-system", "istio-ingressgateway"].settings.localhost_only


def test_applications_listen_inside_and_prometheus_at_its_pod_address(
    example: dict[Key, WorkloadPlan],
) -> None:
    """What has a sidecar in front must not be reachable past it."""
    assert example["default", "httpbin"].applications[0].listens == (("127.20.2.1", 8000),)
    assert "127.20.2.1:8000" in example["default", "httpbin"].applications[0].argv
    assert example["istio-system", "prometheus"].applications[0].listens == (("127.20.1.4", 9090),)


def test_a_gateway_expects_the_identity_of_each_destination(example: dict[Key, WorkloadPlan]) -> None:
    """Routes lead to pod addresses, with the SPIFFE ID that must answer there."""
    routes = json.loads(example["istio-system", "istio-ingressgateway"].routes)
    upstreams = {route["prefix"]: route["upstream"] for route in routes}
    page = upstreams["/productpage"]
    assert page["address"] == "127.20.1.2" and page["port"] == 9080
    assert page["spiffeId"] == "spiffe://cluster.local/ns/default/sa/productpage"
    assert upstreams["/get"]["spiffeId"] == "spiffe://cluster.local/ns/default/sa/httpbin"


def test_the_examples_gateway_publishes_no_metrics(example: dict[Key, WorkloadPlan]) -> None:
    """What an application serves to scrapers is not served to everybody through the gateway."""
    routes = json.loads(example["istio-system", "istio-ingressgateway"].routes)
    assert routes and not any("/metrics".startswith(route["prefix"]) for route in routes)


def test_prometheus_is_the_program_that_was_found(example: dict[Key, WorkloadPlan]) -> None:
    """Whatever the binary is called, the command `prometheus` means it."""
    plan = example["istio-system", "prometheus"]
    assert plan.prometheus is not None and plan.prometheus.argv[0] == "/opt/prometheus-3"
    assert dict(plan.agent_environment)["OUTPUT_CERTS"] == str(plan.directory / "output-certs")


def test_application_metrics_are_targets_where_tls_answers(example: dict[Key, WorkloadPlan]) -> None:
    """productpage's STRICT port is one, httpbin declares no metrics."""
    assert [s.port for s in example["default", "productpage"].scraped.sources] == [9080]
    assert example["default", "productpage"].scraped.mtls_ports == {9080}
    assert example["default", "httpbin"].scraped.sources == ()


def test_agent_does_not_get_the_applications_environment(example: dict[Key, WorkloadPlan]) -> None:
    """Agent and application each get their own; the application learns no path of a token or key."""
    plan = example["default", "httpbin"]
    application = dict(plan.applications[0].environment)
    assert not any(str(plan.token) in value or "agent" in value for value in application.values())
    assert not any(name.startswith("MESHSCRAPE_") for name in application)


def test_equal_manifests_give_equal_plans() -> None:
    """An edit that changes one workload leaves the plans of the others equal: they are not restarted."""
    web, api = workload_manifest("web", metadata=SECURE), workload_manifest("api", metadata=SECURE)
    before, after = _plans(_mesh(web, api)), _plans(_mesh(web, api.replace("sleep 1000", "sleep 2000")))
    assert before["default", "web"] == after["default", "web"]
    assert before["default", "api"] != after["default", "api"]


def test_a_container_without_a_local_command_is_refused() -> None:
    """There is nothing that could stand for it."""
    text = workload_manifest("web").replace("meshscrape.io/local-command", "example.com/other")
    with pytest.raises(InputError, match="local-command"):
        _plans(_mesh(text))


def test_two_prometheus_are_refused() -> None:
    """They would share one data directory."""
    other = (
        prometheus_manifest().replace("name: prometheus", "name: second").replace("app: prometheus", "app: x")
    )
    with pytest.raises(InputError, match="runs Prometheus already"):
        _plans(_mesh(prometheus_manifest(), other))
