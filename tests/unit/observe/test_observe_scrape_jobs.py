"""What scrapes what, and over what: jobs are tried on the targets of each workload."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.observe.model import ObservedJob
from meshscrape.observe.relabel import relabel, rules_of
from support.objects import (
    SECURE,
    Object,
    config_map,
    control_plane,
    deployment,
    gateway_api,
    injected_gateway,
    managed_deployment,
    namespace,
    observed,
    only,
    pod_of,
    proxy_config,
    service,
)
from support.scraping_objects import (
    SECURE_PORT,
    envoy_stats,
    kubernetes_pods,
    operated_prometheus,
    operator,
    pod_monitor,
    prometheus,
    secure_job,
)

INJECTED = [*control_plane(), namespace("default", istio_injection="enabled")]


def jobs(*parts: Any) -> dict[str, ObservedJob]:
    """The scrape jobs by name and what they go over."""
    return {f"{each.job} {each.over}": each for each in observed(*parts).scrape_jobs}


def ports(job: ObservedJob) -> dict[str, tuple[int, ...]]:
    return {ref.name: found for ref, found in job.ports_of.items()}


# Relabeling


def one(rule: Object, **labels: str) -> dict[str, str] | None:
    return relabel(labels, rules_of([rule]))


def test_relabeling_defaults() -> None:
    """Without more, a rule replaces the target by the whole of the joined sources."""
    assert one({"source_labels": ["a", "b"], "target_label": "c"}, a="1", b="2") == {
        "a": "1",
        "b": "2",
        "c": "1;2",
    }
    assert one({"source_labels": ["a"], "separator": "-", "target_label": "c"}, a="1") == {"a": "1", "c": "1"}


def test_regular_expressions_are_anchored() -> None:
    """A partial match is none; an absent label is the empty string."""
    keep = {"action": "keep", "source_labels": ["a"], "regex": "b"}
    assert one(keep, a="b") is not None
    assert one(keep, a="abc") is None
    assert one({**keep, "regex": "b|c"}, a="cx") is None
    assert one({**keep, "regex": ""}, x="1") is not None


def test_an_empty_replacement_removes_the_label() -> None:
    """A label that becomes empty is gone."""
    assert one({"source_labels": ["a"], "target_label": "a", "replacement": ""}, a="1", b="2") == {"b": "2"}


def test_references_in_replacement_and_target() -> None:
    """$1, ${1} and $name are groups, in the target as well; $$ is a dollar; what does not match stays."""
    rule = {"source_labels": ["a"], "regex": "(?P<x>.)(.)", "replacement": "${2}$x$$", "target_label": "l_$1"}
    assert one(rule, a="pq") == {"a": "pq", "l_p": "qp$"}
    assert one(rule, a="pqr") == {"a": "pqr"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"action": "drop", "source_labels": ["a"], "regex": "x"}, None),
        ({"action": "labelmap", "regex": "m_(.+)"}, {"a": "x", "m_b": "y", "b": "y"}),
        ({"action": "labeldrop", "regex": "m_.+"}, {"a": "x"}),
        ({"action": "labelkeep", "regex": "m_.+"}, {"m_b": "y"}),
        (
            {"action": "uppercase", "source_labels": ["a"], "target_label": "c"},
            {"a": "x", "m_b": "y", "c": "X"},
        ),
        ({"action": "keepequal", "source_labels": ["a"], "target_label": "m_b"}, None),
        ({"action": "dropequal", "source_labels": ["a"], "target_label": "m_b"}, {"a": "x", "m_b": "y"}),
        ({"action": "Drop", "sourceLabels": ["a"], "regex": "x"}, None),
        ({"action": "keep", "source_labels": ["a"], "regex": "("}, None),
        ({"action": "keep", "source_labels": ["a"], "regex": ["x", "z"]}, {"a": "x", "m_b": "y"}),
    ],
)
def test_actions(rule: Object, expected: dict[str, str] | None) -> None:
    """Every action as Prometheus has it, in its spelling, the Operator's and VictoriaMetrics'."""
    assert one(rule, a="x", m_b="y") == expected


@given(st.text(max_size=12), st.text(st.characters(codec="ascii"), max_size=12))
def test_relabeling_never_raises(regex: str, value: str) -> None:
    """A regular expression of no sense matches nothing."""
    one({"action": "replace", "source_labels": ["a"], "regex": regex, "target_label": "b"}, a=value)


# Jobs


def test_the_add_ons_job_takes_every_injected_pod() -> None:
    """The injector announces 15020 on every pod, so kubernetes-pods takes pods that never had annotations."""
    app = deployment()
    found = only(jobs(INJECTED, app, pod_of(app), prometheus(kubernetes_pods())).values())
    assert (found.over, ports(found)) == ("plaintext", {"httpbin": (15020,), "prometheus": (15020,)})
    predicted = only(jobs(INJECTED, app, prometheus(kubernetes_pods())).values())
    assert ports(predicted) == ports(found)


def test_application_that_opts_out_is_not_scraped() -> None:
    """prometheus.io/scrape: "false" stays as it is."""
    app = deployment(annotations={"prometheus.io/scrape": "false"})
    assert "httpbin" not in ports(
        jobs(INJECTED, app, prometheus(kubernetes_pods()))["kubernetes-pods plaintext"]
    )


def test_without_merging_the_applications_port_is_scraped() -> None:
    """With merging off the annotations stay the application's own."""
    app = deployment(annotations={"prometheus.io/scrape": "true", "prometheus.io/port": "8080"})
    plane = control_plane(mesh={"enablePrometheusMerge": False})
    parts = (plane, INJECTED[-1], app, prometheus(kubernetes_pods()))
    assert ports(jobs(*parts)["kubernetes-pods plaintext"]) == {"httpbin": (8080,)}


