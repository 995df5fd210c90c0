"""Clusters of the kinds in which plans used to make something worse, each as small as it can be."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from meshscrape.kube.objects import Inventory
from meshscrape.plan.render.diff import summary
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    istio,
    meta,
    namespace,
    pod_of,
    proxy_config,
    service,
)
from support.planning import annotations, changed, codes, planned, refs, settled, template
from support.planning import proxy_config as planned_config
from support.scraping_objects import (
    envoy_stats,
    operated_prometheus,
    permissions,
    plain_prometheus,
    pod_monitor,
)

INBOUND = "traffic.sidecar.istio.io/includeInboundPorts"
OUTBOUND = "traffic.sidecar.istio.io/includeOutboundIPRanges"
MOUNT = "sidecar.istio.io/userVolumeMount"


def mesh(*objects: Any, version: str = "1.31.0", **workload: Any) -> Inventory:
    return cluster(control_plane(version), injected_namespace(), deployment(**workload), service(), *objects)


def test_a_certificate_without_a_scrape_class_gets_one() -> None:
    """A Prometheus object with OUTPUT_CERTS, and a plaintext PodMonitor: the class has its own mount path."""
    server = operated_prometheus()
    del server["spec"]["scrapeClasses"]
    plan = settled(mesh(server, pod_monitor("plain", secure=False)))
    (found,) = changed(plan, "Prometheus")["spec"]["scrapeClasses"]
    assert found["tlsConfig"]["certFile"] == "/etc/prom-certs/cert-chain.pem"
    assert changed(plan, "PodMonitor", "meshscrape-plain")["spec"]["scrapeClass"] == found["name"]
    assert len(plan.outcome.secured) == 1


def test_policy_that_blocks_the_scraper_gets_another_beside_it() -> None:
    """It admits the secure port from the scraper's pods; policies add up, so no other port opens."""
    blocking = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("deny"),
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 15020}]}]},
    }  # fmt: skip
    plan = settled(mesh(plain_prometheus(), blocking))
    (rule,) = changed(plan, "NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"port": 15092, "protocol": "TCP"}]
    assert len(plan.outcome.secured) == 1


def test_no_policy_is_planned_where_none_blocks_the_scraper() -> None:
    """A policy that selects pods denies all that it does not name: without need there is none."""
    assert not [ref for ref in refs(settled(mesh(plain_prometheus()))) if ref[2].startswith("NetworkPolicy")]


@pytest.mark.parametrize("space", ["default", "istio-system"])
def test_an_allow_policy_admits_the_scraper_in_legacy_mode(space: str) -> None:
    """Beside ALLOW policies of the namespace or of the mesh: this port, this path, reading only."""
    allow = istio("security", "AuthorizationPolicy", "nothing", space, {})
    plan = settled(mesh(plain_prometheus(), allow, version="1.29.2"), mode="legacy")
    spec = changed(plan, "AuthorizationPolicy", "meshscrape-httpbin-allow")["spec"]
    assert spec["action"] == "ALLOW"
    (rule,) = spec["rules"]
    assert rule["from"][0]["source"]["principals"] == ["cluster.local/ns/monitoring/sa/prometheus"]
    assert rule["to"][0]["operation"] == {
        "ports": ["15091"], "paths": ["/stats/prometheus"], "methods": ["GET", "HEAD"],
    }  # fmt: skip


def test_allow_policy_is_removed_with_the_last_other_one() -> None:
    """Alone it would deny everything but the scrapes."""
    allow = istio("security", "AuthorizationPolicy", "nothing", "default", {})
    before = mesh(plain_prometheus(), allow, version="1.29.2")
    after = planned(before, mode="legacy").apply(before)
    left = cluster([each.data for each in after if each.ref.name != "nothing"])
    plan = planned(left, mode="legacy")
    assert ("listeners", "delete", "AuthorizationPolicy/meshscrape-httpbin-allow") in refs(plan)


def test_an_injected_scraper_is_no_longer_intercepted() -> None:
    """Its sidecar is there for the certificate alone; clients in the mesh are told."""
    server = plain_prometheus(labels={"app": "prometheus", "sidecar.istio.io/inject": "true"})
    plan = settled(mesh(server))
    found = annotations(plan, name="prometheus")
    assert (found[INBOUND], found[OUTBOUND]) == ("", "")
    assert template(plan, name="prometheus")["metadata"]["labels"]["security.istio.io/tlsMode"] == "disabled"
    assert "interception-ends" in codes(plan)


@pytest.mark.parametrize("owned", [True, False])
def test_a_plan_names_the_services_that_lose_strict_mutual_tls(owned: bool) -> None:
    """Interception ends for the scraper: its Services are named, for a Prometheus object too."""
    selected = {"app.kubernetes.io/name": "prometheus"} if owned else {"app": "prometheus"}
    entry = service("grafana-reads", "monitoring")
    entry["spec"]["selector"] = selected
    if owned:
        server = operated_prometheus()
        server["spec"]["podMetadata"]["annotations"].pop(OUTBOUND, None)
        server["spec"]["podMetadata"]["labels"] |= selected
        found = settled(mesh(server, entry, injected_namespace("monitoring"), pod_monitor(secure=False)))
    else:
        labels = {"app": "prometheus", "sidecar.istio.io/inject": "true"}
        found = settled(mesh(plain_prometheus(labels=labels), entry))
    (note,) = [note for note in found.notes if note.code == "interception-ends"]
    assert "monitoring/grafana-reads" in note.text


def test_a_scraper_outside_the_mesh_loses_no_interception() -> None:
    """It gets its first sidecar, which intercepts nothing."""
    assert "interception-ends" not in codes(settled(mesh(plain_prometheus())))


def test_a_volume_that_is_mounted_already_is_used() -> None:
    """One volume at one path: a second one there and the API server refuses the pod."""
    server, config = plain_prometheus(
        labels={"app": "prometheus", "sidecar.istio.io/inject": "true"},
        annotations={
            **proxy_config({"OUTPUT_CERTS": "/etc/mine"}),
            "sidecar.istio.io/userVolume": '{"mine": {"emptyDir": {"medium": "Memory"}}}',
            MOUNT: '{"mine": {"mountPath": "/etc/mine"}}',
        },
    )
    plan = settled(mesh(server, config))
    assert json.loads(annotations(plan, name="prometheus")[MOUNT]) == {"mine": {"mountPath": "/etc/mine"}}
    spec = template(plan, name="prometheus")["spec"]
    assert {"name": "mine", "mountPath": "/etc/mine", "readOnly": True} in spec["containers"][0][
        "volumeMounts"
    ]
    assert {"name": "mine", "emptyDir": {"medium": "Memory"}} in spec["volumes"]
    text = changed(plan, "ConfigMap", "prometheus")["data"]["prometheus.yml"]
    secure = [job for job in yaml.safe_load(text)["scrape_configs"] if job.get("scheme") == "https"]
    assert secure[0]["tls_config"]["cert_file"] == "/etc/mine/cert-chain.pem"


@pytest.mark.parametrize(
    ("api", "kind"),
    [("serving.knative.dev/v1", "Revision"), ("elasticsearch.k8s.elastic.co/v1", "Elasticsearch")],
)
def test_a_template_of_another_controller_is_left_alone(api: str, kind: str) -> None:
    """The controller takes the change back: the owner is named."""
    made = deployment()
    made["metadata"]["ownerReferences"] = [
        {"apiVersion": api, "kind": kind, "name": "owner", "uid": "1", "controller": True}
    ]
    plan = settled(cluster(control_plane(), injected_namespace(), made, service(), plain_prometheus()))
    assert plan.changes == ()
    assert "template-owned" in codes(plan)
    assert plan.outcome.refused == ("Deployment.apps default/httpbin",)


def test_a_rollout_is_left_alone_and_named() -> None:
    """Argo Rollouts makes the ReplicaSets of a Rollout, and nothing changes for its sake."""
    made = deployment("httpbin-5d8f6c7b9", kind="ReplicaSet")
    made["metadata"]["ownerReferences"] = [
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "httpbin", "controller": True}
    ]
    rollout = {**deployment(), "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout"}
    things = [*control_plane(), injected_namespace(), made, pod_of(deployment()), rollout]
    plan = settled(cluster(things, plain_prometheus()))
    assert plan.changes == ()
    assert [(note.code, note.ref and note.ref.kind) for note in plan.notes if note.refused] == [
        ("template-owned", "Rollout")
    ]


