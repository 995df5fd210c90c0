"""Plans judged by their own result: what is held back, and that nothing is held back without need."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.kube.objects import Inventory
from support.examples import CLUSTERS, WAYS
from support.objects import (
    SECURE,
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    namespace,
    pod_of,
    proxy_config,
    service,
)
from support.planning import changed, codes, harm, planned, settled
from support.scraping_objects import (
    SECURE_PORT,
    envoy_stats,
    kubernetes_pods,
    operated_prometheus,
    permissions,
    plain_prometheus,
    pod_monitor,
    prometheus,
    secure_job,
)

NEW_BESIDE_OPERATOR = (("operator", "legacy"), ("operator", "operator with scrape proxy"))
# The allow list of these plans leaves out the Prometheus that is there: legacy mode would refuse it.
UNLISTED_SCRAPER = {(name, "everything") for name in ("plain 1.29", "plain 1.21", "legacy")}
# No scraper is among the objects or planned, and this proxy is too old for the gate of hardening to say so.
UNREAD = ("plain 1.21", "a version is said")


def mesh(*objects: Any) -> Inventory:
    return cluster(control_plane(), injected_namespace(), deployment(), service(), *objects)


def config_of(*jobs: Any) -> str:
    return yaml.safe_dump({"scrape_configs": list(jobs)}, sort_keys=False)


def jobs(plan: Any) -> dict[str, Any]:
    """The jobs of the planned Prometheus configuration by name."""
    config = yaml.safe_load(changed(plan, "ConfigMap", "prometheus")["data"]["prometheus.yml"])
    return {job["job_name"]: job for job in config["scrape_configs"]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CLUSTERS)
def test_nothing_is_held_back_without_need(name: str, way: str) -> None:
    """The judge holds back a Prometheus that would take new monitors, and one that is not allowed in."""
    plan = planned(cluster(*CLUSTERS[name]()), **WAYS[way])
    held = [gate for gate in plan.gates if gate.phase in ("listeners", "scrape") and not gate.planned]
    assert bool(held) == ((name, way) in {*NEW_BESIDE_OPERATOR, UNREAD, *UNLISTED_SCRAPER})


def test_a_namespace_that_forbids_injection_holds_the_scraper_back() -> None:
    """A pod label does not help there: without a certificate no pod leaves its job, and no port closes."""
    plan = settled(mesh(namespace("monitoring", istio_injection="disabled"), plain_prometheus()))
    assert {change.phase for change in plan.changes} == {"listeners"}
    assert "output-certs-not-injected" in codes(plan)
    assert len(plan.outcome.held) == 1


def test_two_plaintext_jobs_of_one_scraper_are_read_once() -> None:
    """One secure job takes the place of both: the one of the merged metrics, which have Envoy's in them."""
    plan = settled(mesh(plain_prometheus(config_of(envoy_stats(), kubernetes_pods()))))
    found = jobs(plan)
    secure = [job for name, job in found.items() if name.startswith("istio-secure")]
    assert len(secure) == 1
    assert secure[0]["relabel_configs"][0]["replacement"] == "kubernetes-pods"
    assert len(plan.outcome.secured) == 1


def test_a_job_that_no_plan_can_move_keeps_its_port() -> None:
    """Another scraper's job in a ConfigMap that nobody mounts: its pods stay, and the port stays open."""
    stray = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stray", "namespace": "monitoring"},
        "data": {"prometheus.yml": config_of(envoy_stats())},
    }  # fmt: skip
    plan = settled(mesh(plain_prometheus(), stray))
    assert "hardening" not in {change.phase for change in plan.changes}
    assert not [change for change in plan.changes if change.ref.name == "stray"]
    assert "plaintext-reader" in codes(plan)


def test_a_pod_that_already_left_its_job_is_not_restarted_into_the_dark() -> None:
    """The job drops secured pods already, and no job would read them: the workload stays as it is."""
    leaving = kubernetes_pods()
    leaving["relabel_configs"].append(
        {
            "action": "drop",
            "source_labels": ["__meta_kubernetes_pod_annotationpresent_prometheus_istio_io_secure_port"],
            "regex": "true",
        }
    )
    plan = settled(mesh(plain_prometheus(config_of(leaving))), prometheus="none")
    assert plan.changes == ()
    assert "unread" in codes(plan)