def test_envoy_stats_takes_gateways_too() -> None:
    """The job on the port's name takes sidecars and all gateways, at 15090."""
    edge = gateway_api()
    parts = [
        INJECTED,
        deployment(),
        injected_gateway(),
        edge,
        managed_deployment(edge),
        prometheus(envoy_stats()),
    ]
    found = only(jobs(*parts).values())
    assert ports(found) == dict.fromkeys(
        ["edge-istio", "httpbin", "istio-ingressgateway", "prometheus"], (15090,)
    )


def test_a_secure_job_is_mtls_with_the_scrapers_identity() -> None:
    """https with a client certificate is mutual TLS, in the name of the Prometheus that runs it."""
    app = deployment(annotations=proxy_config(SECURE))
    found = only(jobs(INJECTED, app, prometheus(secure_job())).values())
    assert (found.over, ports(found)) == ("mtls", {"httpbin": (15092,)})
    assert found.spiffe_id == "spiffe://cluster.local/ns/istio-system/sa/prometheus"
    assert str(found.scraper) == "Deployment.apps istio-system/prometheus"
    bare = only(jobs(INJECTED, app, prometheus(secure_job(tls_config={}))).values())
    assert bare.over == "tls-unverified"


def test_ipv6_targets() -> None:
    """The bracketed address of a pod with IPv6 alone has the port that it has."""
    app = deployment(annotations=proxy_config(SECURE))
    pod = pod_of(app, variables=SECURE, ip="2001:db8::7")
    assert ports(only(jobs(INJECTED, app, pod, prometheus(secure_job())).values())) == {"httpbin": (15092,)}


def test_a_rule_that_drops_secured_pods_is_seen() -> None:
    """A plaintext job that drops pods with a secure port matches what is left, now and after a restart."""
    app, other = deployment(annotations=proxy_config(SECURE)), deployment("other")
    present = SECURE_PORT.replace("annotation_", "annotationpresent_")
    job = kubernetes_pods()
    job["relabel_configs"].append({"action": "drop", "source_labels": [present], "regex": "true"})
    parts = [INJECTED, app, other, prometheus(job, labels={}, annotations={})]
    assert ports(only(jobs(*parts).values())) == {"other": (15020,)}
    old = deployment()
    found = only(jobs(*parts, pod_of(old)).values())
    assert ports(found) == {"httpbin": (15020,), "other": (15020,)}
    assert {ref.name for ref in found.ports_after} == {"other"}