def test_a_paused_prometheus_object_holds_its_scrapes_back() -> None:
    """The Operator would apply neither the certificate nor the monitors."""
    paused = operated_prometheus(paused=True)
    plan = settled(mesh(paused, pod_monitor("plain", secure=False)))
    assert "operator-paused" in codes(plan)
    assert "hardening" not in {change.phase for change in plan.changes}


def test_jobs_in_a_missing_secret_keep_plaintext_ports_open() -> None:
    """They may read any port."""
    more = operated_prometheus(additionalScrapeConfigs={"name": "more", "key": "jobs.yaml"})
    plan = settled(mesh(more, pod_monitor("plain", secure=False)))
    assert "reader-unknown" in codes(plan)
    assert "hardening" not in {change.phase for change in plan.changes}


def test_the_operators_own_stateful_set_is_not_touched() -> None:
    """The Operator takes that back within seconds: the Prometheus object is what changes."""
    made = deployment("prometheus-main", "monitoring", kind="StatefulSet")
    made["metadata"]["ownerReferences"] = [
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "name": "main", "uid": "1",
         "controller": True}
    ]  # fmt: skip
    plan = settled(
        mesh(operated_prometheus(), made, injected_namespace("monitoring"), pod_monitor(secure=False))
    )
    assert not [ref for ref in refs(plan) if ref[2].startswith("StatefulSet")]
    assert plan.outcome.refused == ()