SECURE_ENDPOINT = {
    "scheme": "https",
    "tlsConfig": {
        "caFile": "/etc/prom-certs/root-cert.pem",
        "certFile": "/etc/prom-certs/cert-chain.pem",
        "keyFile": "/etc/prom-certs/key.pem",
        "insecureSkipVerify": True,
    },
}
SECURE_RELABELING = {
    "relabelConfigs": [
        {"action": "keep", "sourceLabels": [SECURE_PORT], "regex": ".+"},
        {"action": "keep", "sourceLabels": ["__meta_kubernetes_pod_container_port_number"], "regex": "15090"},
        {"sourceLabels": ["__meta_kubernetes_pod_ip", SECURE_PORT], "regex": "(.+);(.+)",
         "replacement": "$1:$2", "targetLabel": "__address__"},
    ]
}  # fmt: skip


def victoria(kind: str, name: str, space: str, spec: Any) -> Any:
    """An object of the VictoriaMetrics operator."""
    return {
        "apiVersion": "operator.victoriametrics.com/v1beta1",
        "kind": kind,
        "metadata": {"name": name, "namespace": space},
        "spec": spec,
    }


def vm_agent(**changes: Any) -> Any:
    """A VMAgent with a certificate of the mesh that takes every scrape object."""
    return victoria(
        "VMAgent",
        "agent",
        "vm",
        {
            "selectAllByDefault": True,
            "podMetadata": {
                "annotations": {
                    **proxy_config({"OUTPUT_CERTS": "/etc/istio-output-certs"}),
                    "traffic.sidecar.istio.io/includeInboundPorts": "",
                    "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
                    "sidecar.istio.io/userVolumeMount": '[{"name": "istio-certs", '
                    '"mountPath": "/etc/istio-output-certs"}]',
                }
            },
            "volumes": [{"name": "istio-certs", "emptyDir": {"medium": "Memory"}}],
            "volumeMounts": [{"name": "istio-certs", "mountPath": "/etc/prom-certs/"}],
            **changes,
        },
    )


def vm_mesh(*scrapes: Any, **agent: Any) -> Inventory:
    return mesh(injected_namespace("vm"), vm_agent(**agent), *scrapes)


def test_a_job_for_an_applications_port_alone_secures_nothing() -> None:
    """A VMAgent that scrapes an application over mutual TLS does not read the secure port beside it."""
    scrape = victoria(
        "VMServiceScrape",
        "app",
        "default",
        {"selector": {"matchLabels": {"app": "httpbin"}}, "endpoints": [{"port": "http", **SECURE_ENDPOINT}]},
    )
    plan = settled(vm_mesh(scrape))
    assert plan.outcome.secured == ()
    assert [ref.name for ref in plan.outcome.held] == ["httpbin"]
    assert "no-secure-scraper" in codes(plan)
    assert "hardening" not in {change.phase for change in plan.changes}


@pytest.mark.parametrize("mode", ["native", "bootstrap"])
def test_a_vm_agent_that_reads_the_secure_port_secures_it(mode: str) -> None:
    """It is a reader like a Prometheus, and bootstrap mode's allow list has its identity."""
    scrape = victoria(
        "VMPodScrape",
        "secure",
        "default",
        {"podMetricsEndpoints": [{**SECURE_ENDPOINT, **SECURE_RELABELING}]},
    )
    plan = settled(vm_mesh(scrape), mode=mode)
    assert [ref.name for ref in plan.outcome.secured] == ["httpbin"]
    assert "hardening" in {change.phase for change in plan.changes}


def test_a_reader_without_a_certificate_secures_nothing() -> None:
    """The same scrape object, and a VMAgent whose sidecar writes no certificate."""
    scrape = victoria(
        "VMPodScrape",
        "secure",
        "default",
        {"podMetricsEndpoints": [{**SECURE_ENDPOINT, **SECURE_RELABELING}]},
    )
    plan = settled(vm_mesh(scrape, podMetadata={}))
    assert plan.outcome.secured == ()
    assert [ref.name for ref in plan.outcome.held] == ["httpbin"]


def test_a_reader_that_the_allow_list_leaves_out_secures_nothing() -> None:
    """Bootstrap mode lets in whom the list names: another scraper gets 403, and the ports stay open."""
    other = parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/other")
    plan = settled(mesh(plain_prometheus()), mode="bootstrap", scrapers=other)
    assert "not-allowed" in codes(plan)
    assert plan.outcome.secured == ()
    assert "hardening" not in {change.phase for change in plan.changes}


