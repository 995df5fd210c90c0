"""A Prometheus as meshscrape makes it, looked at by its own observer: nothing about it bites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from meshscrape.prometheus.kubernetes_sd import ApplicationPort
from meshscrape.prometheus.new_prometheus import PrometheusOptions, prometheus_objects
from support.examples import dual_stack, gateways, secured
from support.objects import (
    control_plane,
    deployment,
    namespace,
    observed,
    only,
    peer_authentication,
    pod_of,
    service,
)

KINDS: tuple[Literal["addon", "operator"], ...] = ("addon", "operator")
OPTIONS = PrometheusOptions("monitoring")
SPIFFE_ID = "spiffe://cluster.local/ns/monitoring/sa/meshscrape-prometheus"


def made(kind: Literal["addon", "operator"], options: PrometheusOptions = OPTIONS) -> list[dict[str, Any]]:
    """Its objects, with the namespace."""
    return [namespace("monitoring"), *prometheus_objects(kind, options)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_a_certificate_and_no_pitfall(kind: Literal["addon", "operator"]) -> None:
    """Injected by its label, the certificate written where Prometheus reads it, rights bound."""
    seen = observed(control_plane("1.31.0"), made(kind))
    scraper = only(seen.scrapers)
    assert (scraper.spiffe_id, scraper.injected) == (SPIFFE_ID, True)
    assert scraper.output_certs == scraper.certs_mount == "/etc/istio-output-certs"
    assert [each for each in seen.pitfalls if each.severity != "info"] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cluster", [secured, dual_stack])
def test_secured_workloads_are_scraped_over_mtls(kind: Literal["addon", "operator"], cluster: Any) -> None:
    """The job on merged metrics takes each workload that announces its port, with a certificate."""
    objects = cluster()
    seen = observed(objects, made(kind))
    announced = {each.ref for each in seen.workloads if each.metrics.announced}
    assert announced
    ours = [each for each in seen.scrape_jobs if each.spiffe_id == SPIFFE_ID and "merged" in each.name]
    assert {each.over for each in ours} == {"mtls"}
    assert {ref for each in ours for ref in each.matches} == announced


@pytest.mark.parametrize("kind", KINDS)
def test_workload_without_announced_ports_is_left_alone(kind: Literal["addon", "operator"]) -> None:
    """Nobody is scraped in plaintext by it, its own metrics aside."""
    seen = observed(gateways(), made(kind))
    plaintext = [
        each for each in seen.scrape_jobs if each.spiffe_id == SPIFFE_ID and each.over == "plaintext"
    ]
    assert all(each.matches == () or each.name.endswith("self/0") for each in plaintext)


def test_application_port_under_strict_is_not_a_pitfall() -> None:
    """An HTTP port by name, STRICT: the ServiceMonitor and the job work."""
    application = ApplicationPort(
        "default", "web", {"app": "web"}, 9080, "/metrics", {"svc": "web"}, "http-web"
    )
    options = PrometheusOptions("monitoring", applications=(application,))
    by_pod = PrometheusOptions("monitoring", applications=(replace(application, service_port=""),))
    web = deployment("web", port=9080)
    exposed = service("web", target=9080, port_name="http-web")
    exposed["metadata"]["labels"] = {"svc": "web"}
    cluster = [
        *control_plane("1.31.0"),
        namespace("default", istio_injection="enabled"),
        web,
        pod_of(web),
        exposed,
        peer_authentication("STRICT"),
    ]
    for objects in (made("addon", options), made("operator", options), made("operator", by_pod)):
        seen = observed(cluster, objects)
        assert [each for each in seen.pitfalls if each.severity != "info"] == []
        ours = only(each for each in seen.scrape_jobs if "web" in each.name)
        assert [ref.name for ref in ours.matches] == ["web"]
