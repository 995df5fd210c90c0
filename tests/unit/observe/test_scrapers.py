"""Which programs and objects scrape, and whether their jobs can be told."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meshscrape.kube.objects import Ref
from meshscrape.observe.model import Scraper
from meshscrape.observe.observation import Observation
from meshscrape.observe.scraper_images import scraping_container
from support.objects import Object, config_map, control_plane, deployment, meta, namespace, observed, only
from support.scraping_objects import envoy_stats, operator, plain_prometheus, pod_monitor, prometheus

INJECTED = [*control_plane(), namespace("default", istio_injection="enabled")]


def template(image: str, args: list[str] | None = None, **labels: str) -> Object:
    container: Object = {"name": "main", "image": image}
    if args is not None:
        container["args"] = args
    return {"metadata": {"labels": labels}, "spec": {"containers": [container]}}


def running(image: str, name: str = "agent", **pod_labels: str) -> Object:
    found = deployment(name, "monitoring", kind="DaemonSet", labels=pod_labels)
    found["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return found


def victoria(kind: str, name: str, spec: Any, space: str = "default", **labels: str) -> Object:
    return {
        "apiVersion": "operator.victoriametrics.com/v1beta1",
        "kind": kind,
        "metadata": meta(name, space, labels=labels),
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        ("prom/prometheus:v3.5.0", "prometheus"),
        ("quay.io/prometheus/prometheus@sha256:" + "0" * 64, "prometheus"),
        ("registry.redhat.io/openshift4/ose-prometheus-rhel9:v4.18", "prometheus"),
        ("quay.io/openshift/origin-prometheus:4.18", "prometheus"),
        ("rancher/mirrored-prometheus-prometheus:v2.55.1", "prometheus"),
        ("victoriametrics/vmagent:v1.110.0", "vmagent"),
        ("victoriametrics/vmsingle:v1.110.0", "vmagent"),
        ("victoriametrics/victoria-metrics:v1.110.0", "vmagent"),
        ("otel/opentelemetry-collector-contrib:0.120.0", "otel"),
        ("public.ecr.aws/aws-observability/aws-otel-collector:v0.43.0", "otel"),
        ("quay.io/signalfx/splunk-otel-collector:0.120.0", "otel"),
        ("signoz/signoz-otel-collector:0.111.0", "otel"),
        ("gke.gcr.io/prometheus-engine/prometheus:v2.53.4-gmp.0", "gmp"),
        (
            "mcr.microsoft.com/azuremonitor/containerinsights/ciprod/prometheus-collector/images:6.15.0",
            "azure",
        ),
        ("gcr.io/datadoghq/agent:7.60.0", "other"),
        ("datadog/agent:7", "other"),
        ("datadoghq.azurecr.io/agent:7.60.0", "other"),
        ("grafana/agent:v0.43.0", "other"),
        ("grafana/alloy:v1.12.0", "other"),
        ("newrelic/nri-prometheus:2.24.0", "other"),
        ("newrelic/newrelic-prometheus-configurator:1.0.0", "other"),
        ("docker.elastic.co/beats/metricbeat:8.17.0", "other"),
        ("docker.elastic.co/beats/elastic-agent:8.17.0", "other"),
        ("telegraf:1.33-alpine", "other"),
        ("public.ecr.aws/cloudwatch-agent/cloudwatch-agent:1.300052", "other"),
        ("registry.example/linux/activegate:1.305", "other"),
        ("dynatrace/dynatrace-activegate:1.305", "other"),
    ],
)
def test_recognises_scrapers_by_image_path(image: str, kind: str) -> None:
    """The whole path counts, because many images are called just `agent`."""
    found = scraping_container(template(image))
    assert found is not None
    assert (found.kind, bool(found.product)) == (kind, True)


@pytest.mark.parametrize(
    "image",
    [
        "example.com/agent:1",
        "quay.io/prometheus-operator/prometheus-operator:v0.85.0",
        "quay.io/prometheus-operator/prometheus-config-reloader:v0.85.0",
        "quay.io/prometheus/node-exporter:v1.9.0",
        "quay.io/prometheus/alertmanager:v0.28.0",
        "prometheuscommunity/postgres-exporter:v0.16.0",
        "example.com/prometheus-example-app:v0.5.0",
        "gcr.io/datadoghq/cluster-agent:7.60.0",
        "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.15.0",
        "grafana/grafana:11.5.0",
    ],
)
def test_other_images_are_not_scrapers(image: str) -> None:
    """An exporter, an operator or a dashboard reads no pod's metrics."""
    assert scraping_container(template(image)) is None


