"""Pitfalls between scrapers and workloads."""

from __future__ import annotations

from typing import Any

import pytest

from support.objects import (
    LOCALHOST_ONLY,
    SECURE,
    Object,
    classic_gateway,
    control_plane,
    deployment,
    namespace,
    observed,
    only,
    peer_authentication,
    pitfalls,
    proxy_config,
    service,
)
from support.scraping_objects import envoy_stats, kubernetes_pods, prometheus, secure_job

INJECTED = namespace("default", istio_injection="enabled")
NO_MESH: dict[str, Any] = {"labels": {"sidecar.istio.io/inject": "false"}, "annotations": {}}


def mesh(metadata: dict[str, str], *jobs: Object) -> list[Any]:
    app = deployment(annotations=proxy_config(metadata))
    return [*control_plane(), INJECTED, app, service(), *prometheus(*jobs, **NO_MESH)]


@pytest.mark.parametrize("job", [kubernetes_pods(), envoy_stats()])
def test_dark_after_hardening(job: Object) -> None:
    """Plaintext ports are closed while a job still scrapes them: its targets are down."""
    code = "dark-after-hardening"
    assert job["job_name"] in only(pitfalls(code, mesh({**SECURE, **LOCALHOST_ONLY}, job))).text
    assert pitfalls(code, mesh(SECURE, job)) == []
    assert pitfalls(code, mesh({**SECURE, **LOCALHOST_ONLY}, secure_job())) == []


def test_half_closed_is_dark_for_that_port() -> None:
    """The environment alone closes 15020: the job on 15020 is dark, the one on 15090 is not."""
    port = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "15020",
        "prometheus.io/path": "/stats/prometheus",
    }
    gateway = classic_gateway(variables=LOCALHOST_ONLY, annotations=port)
    parts = [*control_plane(), gateway]
    assert only(pitfalls("dark-after-hardening", parts, prometheus(kubernetes_pods(), **NO_MESH)))
    assert pitfalls("dark-after-hardening", parts, prometheus(envoy_stats(), **NO_MESH)) == []


def test_scraped_twice() -> None:
    """A secure and a plaintext job for one workload give every series twice."""
    code = "scraped-twice"
    pitfall = only(pitfalls(code, mesh(SECURE, secure_job(), kubernetes_pods())))
    assert "secure" in pitfall.text and "kubernetes-pods" in pitfall.text
    assert pitfalls(code, mesh(SECURE, secure_job())) == []
    assert pitfalls(code, mesh(SECURE, kubernetes_pods())) == []


def application_job(**changes: Any) -> Object:
    """A job that scrapes the application's own port, found by its number."""
    number = "__meta_kubernetes_pod_container_port_number"
    rules = [{"action": "keep", "source_labels": [number], "regex": "8080"}]
    return secure_job("application", rules=rules, **changes)


STRICT, PERMISSIVE = peer_authentication("STRICT"), peer_authentication("PERMISSIVE")


def application(mode: Object, port_name: str = "http", job: Object | None = None) -> list[Any]:
    return [
        *control_plane(), INJECTED, mode, deployment(), service(port_name=port_name),
        *prometheus(job or application_job()),
    ]  # fmt: skip


def test_application_port_permissive() -> None:
    """Over TLS through the sidecar an application's port works under STRICT only."""
    code = "application-port-permissive"
    assert "15092" in only(pitfalls(code, application(PERMISSIVE))).remedy
    assert pitfalls(code, application(STRICT)) == []
    assert pitfalls(code, application(peer_authentication("DISABLE"))) != []


def test_application_port_not_http() -> None:
    """Under STRICT the port must be HTTP for Istio."""
    code = "application-port-not-http"
    assert "metrics" in only(pitfalls(code, application(STRICT, "metrics"))).text
    assert pitfalls(code, application(STRICT, "http-metrics")) == []
    assert pitfalls(code, application(PERMISSIVE, "metrics")) == []


def test_plaintext_under_strict() -> None:
    """Under STRICT plain text to the application's port is refused; an excluded port is not the sidecar's."""
    code = "plaintext-under-strict"
    job = application_job(scheme="http", tls_config={})
    assert only(pitfalls(code, application(STRICT, job=job))).severity == "error"
    assert pitfalls(code, application(PERMISSIVE, job=job)) == []
    excluded = deployment(annotations={"traffic.sidecar.istio.io/excludeInboundPorts": "8080"})
    assert pitfalls(code, control_plane(), INJECTED, STRICT, excluded, service(), prometheus(job)) == []


def test_a_scraper_whose_jobs_are_not_known() -> None:
    """Only scrapers without known jobs are named."""
    agent = deployment("agent", "monitoring", kind="DaemonSet")
    agent["spec"]["template"]["spec"]["containers"][0]["image"] = "gcr.io/datadoghq/agent:7.60.0"
    found = pitfalls("scraper-not-read", control_plane(), agent, prometheus(kubernetes_pods()))
    assert [(each.severity, each.ref and each.ref.name) for each in found] == [("warning", "agent")]


# TLS on ports that speak plain HTTP


@pytest.mark.parametrize("port", [15020, 15090])
def test_https_on_plaintext_port(port: int) -> None:
    """15020 and 15090 never speak TLS, whatever certificate the scraper presents."""
    job = secure_job(rules=[address(port)])
    found = pitfalls("https-on-plaintext-port", mesh({}, job))
    assert {each.severity for each in found} == {"error"}
    assert "httpbin" in {each.ref and each.ref.name for each in found}
    plain = {**kubernetes_pods(), "relabel_configs": [address(port)]}
    assert pitfalls("https-on-plaintext-port", mesh({}, plain)) == []


def address(port: int) -> Object:
    source = "__meta_kubernetes_pod_ip"
    return {"source_labels": [source], "target_label": "__address__", "replacement": f"$1:{port}"}


def test_static_targets_are_in_the_tables_and_judged() -> None:
    """A Service forwards declared ports only, so such a target matches no workload; it is shown all the "
    "same."""
    job = {
        "job_name": "static",
        "scheme": "https",
        "static_configs": [{"targets": ["httpbin.default.svc.cluster.local:15020"]}],
    }
    parts = mesh({}, job)
    assert [each.matches for each in observed(parts).scrape_jobs if each.job == "static"] == [()]
    assert only(pitfalls("https-on-plaintext-port", parts)).ref.kind == "ConfigMap"  # type: ignore[union-attr]


def test_a_static_target_of_a_headless_service_is_a_pod() -> None:
    """Its name leads to the pods, at any port."""
    job = {"job_name": "static", "static_configs": [{"targets": ["httpbin.default.svc:15020"]}]}
    parts = mesh({}, job)
    headless = only(each for each in parts if each["kind"] == "Service")
    headless["spec"]["clusterIP"] = "None"
    found = only(each for each in observed(parts).scrape_jobs if each.job == "static")
    assert {ref.name: ports for ref, ports in found.ports_of.items()} == {"httpbin": (15020,)}