def test_a_job_over_both_is_two_jobs() -> None:
    """The scheme can come from the pod's annotation: one job in plain text and over TLS has two names."""
    job = kubernetes_pods()
    scheme = {
        "source_labels": ["__meta_kubernetes_pod_annotation_prometheus_io_scheme"], "regex": "(https?)",
        "target_label": "__scheme__",
    }  # fmt: skip
    job["relabel_configs"].append(scheme)
    over_tls = deployment("tls", annotations={"prometheus.io/scheme": "https"})
    found = observed(INJECTED, deployment(), over_tls, prometheus(job, labels={}, annotations={}))
    assert {each.name: ports(each) for each in found.scrape_jobs} == {
        "istio-system/prometheus: kubernetes-pods (plaintext)": {"httpbin": (15020,)},
        "istio-system/prometheus: kubernetes-pods (tls-unverified)": {"tls": (15020,)},
    }


def test_services_and_static_targets() -> None:
    """Jobs that discover Services, and targets written as a Service's name, find the pods behind."""
    annotated = service()
    annotated["metadata"]["annotations"] = {"prometheus.io/scrape": "true"}
    endpoints: Object = {
        "job_name": "endpoints", "kubernetes_sd_configs": [{"role": "endpoints"}],
        "relabel_configs": [
            {
                "action": "keep", "regex": "true",
                "source_labels": ["__meta_kubernetes_service_annotation_prometheus_io_scrape"],
            },
            {"action": "keep", "regex": "http", "source_labels": ["__meta_kubernetes_endpoint_port_name"]},
        ],
    }  # fmt: skip
    static: Object = {
        "job_name": "static",
        "static_configs": [{"targets": ["httpbin.default.svc:8000", "other:1"]}],
    }
    found = jobs(INJECTED, deployment(), annotated, prometheus(endpoints, static))
    assert ports(found["endpoints plaintext"]) == {"httpbin": (8080,)}
    assert ports(found["static plaintext"]) == {"httpbin": (8080,)}


def test_namespaces_of_a_discovery() -> None:
    """A job that looks into one namespace sees no other."""
    job = envoy_stats()
    job["kubernetes_sd_configs"][0]["namespaces"] = {"names": ["elsewhere"]}
    assert only(jobs(INJECTED, deployment(), prometheus(job)).values()).matches == ()


def test_unknown_targets_are_reported() -> None:
    """A job that gets its targets from elsewhere is a job of which nobody can tell."""
    job: Object = {"job_name": "far", "http_sd_configs": [{"url": "http://sd"}]}
    found = only(jobs(INJECTED, deployment(), prometheus(job)).values())
    assert not found.certain


def test_collectors() -> None:
    """vmagent reads Prometheus' configuration; the OpenTelemetry Collector writes every dollar twice."""
    escaped = yaml.safe_load(yaml.safe_dump(kubernetes_pods()).replace("$", "$$"))
    config = {"receivers": {"prometheus/mesh": {"config": {"scrape_configs": [escaped]}}}}
    collector = deployment("otel", "istio-system", volumes=[{"name": "c", "configMap": {"name": "otel"}}])
    collector["spec"]["template"]["spec"]["containers"][0]["image"] = (
        "otel/opentelemetry-collector-k8s:0.130.0"
    )
    parts: list[Any] = [
        INJECTED,
        deployment(),
        collector,
        config_map("otel", {"relay": yaml.safe_dump(config)}),
    ]
    found = observed(*parts)
    job = only(each for each in found.scrape_jobs)
    assert ports(job) == {"httpbin": (15020,)}
    assert [(each.kind, each.name) for each in found.scrapers] == [("otel", "otel")]
    assert job.scraper == found.scrapers[0].ref


def test_a_configuration_whose_prometheus_is_not_in_the_dump() -> None:
    """Jobs of a ConfigMap count without knowing who reads it."""
    text = yaml.safe_dump({"scrape_configs": [envoy_stats()]})
    found = only(jobs(INJECTED, deployment(), config_map("prom", {"prometheus.yml": text})).values())
    assert found.scraper is None
    assert ports(found) == {"httpbin": (15090,)}


# The Operator