def test_recognises_scrapers_in_private_images() -> None:
    """Arguments that only one program takes, or the recommended label, tell what an image is."""
    server = scraping_container(template("corp/metrics:1", ["--storage.tsdb.path=/data"]))
    agent = scraping_container(template("corp/collect:1", ["-promscrape.config=/etc/prometheus.yml"]))
    labelled = scraping_container(template("corp/alloy-fork:1", **{"app.kubernetes.io/name": "alloy"}))
    assert [each and each.kind for each in (server, agent, labelled)] == ["prometheus", "vmagent", "other"]


def test_storage_node_without_scrape_configuration_is_not_a_scraper() -> None:
    """VictoriaMetrics single scrapes only with -promscrape.config."""
    image = "victoriametrics/victoria-metrics:v1.110.0"
    assert scraping_container(template(image, ["-storageDataPath=/storage"])) is None
    assert scraping_container(template(image, ["-promscrape.config=/etc/scrape.yml"])) is not None


def test_scrapers_without_known_jobs_are_unread() -> None:
    """What an agent with a configuration of another format reads cannot be told; a Prometheus' jobs can."""
    found = observed(INJECTED, deployment(), running("gcr.io/datadoghq/agent:7.60.0"), plain_prometheus())
    assert [each.product for each in found.unread_scrapers] == ["Datadog Agent"]


def test_a_prometheus_without_its_configuration_is_unread() -> None:
    """Its ConfigMap is not in the dump, so its jobs are not known."""
    without = [each for each in plain_prometheus() if each["kind"] != "ConfigMap"]
    found = observed(INJECTED, deployment(), without)
    assert [each.name for each in found.unread_scrapers] == ["prometheus"]


def test_config_map_of_another_format_is_not_a_configuration() -> None:
    """Alloy mounts its configuration, but it is not one of scrape_configs."""
    alloy = running("grafana/alloy:v1.12.0", "alloy")
    alloy["spec"]["template"]["spec"]["volumes"] = [{"name": "c", "configMap": {"name": "alloy"}}]
    text = 'prometheus.scrape "pods" { targets = [] forward_to = [] }'
    found = observed(INJECTED, alloy, config_map("alloy", {"config.alloy": text}, namespace="monitoring"))
    assert only(found.scrapers).config is None
    assert found.unread_scrapers == found.scrapers


# The VictoriaMetrics operator


def vm_agent(**spec: Any) -> Object:
    return victoria("VMAgent", "agent", spec, "vm")


def vm_scrape(**labels: str) -> Object:
    endpoint = {"port": "http-envoy-prom", "path": "/stats/prometheus"}
    return victoria("VMPodScrape", "envoy", {"selector": {}, "podMetricsEndpoints": [endpoint]}, **labels)