@pytest.mark.parametrize("intent", [{"harden": False}, {"prometheus": "none"}, {}])
def test_an_open_port_that_nothing_reads_is_not_secured(intent: dict[str, Any]) -> None:
    """Also when nothing is to be closed, and in a second plan that has nothing left to change."""
    before = mesh()
    plan = settled(before, **intent)
    again = planned(plan.apply(before), **intent)
    for found in (plan, again):
        assert found.outcome.secured == found.outcome.unchanged == ()
        assert len(found.outcome.held) == 1


RULES = st.lists(
    st.sampled_from(
        [
            {"action": "labelmap", "regex": "__meta_kubernetes_pod_label_(.+)"},
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
            {"action": "drop", "source_labels": ["__meta_kubernetes_namespace"], "regex": "two"},
            {"action": "keep", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Running"},
            {"action": "keep", "source_labels": ["__meta_kubernetes_pod_label_app"], "regex": "a|b"},
            {"action": "drop", "source_labels": ["__meta_kubernetes_pod_annotation_sidecar_istio_io_status"],
             "regex": ".+"},
        ]
    ),
    max_size=3,
)  # fmt: skip


@st.composite
def clusters(draw: st.DrawFn) -> Inventory:
    """Clusters of one to three workloads in two namespaces, with a Prometheus of one to three jobs."""
    objects: list[Any] = [control_plane(draw(st.sampled_from(["1.31.0", "1.29.2"])))]
    objects += [
        injected_namespace("one"),
        namespace("two", istio_injection=draw(st.sampled_from(["enabled", "x"]))),
    ]
    for name in draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True)):
        variables = draw(st.sampled_from([{}, SECURE]))
        made = deployment(name, draw(st.sampled_from(["one", "two"])), annotations=proxy_config(variables))
        objects.append(made)
        if draw(st.booleans()):
            objects.append(pod_of(made, injected=draw(st.booleans())))
    declared = []
    for index in range(draw(st.integers(1, 3))):
        job = draw(st.sampled_from([kubernetes_pods, envoy_stats, secure_job]))()
        job["job_name"] = f"job-{index}" if job["job_name"] != "secure" else job["job_name"] + str(index)
        job["relabel_configs"] += draw(RULES)
        if draw(st.booleans()):
            job["kubernetes_sd_configs"] = [{"role": "pod", "namespaces": {"names": ["one"]}}]
        declared.append(job)
    if draw(st.booleans()):
        objects.append(prometheus(*declared, rbac=draw(st.booleans())))
    else:
        objects.append(plain_prometheus(config_of(*declared)))
    return cluster(*objects)


INTENTS: tuple[dict[str, Any], ...] = (
    {}, {"mode": "bootstrap"}, {"prometheus": "addon"}, {"harden": False}, {"scope": "namespace"},
    {"scope": "mesh"},
)  # fmt: skip


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters(), st.sampled_from(INTENTS))
def test_no_plan_of_a_generated_cluster_is_worse(inventory: Inventory, intent: dict[str, Any]) -> None:
    """No scrape is lost or doubled, no error is new, and a second plan after the first changes nothing."""
    found = planned(inventory, **intent)
    assert harm(inventory, found, **intent) == []
    assert planned(found.apply(inventory), **intent).changes == ()


@pytest.mark.parametrize("operated", [False, True])
def test_a_scraper_without_replicas_closes_no_port(operated: bool) -> None:
    """Nothing reads the secure port: it opens, the job moves, and the plaintext ports stay open."""
    if operated:
        server: Any = [operated_prometheus(replicas=0), injected_namespace("monitoring")]
        server.append(pod_monitor(secure=False))
    else:
        server = plain_prometheus()
        server[0]["spec"]["replicas"] = 0
    plan = settled(mesh(server))
    assert "hardening" not in {change.phase for change in plan.changes}
    assert "scraper-stopped" in codes(plan)
    assert [ref.name for ref in plan.outcome.held] == ["httpbin"]


def test_a_named_scraper_replaces_one_without_replicas() -> None:
    """The user vouches for a scraper that is not among the objects."""
    server = plain_prometheus()
    server[0]["spec"]["replicas"] = 0
    named = parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus", "--scraper")
    plan = settled(mesh(server), scrapers=named)
    assert "scraper-stopped" not in codes(plan)
    assert len(plan.outcome.secured) == 1


def test_assumed_rights_are_reported() -> None:
    """Objects without any role do not tell whether the scraper may list pods."""
    assert "rights-unseen" in codes(settled(mesh(plain_prometheus())))
    assert "rights-unseen" not in codes(settled(mesh(plain_prometheus(), permissions())))