def test_statistics_that_are_not_merged_get_a_port_of_their_own() -> None:
    """PILOT_AGENT_MERGE_ENVOY_STATS=false: the merged port has no statistics of Envoy."""
    workload = proxy_config({"PILOT_AGENT_MERGE_ENVOY_STATS": "false"})
    plan = settled(mesh(plain_prometheus(), annotations=workload))
    variables = planned_config(plan, name="httpbin")["proxyMetadata"]
    assert variables["ENVOY_SECURE_METRICS_PORT"] == "15091"
    assert annotations(plan, name="httpbin")["prometheus.istio.io/secure-envoy-port"] == "15091"
    text = changed(plan, "ConfigMap", "prometheus")["data"]["prometheus.yml"]
    names = {job["job_name"].partition("/")[0] for job in yaml.safe_load(text)["scrape_configs"]}
    assert {"istio-secure-merged-metrics", "istio-secure-envoy-metrics"} <= names


def test_a_job_of_envoys_statistics_keeps_one_job_for_them() -> None:
    """Two secure jobs take over: one of the merged port, one of Envoy's own; no third one reads it again."""
    config = yaml.safe_dump({"scrape_configs": [envoy_stats()]})
    workload = proxy_config({"PILOT_AGENT_MERGE_ENVOY_STATS": "false"})
    plan = settled(mesh(plain_prometheus(config), annotations=workload))
    text = changed(plan, "ConfigMap", "prometheus")["data"]["prometheus.yml"]
    names = [job["job_name"].partition("/")[0] for job in yaml.safe_load(text)["scrape_configs"]]
    assert names.count("istio-secure-envoy-metrics") == 1
    assert len(plan.outcome.secured) == 1


def test_a_new_prometheus_that_harms_others_is_held_back_whatever_else_scrapes() -> None:
    """Its monitors would be rejected by the present server; the reason is told, not that nothing is known."""
    others = [scraper(f"agent{number}", "grafana/alloy:v1") for number in range(4)]
    server = operated_prometheus()
    del server["spec"]["scrapeClasses"]
    plan = settled(mesh(server, pod_monitor("plain", secure=False), *others), prometheus="operator")
    assert "scrape-class-unknown" in codes(plan)
    assert "unsettled" not in codes(plan)