@pytest.mark.parametrize(
    ("spec", "taken"),
    [
        ({"selectAllByDefault": True}, True),
        ({}, False),
        ({"podScrapeNamespaceSelector": {}}, True),
        ({"podScrapeSelector": {}}, False),
        ({"podScrapeSelector": {"matchLabels": {"team": "a"}}, "podScrapeNamespaceSelector": {}}, True),
        ({"podScrapeSelector": {"matchLabels": {"team": "b"}}, "podScrapeNamespaceSelector": {}}, False),
    ],
)
def test_a_vm_agent_takes_what_it_selects(spec: Object, taken: bool) -> None:
    """VMAgent is a scraper; without selectors it takes nothing, unless it selects all by default."""
    found = observed(INJECTED, namespace("vm"), deployment(), vm_agent(**spec), vm_scrape(team="a"))
    agent = only(found.scrapers)
    assert (agent.kind, agent.spiffe_id) == ("vm-operator", "spiffe://cluster.local/ns/vm/sa/vmagent-agent")
    names = [each.job for each in found.scrape_jobs if each.scraper == agent.ref]
    assert names == (["podScrape/default/envoy/0"] if taken else [])


def test_scrape_objects_of_the_vm_operator_keep_its_names() -> None:
    """The jobs are called as vmagent shows them."""
    spec = {"selector": {"matchLabels": {"app": "httpbin"}}, "endpoints": [{"port": "http"}]}
    static = {"targetEndpoints": [{"targets": ["httpbin.default:8000"]}]}
    scrapes = [victoria("VMServiceScrape", "s", spec), victoria("VMStaticScrape", "t", static)]
    found = observed(INJECTED, deployment(), scrapes, vm_agent(selectAllByDefault=True))
    assert {each.job for each in found.scrape_jobs} == {
        "serviceScrape/default/s/0",
        "staticScrape/default/t/0",
    }


def test_the_pods_of_a_vm_agent_are_not_a_second_scraper() -> None:
    """The operator's Deployment stands for the same scraper."""
    made = running("victoriametrics/vmagent:v1.110.0", "vmagent-agent")
    made["metadata"]["namespace"] = "vm"
    made["metadata"]["ownerReferences"] = [
        {"apiVersion": "operator.victoriametrics.com/v1beta1", "kind": "VMAgent", "name": "agent"}
    ]
    assert [each.ref.kind for each in observed(INJECTED, vm_agent(), made).scrapers] == ["VMAgent"]


# Managed collectors


def google(kind: str = "PodMonitoring", port: Any = 15020) -> Object:
    return {
        "apiVersion": "monitoring.googleapis.com/v1",
        "kind": kind,
        "metadata": meta("envoy"),
        "spec": {"selector": {}, "endpoints": [{"port": port, "path": "/stats/prometheus"}]},
    }


@pytest.mark.parametrize("port", [15020, "http-envoy-prom"])
@pytest.mark.parametrize("kind", ["PodMonitoring", "ClusterPodMonitoring"])
def test_google_monitoring_objects_are_jobs(kind: str, port: Any) -> None:
    """A port number needs not be declared by the pod: Google's operator rewrites the address."""
    collector = running("gke.gcr.io/prometheus-engine/prometheus:v2.53.4-gmp.0", "collector")
    monitoring = google(kind, port)
    monitoring["spec"]["selector"] = {"matchLabels": {"app": "httpbin"}}
    found = observed(INJECTED, deployment(), collector, monitoring)
    job = only(found.scrape_jobs)
    assert job.scraper == only(found.scrapers).ref
    assert set(job.ports_of.values()) == {(15020 if port == 15020 else 15090,)}
    labels = only(only(job.labels_of.values()))
    assert (labels["job"], labels["namespace"]) == ("envoy", "default")


def test_azure_monitors_are_jobs_of_its_collector() -> None:
    """Azure's monitors have the Operator's form in a group of their own."""
    image = "mcr.microsoft.com/azuremonitor/containerinsights/ciprod/prometheus-collector/images:6.15.0"
    monitor = pod_monitor(secure=False) | {"apiVersion": "azmonitoring.coreos.com/v1"}
    found = observed(INJECTED, deployment(), running(image, "ama-metrics"), monitor)
    job = only(found.scrape_jobs)
    assert (job.job, job.scraper, job.ports) == (
        "podMonitor/monitoring/envoy/0",
        only(found.scrapers).ref,
        (15090,),
    )
    assert found.unread_scrapers == found.scrapers  # its ConfigMaps and the pods' annotations count, too