def test_pod_monitors() -> None:
    """A PodMonitor on the declared port, in plain text, and secured through the scrape class."""
    app = deployment(annotations=proxy_config(SECURE))
    found = jobs(
        INJECTED,
        namespace("monitoring"),
        app,
        operated_prometheus(),
        pod_monitor(),
        pod_monitor("plain", secure=False),
    )
    secure = found["podMonitor/monitoring/envoy/0 mtls"]
    assert ports(secure) == {"httpbin": (15092,)}
    assert secure.spiffe_id == "spiffe://cluster.local/ns/monitoring/sa/prometheus"
    assert ports(found["podMonitor/monitoring/plain/0 plaintext"]) == {"httpbin": (15090,)}


def test_selectors_of_a_prometheus_object() -> None:
    """A null selector takes nothing; a null namespace selector takes its own namespace."""
    monitor = pod_monitor("plain", secure=False)
    parts = [INJECTED, deployment(), monitor]
    assert jobs(*parts, operated_prometheus(podMonitorSelector=None)) == {}
    by_label = operated_prometheus(podMonitorSelector={"matchLabels": {"release": "x"}})
    assert jobs(*parts, by_label) == {}
    own = operated_prometheus(podMonitorNamespaceSelector=None)
    assert len(jobs(*parts, own)) == 1
    monitor["metadata"]["namespace"] = "default"
    assert jobs(*parts, own) == {}


def test_service_monitors_on_an_applications_port() -> None:
    """A ServiceMonitor with files scrapes the application's own port over mTLS."""
    labelled = service()
    labelled["metadata"]["labels"] = {"app": "httpbin"}
    files = {"caFile": "/a", "certFile": "/b", "keyFile": "/c", "insecureSkipVerify": True}
    spec = {
        "selector": {"matchLabels": {"app": "httpbin"}}, "namespaceSelector": {"any": True},
        "endpoints": [{"port": "http", "scheme": "https", "tlsConfig": files}],
    }  # fmt: skip
    found = only(
        jobs(
            INJECTED, deployment(), labelled, operated_prometheus(), operator("ServiceMonitor", "s", spec)
        ).values()
    )
    assert (found.over, ports(found)) == ("mtls", {"httpbin": (8080,)})


def test_files_that_the_api_server_prunes_do_not_count() -> None:
    """A PodMonitor has no certificate files: what is written there is gone."""
    files = {"caFile": "/a", "certFile": "/b", "keyFile": "/c"}
    monitor = pod_monitor(tlsConfig=files)
    del monitor["spec"]["scrapeClass"]
    app = deployment(annotations=proxy_config(SECURE))
    found = only(jobs(INJECTED, app, operated_prometheus(), monitor).values())
    assert found.over == "tls-unverified"


def test_scrape_configs() -> None:
    """A ScrapeConfig's discovery and relabelings, in the Operator's spelling."""
    rules = [
        {
            "action": "Keep",
            "sourceLabels": ["__meta_kubernetes_pod_container_port_name"],
            "regex": ".*-envoy-prom",
        }
    ]
    spec = {"kubernetesSDConfigs": [{"role": "Pod"}], "relabelings": rules, "scheme": "HTTP"}
    found = jobs(INJECTED, deployment(), operated_prometheus(), operator("ScrapeConfig", "s", spec))
    assert ports(found["scrapeConfig/monitoring/s plaintext"]) == {"httpbin": (15090,)}


def test_additional_scrape_configs_of_a_secret() -> None:
    """Jobs in the Secret of a Prometheus object count when the Secret is in the dump."""
    text = base64.b64encode(yaml.safe_dump([envoy_stats()]).encode()).decode()
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "more", "namespace": "monitoring"},
        "data": {"jobs.yaml": text},
    }  # fmt: skip
    server = operated_prometheus(additionalScrapeConfigs={"name": "more", "key": "jobs.yaml"})
    assert ports(only(jobs(INJECTED, deployment(), server, secret).values())) == {"httpbin": (15090,)}
    without = observed(INJECTED, deployment(), server).pitfalls
    assert "scrape-configuration-unreadable" in {each.code for each in without}


def test_monitors_without_a_prometheus_object_in_the_dump() -> None:
    """Whoever reads them, they scrape."""
    found = only(jobs(INJECTED, deployment(), pod_monitor("plain", secure=False)).values())
    assert ports(found) == {"httpbin": (15090,)}