def scraper(name: str, image: str) -> Any:
    """A collector in the namespace monitoring."""
    found = deployment(name, "monitoring", kind="DaemonSet")
    found["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return found


def test_a_scraper_in_ambient_mode_gets_no_sidecar() -> None:
    """A sidecar would take it out of ztunnel, which carries its scrapes."""
    plan = settled(mesh(namespace("monitoring", dataplane="ambient"), plain_prometheus()))
    assert not [ref for ref in refs(plan) if ref[2] == "Deployment/prometheus"]
    assert "ambient-scraper" in codes(plan)


@pytest.mark.parametrize(
    "broken",
    [
        {"proxy.istio.io/config": "proxyMetadata: {EXIT_ON_ZERO_ACTIVE_CONNECTIONS: true}"},
        {"traffic.sidecar.istio.io/excludeInboundPorts": "*"},
    ],
)
def test_a_broken_annotation_refuses_the_workload(broken: dict[str, str]) -> None:
    """Istio's injector refuses such pods: a restart would leave the workload without any."""
    plan = settled(mesh(plain_prometheus(), annotations=broken))
    assert plan.changes == ()
    assert "never-starts" in codes(plan)


def test_nothing_is_added_after_a_new_prometheus() -> None:
    """A default plan after --prometheus operator finds its monitors, and adds no second one."""
    before = mesh(namespace("monitoring"))
    after = planned(before, prometheus="operator").apply(before)
    plan = settled(after)
    assert not [ref for ref in refs(plan) if ref[2].startswith("PodMonitor")]


@pytest.mark.parametrize("kind", ["addon", "operator"])
def test_alerts_of_a_new_prometheus_lead_to_the_given_runbook(kind: str) -> None:
    found = planned(mesh(), prometheus=kind, runbook="https://wiki.example/pages.md")
    written = "".join(str(change.after) for change in found.changes)
    assert "https://wiki.example/pages.md#" in written
    assert "docs/runbook.md#" not in written


@pytest.mark.parametrize("kind", ["addon", "operator"])
def test_plan_settles_for_a_dump_without_a_kind(kind: str) -> None:
    """`kubectl get` of few kinds leaves out ServiceAccounts and rules: they are not created for ever."""
    before = mesh()
    after = planned(before, prometheus=kind).apply(before)
    dumped = [each.data for each in after if each.ref.kind not in ("ServiceAccount", "PrometheusRule")]
    assert planned(cluster(dumped), prometheus=kind).changes == ()


@pytest.mark.parametrize(
    "notes", [proxy_config({"DISABLE_ENVOY": "true"}), {"inject.istio.io/templates": "grpc-agent"}]
)
def test_a_workload_without_envoy_stays_as_it_is(notes: dict[str, str]) -> None:
    """Nothing opens a secure port there, so its plaintext port stays open."""
    plan = settled(mesh(plain_prometheus(), annotations=notes))
    assert not [ref for ref in refs(plan) if ref[2] == "Deployment/httpbin"]
    assert [ref.name for ref in plan.outcome.left] == ["httpbin"]
    assert "no-envoy" in codes(plan)


def test_a_rollout_without_pods_is_named() -> None:
    """It is not "Nothing to do.": its ReplicaSets and pods would show what it runs."""
    rollout = {**deployment("web", "default"), "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout"}
    before = cluster(control_plane(), injected_namespace(), rollout)
    plan = planned(before)
    assert [str(ref) for ref in plan.outcome.left] == ["Rollout.argoproj.io default/web"]
    assert "pods-unknown" in codes(plan)
    assert summary(plan) == "Nothing planned; 1 left alone (Rollout.argoproj.io default/web)."
    for elsewhere in ({"namespaces": ("shop",)}, {"selector": {"matchLabels": {"app": "other"}}}):
        assert "pods-unknown" not in codes(planned(before, **elsewhere))
    assert "pods-unknown" in codes(planned(before, selector={"matchLabels": {"app": "web"}}))


def test_an_operator_that_knows_no_scrape_class_is_held_back() -> None:
    """Before 0.74 a class does not reach PodMonitors: they would scrape without a certificate."""
    old = deployment("prometheus-operator", "monitoring")
    container = old["spec"]["template"]["spec"]["containers"][0]
    container["image"] = "quay.io/prometheus-operator/prometheus-operator:v0.63.0"
    plan = settled(mesh(operated_prometheus(scrapeClasses=[]), old, pod_monitor("plain", secure=False)))
    assert not [ref for ref in refs(plan) if ref[2].startswith("PodMonitor")]
    assert "hardening" not in {phase for phase, _, _ in refs(plan)}
    assert "scrape-class-unsupported" in codes(plan)


def test_a_component_that_may_list_pods_is_one_line() -> None:
    """A right is no reading: it is said, and holds nothing back."""
    lister = deployment("watcher", "tools", account="watcher")
    plan = settled(
        mesh(
            plain_prometheus(),
            lister,
            permissions("watcher", "tools"),
            permissions("prometheus", "monitoring"),
        )
    )
    assert "may-read" in codes(plan)
    assert len(plan.outcome.secured) == 1


def test_the_override_is_not_pruned() -> None:
    """Istio mounts it without `optional`: where a tool removes it, no pod starts any more."""
    plan = settled(mesh(plain_prometheus()), mode="bootstrap")
    notes = changed(plan, "ConfigMap", "meshscrape-bootstrap")["metadata"]["annotations"]
    assert notes["argocd.argoproj.io/sync-options"] == "Prune=false"
    assert notes["kustomize.toolkit.fluxcd.io/prune"] == "disabled"
    assert notes["helm.sh/resource-policy"] == "keep"