def test_an_opentelemetry_collector_object_is_a_scraper() -> None:
    """Its receivers' jobs are its own; with a target allocator it takes the Operator's monitors, too."""
    collector: Object = {
        "apiVersion": "opentelemetry.io/v1beta1",
        "kind": "OpenTelemetryCollector",
        "metadata": meta("col", "otel"),
        "spec": {
            "targetAllocator": {"enabled": True, "prometheusCR": {"enabled": True}},
            "config": {"receivers": {"prometheus": {"config": {"scrape_configs": [envoy_stats()]}}}},
        },
    }
    found = observed(INJECTED, deployment(), collector, pod_monitor("plain", secure=False))
    scraper = only(found.scrapers)
    assert (scraper.kind, scraper.service_account) == ("otel", "col-collector")
    assert {(each.job, each.scraper) for each in found.scrape_jobs} == {
        ("envoy-stats", scraper.ref),
        ("podMonitor/monitoring/plain/0", scraper.ref),
    }


def test_a_prometheus_agent_object_is_a_scraper() -> None:
    """The Operator's agent mode has a kind of its own."""
    agent = operator("PrometheusAgent", "ag", {"podMonitorSelector": {}, "podMonitorNamespaceSelector": {}})
    found = observed(INJECTED, deployment(), agent, pod_monitor(secure=False))
    assert [(each.kind, each.product) for each in found.scrapers] == [("operator", "Prometheus agent")]
    assert only(found.scrape_jobs).scraper == only(found.scrapers).ref


# Interception


def scraper(annotations: dict[str, str]) -> Scraper:
    return only(observed(*control_plane(), prometheus(annotations=annotations)).scrapers)


@pytest.mark.parametrize(
    ("annotations", "intercepts"),
    [
        ({}, (True, True)),
        ({"traffic.sidecar.istio.io/includeInboundPorts": ""}, (False, True)),
        ({"traffic.sidecar.istio.io/includeOutboundIPRanges": ""}, (True, False)),
        ({"traffic.sidecar.istio.io/excludeOutboundIPRanges": "0.0.0.0/0"}, (True, False)),
        ({"sidecar.istio.io/interceptionMode": "NONE"}, (False, False)),
    ],
)
def test_a_scraper_tells_what_its_sidecar_intercepts(
    annotations: dict[str, str], intercepts: tuple[bool, bool]
) -> None:
    """Scrapes pass through the sidecar when it intercepts outbound traffic."""
    found = scraper(annotations)
    assert (found.intercepts_inbound, found.intercepts_outbound) == intercepts


def test_an_operators_pods_count_where_its_object_is_not_in_the_dump() -> None:
    """Otherwise the scraper would be overlooked."""
    made = running("quay.io/prometheus/prometheus:v3.5.0", "prometheus-main")
    made["metadata"]["ownerReferences"] = [
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "name": "main", "controller": True}
    ]
    found = observed(INJECTED, made)
    assert [each.name for each in found.unread_scrapers] == ["prometheus-main"]
    server = operator("Prometheus", "main", {})
    assert [each.ref.kind for each in observed(INJECTED, made, server).scrapers] == ["Prometheus"]


def test_inline_jobs_of_a_vm_agent_are_read() -> None:
    """`inlineScrapeConfig` is a list of jobs in Prometheus' form."""
    agent = vm_agent(inlineScrapeConfig=yaml.safe_dump([envoy_stats()]))
    found = observed(INJECTED, deployment(), agent)
    assert [(each.job, each.scraper) for each in found.scrape_jobs] == [("envoy-stats", agent_ref(found))]


def agent_ref(found: Observation) -> Ref:
    return only(found.scrapers).ref