def test_victoria_metrics_operator() -> None:
    """A VMPodScrape is a PodMonitor by another name."""
    scrape = pod_monitor("plain", secure=False)
    scrape |= {"apiVersion": "operator.victoriametrics.com/v1beta1", "kind": "VMPodScrape"}
    assert ports(only(jobs(INJECTED, deployment(), scrape).values())) == {"httpbin": (15090,)}


def test_workloads_know_who_scrapes_them() -> None:
    """The names of their scrape jobs are with the workloads."""
    found = observed(INJECTED, deployment(), prometheus(kubernetes_pods()))
    workload = only(each for each in found.workloads if each.name == "httpbin")
    assert workload.scraped_by == ("istio-system/prometheus: kubernetes-pods",)


# Labels


def labels_of(job: ObservedJob, after: bool = False) -> list[dict[str, str]]:
    by_workload = job.labels_after if after else job.labels_of
    return [dict(each) for ref, targets in by_workload.items() for each in targets if ref.name == "httpbin"]


def test_a_target_has_the_labels_that_relabelling_leaves() -> None:
    """`job` is the job's name and `instance` the address, unless a rule says otherwise."""
    app = deployment()
    rules = [{"action": "labelmap", "regex": "__meta_kubernetes_pod_label_(app)"}]
    job = envoy_stats()
    job["relabel_configs"] += rules
    found = only(jobs(INJECTED, app, pod_of(app, ip="10.0.0.7"), prometheus(job)).values())
    expected = {"job": "envoy-stats", "instance": "10.0.0.7:15090", "app": "httpbin"}
    assert labels_of(found) == [expected]


def test_labels_of_new_pods_differ_from_those_of_running_pods() -> None:
    """A pod that runs without a sidecar is scraped at another port than the one that replaces it."""
    app = deployment(annotations={"prometheus.io/scrape": "true", "prometheus.io/port": "8080"})
    old = pod_of(app, injected=False, ip="10.0.0.7")
    found = only(jobs(INJECTED, app, old, prometheus(kubernetes_pods())).values())
    assert only(labels_of(found))["instance"] == "10.0.0.7:8080"
    assert only(labels_of(found, after=True))["instance"].endswith(":15020")


def test_a_target_that_is_found_twice_counts_once() -> None:
    """Prometheus drops a target that has the address and the labels of another one."""
    app = deployment(annotations={"prometheus.io/scrape": "true"})
    found = only(jobs(INJECTED, app, pod_of(app), prometheus(kubernetes_pods())).values())
    assert len(labels_of(found)) == 1


def test_the_operator_labels_targets_of_a_pod_monitor() -> None:
    """namespace, pod, container, job and endpoint come from the Operator, before the monitor's own rules."""
    app = deployment(labels={"team": "a"})
    rules = [{"sourceLabels": ["namespace", "pod"], "separator": "/", "targetLabel": "where"}]
    monitor = pod_monitor("envoy", secure=False, relabelings=rules)
    monitor["spec"] |= {"podTargetLabels": ["team"]}
    found = only(jobs(INJECTED, app, pod_of(app), operated_prometheus(), monitor).values())
    labels = only(labels_of(found))
    pod = labels["pod"]
    assert labels == {
        "job": "monitoring/envoy",
        "namespace": "default",
        "pod": pod,
        "container": "istio-proxy",
        "endpoint": "http-envoy-prom",
        "team": "a",
        "where": f"default/{pod}",
        "instance": "10.0.0.7:15090",
    }


def test_a_job_label_names_the_job_of_a_service_monitor() -> None:
    """The Service's name is the job, unless jobLabel names a label of the Service that has a value."""
    app, web = deployment(), service()
    web["metadata"]["labels"] = {"tier": "front"}
    spec = {"namespaceSelector": {"any": True}, "selector": {}, "endpoints": [{"port": "http"}]}
    plain = operator("ServiceMonitor", "plain", spec)
    labelled = operator("ServiceMonitor", "labelled", spec | {"jobLabel": "tier", "targetLabels": ["tier"]})
    found = jobs(INJECTED, app, pod_of(app), web, operated_prometheus(), plain, labelled)
    one, two = (
        only(labels_of(found[f"serviceMonitor/monitoring/{name}/0 plaintext"]))
        for name in ("plain", "labelled")
    )
    assert (one["job"], one["service"], one["endpoint"]) == ("httpbin", "httpbin", "http")
    assert (two["job"], two["tier"]) == ("front", "front")


# What the injector writes


INJECTED_MARKS = (
    ("__meta_kubernetes_pod_label_security_istio_io_tlsMode", "istio"),
    ("__meta_kubernetes_pod_label_service_istio_io_canonical_name", "httpbin"),
    ("__meta_kubernetes_pod_label_service_istio_io_canonical_revision", "latest"),
    ("__meta_kubernetes_pod_annotation_sidecar_istio_io_status", ".+"),
    ("__meta_kubernetes_pod_annotation_istio_io_rev", "default"),
)


@pytest.mark.parametrize(("label", "regex"), INJECTED_MARKS)
def test_jobs_that_select_by_the_injectors_marks_are_seen(label: str, regex: str) -> None:
    """A pod as it would be made carries the labels and annotations of the injector."""
    job = envoy_stats()
    job["relabel_configs"].append({"action": "keep", "source_labels": [label], "regex": regex})
    found = only(jobs(INJECTED, deployment(), prometheus(job)).values())
    assert ports(found)["httpbin"] == (15090,)


def test_a_job_that_drops_sidecars_gives_the_same_answer_with_and_without_pods() -> None:
    """The plaintext job of old Istio guides leaves out pods that have a sidecar."""
    job = kubernetes_pods()
    status = "__meta_kubernetes_pod_annotation_sidecar_istio_io_status"
    job["relabel_configs"].append({"action": "drop", "source_labels": [status], "regex": "(.+)"})
    app = deployment(annotations={"prometheus.io/scrape": "true", "prometheus.io/port": "8080"})
    without = only(jobs(INJECTED, app, prometheus(job)).values())
    with_pod = only(jobs(INJECTED, app, pod_of(app), prometheus(job)).values())
    assert without.matches == with_pod.matches == ()


def test_namespaces_and_selectors_of_a_discovery_count() -> None:
    """`own_namespace` is the scraper's namespace; a label selector leaves out other pods."""
    own, labelled = envoy_stats(), envoy_stats()
    own |= {
        "job_name": "own",
        "kubernetes_sd_configs": [{"role": "pod", "namespaces": {"own_namespace": True}}],
    }
    selectors = [{"role": "pod", "label": "app=other"}]
    labelled |= {"job_name": "label", "kubernetes_sd_configs": [{"role": "pod", "selectors": selectors}]}
    found = jobs(INJECTED, deployment(), prometheus(own, labelled))
    assert "httpbin" not in ports(found["own plaintext"])
    assert "httpbin" not in ports(found["label plaintext"])


@pytest.mark.parametrize(("version", "init"), [("1.31.0", "true"), ("1.29.2", "false")])
def test_a_pod_to_come_has_its_proxy_where_the_version_puts_it(version: str, init: str) -> None:
    """From 1.31 on the sidecar is an init container, which some jobs drop."""
    job = envoy_stats()
    source = "__meta_kubernetes_pod_container_init"
    job["relabel_configs"].append({"action": "keep", "source_labels": [source], "regex": init})
    parts = [*control_plane(version), namespace("default", istio_injection="enabled"), deployment()]
    assert ports(only(jobs(parts, prometheus(job)).values()))["httpbin"] == (15090,)


def test_jobs_that_select_by_the_proxys_image_are_seen() -> None:
    """The image that the injector writes is known well enough."""
    job = envoy_stats()
    image = "__meta_kubernetes_pod_container_image"
    job["relabel_configs"].append({"action": "keep", "source_labels": [image], "regex": ".*/proxyv2:.*"})
    assert "httpbin" in ports(only(jobs(INJECTED, deployment(), prometheus(job)).values()))


def test_a_configuration_in_json_is_read() -> None:
    """Prometheus reads JSON as YAML."""
    text = json.dumps({"scrape_configs": [{"job_name": "one", "static_configs": [{"targets": ["a:1"]}]}]})
    found = observed(config_map("prometheus", {"prometheus.yml": text}, None, "monitoring"))
    assert [job.job for job in found.scrape_jobs] == ["one"]
