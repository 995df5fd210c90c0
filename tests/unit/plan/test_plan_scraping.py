"""Plans for who scrapes: certificates, jobs, the gate before hardening."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.kube.objects import Inventory
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    meta,
    namespace,
    peer_authentication,
    service,
)
from support.planning import (
    annotations,
    changed,
    codes,
    notes,
    planned,
    proxy_config,
    refs,
    settled,
    template,
)
from support.scraping_objects import KUBERNETES_PODS, plain_prometheus

CONFIG = "proxy.istio.io/config"
MOUNT = "sidecar.istio.io/userVolumeMount"
DROP_LABEL = "__meta_kubernetes_pod_annotationpresent_prometheus_istio_io_secure_port"


def mesh(*more: Any, version: str = "1.31.0", **workload: Any) -> Inventory:
    return cluster(control_plane(version), injected_namespace(), deployment(**workload), *more)


def jobs(plan: Any, name: str = "prometheus") -> dict[str, Any]:
    """The jobs of the planned Prometheus configuration by name."""
    config = yaml.safe_load(changed(plan, "ConfigMap", name)["data"]["prometheus.yml"])
    return {job["job_name"]: job for job in config["scrape_configs"]}


class TestCredentials:
    """Trap 7: a certificate for Prometheus."""

    def test_a_plain_prometheus_gets_a_sidecar_that_intercepts_nothing(self) -> None:
        """Label, annotations, volume in memory, both mounts, and the application waits for the proxy."""
        plan = settled(mesh(plain_prometheus()))
        found = template(plan, name="prometheus")
        assert found["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"
        notes_on_it = found["metadata"]["annotations"]
        assert notes_on_it["traffic.sidecar.istio.io/includeInboundPorts"] == ""
        assert notes_on_it["traffic.sidecar.istio.io/includeOutboundIPRanges"] == ""
        config = proxy_config(plan, name="prometheus")
        assert config["holdApplicationUntilProxyStarts"] is True
        directory = config["proxyMetadata"]["OUTPUT_CERTS"]
        (volume,) = [each for each in found["spec"]["volumes"] if "emptyDir" in each]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert json.loads(notes_on_it[MOUNT])[volume["name"]]["mountPath"] == directory
        mounts = {each["name"]: each for each in found["spec"]["containers"][0]["volumeMounts"]}
        assert mounts[volume["name"]]["readOnly"] is True

    def test_a_list_of_mounts_becomes_a_map(self) -> None:
        """Trap 6: people write lists, Istio's template wants a map; what is there is kept."""
        own = {MOUNT: '[{"name": "mine", "mountPath": "/mine"}]', CONFIG: "concurrency: 1\n"}
        plan = settled(mesh(plain_prometheus(annotations=own)))
        mounts = json.loads(annotations(plan, name="prometheus")[MOUNT])
        assert mounts["mine"] == {"mountPath": "/mine"}
        assert len(mounts) == 2
        assert proxy_config(plan, name="prometheus")["concurrency"] == 1

    def test_credentials_come_before_listeners_and_jobs(self) -> None:
        """The order of the phases."""
        assert [phase for phase, _, _ in refs(settled(mesh(plain_prometheus())))] == [
            "credentials",
            "listeners",
            "scrape",
            "hardening",
        ]

    def test_prometheus_none_plans_no_change_of_prometheus(self) -> None:
        """With --prometheus none, neither pods nor configuration of a Prometheus change."""
        plan = settled(mesh(plain_prometheus()), prometheus="none")
        assert [name for _, _, name in refs(plan)] == ["Deployment/httpbin"]


class TestJobs:
    """What is added to and removed from an existing configuration."""

    def test_the_secure_job_is_added_and_pods_leave_the_plaintext_job(self) -> None:
        """Pod by pod: whoever announces a secure port is dropped from the job in the clear."""
        plan = settled(mesh(plain_prometheus()))
        found = jobs(plan)
        assert list(found) == ["kubernetes-pods", "istio-secure-merged-metrics"]
        secure = found["istio-secure-merged-metrics"]
        assert (secure["scheme"], secure["metrics_path"]) == ("https", "/stats/prometheus")
        drop = found["kubernetes-pods"]["relabel_configs"][-1]
        assert drop["action"] == "drop"
        assert drop["source_labels"] == [DROP_LABEL, "__address__"]

    def test_the_text_of_the_configuration_is_kept(self) -> None:
        """Comments and everything else in prometheus.yml stay as they are."""
        plan = settled(mesh(plain_prometheus()))
        written = changed(plan, "ConfigMap")["data"]["prometheus.yml"]
        assert written.startswith(KUBERNETES_PODS)

    def test_the_jobs_use_the_directory_of_the_certificates(self) -> None:
        """Where Prometheus' own container sees them."""
        plan = settled(mesh(plain_prometheus()))
        (mount,) = [
            each
            for each in template(plan, name="prometheus")["spec"]["containers"][0]["volumeMounts"]
            if each["name"] != "config"
        ]
        tls = jobs(plan)["istio-secure-merged-metrics"]["tls_config"]
        assert tls["ca_file"].startswith(mount["mountPath"])

    def test_the_widespread_sample_is_brought_up_to_date(self) -> None:
        """Trap 8: a job of that name gets the relabeling and the new certificates; its interval stays."""
        config = """\
scrape_configs:
- job_name: istio-secure-merged-metrics
  scrape_interval: 7s
  kubernetes_sd_configs: [{role: pod}]
  relabel_configs:
  - source_labels: [__meta_kubernetes_pod_annotation_prometheus_istio_io_secure_port]
    action: keep
    regex: .+
  scheme: https
  tls_config: {ca_file: /mine/root-cert.pem, cert_file: /mine/cert-chain.pem, key_file: /mine/key.pem}
"""
        job = jobs(settled(mesh(plain_prometheus(config))))["istio-secure-merged-metrics"]
        assert job["scrape_interval"] == "7s"
        assert job["tls_config"]["ca_file"] == "/etc/istio-output-certs/root-cert.pem"
        rules = json.dumps(job["relabel_configs"])
        for label in ("pod_phase", "pod_container_name", 'target_label": "namespace', 'target_label": "pod'):
            assert label in rules

    def test_existing_certificates_are_kept(self) -> None:
        """A Prometheus with OUTPUT_CERTS of its own is not given others, and its job keeps its files."""
        config = (
            KUBERNETES_PODS
            + """\
- job_name: istio-secure-merged-metrics
  kubernetes_sd_configs: [{role: pod}]
  scheme: https
  tls_config: {ca_file: /mine/root-cert.pem, cert_file: /mine/cert-chain.pem, key_file: /mine/key.pem}
"""
        )
        deployed, configured = plain_prometheus(
            config,
            labels={"app": "prometheus", "sidecar.istio.io/inject": "true"},
            annotations={
                CONFIG: "proxyMetadata: {OUTPUT_CERTS: /out}",
                MOUNT: '{"certs": {"mountPath": "/out"}}',
                "traffic.sidecar.istio.io/includeInboundPorts": "",
                "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
            },
        )
        spec = deployed["spec"]["template"]["spec"]
        spec["volumes"].append({"name": "certs", "emptyDir": {"medium": "Memory"}})
        spec["containers"][0]["volumeMounts"].append({"name": "certs", "mountPath": "/mine"})
        plan = settled(mesh(deployed, configured), harden=False)
        assert [name for phase, _, name in refs(plan) if phase == "credentials"] == []
        assert jobs(plan)["istio-secure-merged-metrics"]["tls_config"]["ca_file"] == "/mine/root-cert.pem"

    def test_envoys_own_port_has_its_own_job(self) -> None:
        """Only with --envoy-port: the merged metrics include Envoy's."""
        assert "istio-secure-envoy-metrics" in jobs(settled(mesh(plain_prometheus()), envoy_port=15091))

    def test_unknown_configuration_is_reported(self) -> None:
        """A Prometheus whose ConfigMap was not given is not changed by half."""
        deployed, _ = plain_prometheus()
        plan = settled(mesh(deployed))
        assert "configuration-unknown" in codes(plan)


class TestGate:
    """Hardening waits for everybody who reads in the clear."""

    def test_hardening_follows_when_the_plan_moves_the_job(self) -> None:
        """The plaintext job that the plan changes: hardening is planned, after it, with the gate said."""
        plan = settled(mesh(plain_prometheus()))
        assert proxy_config(plan, name="httpbin")["proxyMetadata"]["METRICS_LOCALHOST_ACCESS_ONLY"] == "true"
        (gate,) = plan.gates
        assert gate.planned
        assert [ref.name for ref in gate.workloads] == ["httpbin"]

    def test_a_job_that_cannot_be_moved_keeps_the_ports_open(self) -> None:
        """An agent whose jobs nobody can edit here: not hardened, and said who is waited for."""
        agent = deployment("arms-prometheus-ack-arms-prometheus", "arms-prom")
        agent["spec"]["template"]["spec"]["containers"][0] |= {
            "name": "arms-prometheus-operator",
            "image": "registry.cn-hangzhou.aliyuncs.com/acs/arms-prometheus-agent:v4.0.0",
        }
        plan = settled(mesh(plain_prometheus(), agent))
        assert "hardening" not in [phase for phase, _, _ in refs(plan)]
        (gate,) = plan.gates
        assert not gate.planned
        assert gate.waits_for

    def test_without_any_scraper_nothing_is_hardened(self) -> None:
        """Closing the plaintext ports while nobody reads the secure ones would be going dark."""
        plan = settled(mesh())
        assert "METRICS_LOCALHOST_ACCESS_ONLY" not in proxy_config(plan)["proxyMetadata"]
        assert [missing.code for missing in plan.gates[0].waits_for] == ["no-secure-scraper"]

    def test_a_named_scraper_is_enough(self) -> None:
        """With --scraper the user vouches for one that is not among the objects."""
        allow = parse_scrapers("spiffe:spiffe://cluster.local/ns/m/sa/p")
        plan = settled(mesh(), scrapers=allow)
        assert proxy_config(plan)["proxyMetadata"]["METRICS_LOCALHOST_ACCESS_ONLY"] == "true"

    def test_old_proxies_cannot_be_hardened(self) -> None:
        """Trap 12: before 1.22 the variable does not exist."""
        plan = settled(mesh(plain_prometheus(), version="1.21.6"))
        assert "hardening-too-old" in codes(plan)
        assert "hardening" not in [phase for phase, _, _ in refs(plan)]

    def test_legacy_and_hardening_go_together_from_1_22_on(self) -> None:
        """The Sidecar's traffic reaches 15020 from localhost."""
        plan = settled(mesh(plain_prometheus(), version="1.22.0"))
        assert proxy_config(plan, name="httpbin")["proxyMetadata"] == {
            "METRICS_LOCALHOST_ACCESS_ONLY": "true"
        }

    def test_no_harden(self) -> None:
        """--no-harden leaves the ports open, without a gate."""
        plan = settled(mesh(plain_prometheus()), harden=False)
        assert plan.gates == ()
        assert "hardening" not in [phase for phase, _, _ in refs(plan)]

    def test_an_applications_own_job_does_not_matter(self) -> None:
        """A job on the application's port goes on, before and after."""
        config = """\
scrape_configs:
- job_name: app
  static_configs: [{targets: ["httpbin.shop:8080"]}]
"""
        plan = settled(mesh(plain_prometheus(config)))
        assert "relabel_configs" not in jobs(plan)["app"]


def operated(**spec: Any) -> dict[str, Any]:
    """A Prometheus object of the Operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": meta("k8s", "monitoring"),
        "spec": {"serviceAccountName": "prometheus-k8s", **spec},
    }  # fmt: skip


ENVOY_STATS = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "PodMonitor",
    "metadata": meta("envoy-stats-monitor", "istio-system", labels={"release": "istio"}),
    "spec": {
        "selector": {"matchExpressions": [{"key": "istio-prometheus-ignore", "operator": "DoesNotExist"}]},
        "namespaceSelector": {"any": True},
        "podMetricsEndpoints": [{"port": "http-envoy-prom", "path": "/stats/prometheus"}],
    },
}


class TestOperator:
    """Trap 9: an existing Prometheus of the Operator."""

    SELECTS: dict[str, Any] = {"podMonitorSelector": {}, "podMonitorNamespaceSelector": {}}

    def test_credentials_are_a_scrape_class(self) -> None:
        """Files in the class, none in the monitor; never the default class."""
        plan = settled(mesh(operated(**self.SELECTS)))
        (scrape_class,) = changed(plan, "Prometheus")["spec"]["scrapeClasses"]
        monitor = changed(plan, "PodMonitor")["spec"]
        assert scrape_class["tlsConfig"]["insecureSkipVerify"] is True
        assert "default" not in scrape_class
        assert monitor["scrapeClass"] == scrape_class["name"]
        assert "tlsConfig" not in monitor["podMetricsEndpoints"][0]
        assert monitor["podMetricsEndpoints"][0]["port"] == "http-envoy-prom"

    def test_what_the_object_has_is_kept(self) -> None:
        """Volumes, classes and pod annotations of the user stay beside the new ones."""
        own = {
            "volumes": [{"name": "mine", "emptyDir": {}}],
            "scrapeClasses": [{"name": "mine"}],
            "podMetadata": {"annotations": {CONFIG: "concurrency: 1\n"}, "labels": {"a": "b"}},
        }
        spec = changed(settled(mesh(operated(**self.SELECTS, **own))), "Prometheus")["spec"]
        assert spec["volumes"][0]["name"] == "mine"
        assert spec["scrapeClasses"][0]["name"] == "mine"
        assert spec["podMetadata"]["labels"]["a"] == "b"
        assert spec["podMetadata"]["annotations"][CONFIG].startswith("concurrency: 1\n")

    def test_a_null_selector_selects_nothing(self) -> None:
        """So one is planned, unless the whole configuration is somebody's own."""
        plan = settled(mesh(operated(serviceMonitorSelector={})))
        selector = changed(plan, "Prometheus")["spec"]["podMonitorSelector"]
        labels = changed(plan, "PodMonitor")["metadata"]["labels"]
        assert selector["matchLabels"].items() <= labels.items()

    def test_labels_that_the_selector_wants_are_on_the_monitor(self) -> None:
        """kube-prometheus-stack selects by its release."""
        selects = {"podMonitorSelector": {"matchLabels": {"release": "kps"}}}
        labels = changed(settled(mesh(operated(**selects))), "PodMonitor")["metadata"]["labels"]
        assert labels["release"] == "kps"

    def test_the_plaintext_monitor_lets_secured_pods_go(self) -> None:
        """`envoy-stats-monitor` gets the drop rule; without it pods would be scraped twice, or go dark."""
        plan = settled(mesh(operated(**self.SELECTS), ENVOY_STATS))
        (endpoint,) = changed(plan, "PodMonitor", "envoy-stats-monitor")["spec"]["podMetricsEndpoints"]
        assert endpoint["relabelings"][-1]["sourceLabels"] == [DROP_LABEL, "__address__"]

    @pytest.mark.parametrize("monitors", [(), (ENVOY_STATS,)])
    def test_enforced_limits_of_the_object_are_named(self, monitors: tuple[dict[str, Any], ...]) -> None:
        """They fail whole scrapes of the new monitor, so the plan says which there are."""
        plan = settled(
            mesh(operated(**self.SELECTS, enforcedSampleLimit=5000, enforcedLabelLimit=0), *monitors)
        )
        assert "enforced-limits" in codes(plan)
        assert "enforcedSampleLimit 5000" in notes(plan)
        assert "enforcedLabelLimit" not in notes(plan)
        assert "enforced-limits" not in codes(settled(mesh(operated(**self.SELECTS), *monitors)))


class TestNewPrometheus:
    """`--prometheus addon` and `operator`."""

    @pytest.mark.parametrize(("kind", "main"), [("addon", "Deployment"), ("operator", "Prometheus")])
    def test_it_is_complete_and_allowed(self, kind: str, main: str) -> None:
        """Identity and rights first; its own SPIFFE ID is on the allow list."""
        plan = settled(mesh(), mode="bootstrap", prometheus=kind)
        kinds = [name.partition("/")[0] for _, action, name in refs(plan) if action == "create"]
        assert {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", main} <= set(kinds)
        allowed = changed(plan, "ConfigMap", "meshscrape-bootstrap")["data"]["scrapers.json"]
        assert "spiffe://cluster.local/ns/istio-system/sa/meshscrape-prometheus" in allowed

    def test_an_existing_plaintext_job_is_moved_too(self) -> None:
        """Beside a new Prometheus the old one stops reading what is secured."""
        found = jobs(settled(mesh(plain_prometheus()), prometheus="addon"))
        assert list(found) == ["kubernetes-pods"]
        assert found["kubernetes-pods"]["relabel_configs"][-1]["action"] == "drop"


class TestNetworkPolicy:
    """Optional: only the scraper's pods reach the secure ports."""

    def test_all_other_ports_stay_open(self) -> None:
        """A policy denies all that it does not name, so everything else is named."""
        plan = settled(mesh(plain_prometheus()), network_policy=True)
        spec = changed(plan, "NetworkPolicy")["spec"]
        scraper, rest = spec["ingress"]
        assert scraper["from"] == [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
                "podSelector": {"matchLabels": {"app": "prometheus"}},
            }
        ]
        assert scraper["ports"] == [{"port": 15092, "protocol": "TCP"}]
        opened = {
            (each["protocol"], port)
            for each in rest["ports"]
            for port in range(each["port"], each.get("endPort", each["port"]) + 1)
        }
        everything = {(protocol, port) for protocol in ("TCP", "UDP", "SCTP") for port in range(1, 65536)}
        assert everything - opened == {("TCP", 15092)}

    def test_other_policies_are_not_undone(self) -> None:
        """Policies add up: beside a closing one, only the scraper's access is added."""
        closing = {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("deny"),
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        }  # fmt: skip
        plan = settled(mesh(plain_prometheus(), closing), network_policy=True)
        assert len(changed(plan, "NetworkPolicy")["spec"]["ingress"]) == 1

    def test_an_unknown_scraper_gets_no_policy(self) -> None:
        """A policy that lets nobody in would make every target go down."""
        plan = settled(mesh(), network_policy=True)
        assert not [each for each in refs(plan) if each[2].startswith("NetworkPolicy")]
        assert "scraper-pods-unknown" in codes(plan)


class TestInjection:
    """Workloads without a sidecar."""

    def bare(self, *more: Any, labels: dict[str, str] | None = None) -> Inventory:
        return cluster(control_plane(), namespace(labels=labels or {}), deployment(), *more)

    def test_they_are_left_alone_unless_wanted(self) -> None:
        """Joining the mesh is the user's decision."""
        assert settled(self.bare(), prometheus="none").changes == ()

    def test_a_namespace_gets_its_label(self) -> None:
        """First the label, then the annotations in the same plan."""
        plan = settled(self.bare(), prometheus="none", inject=True, harden=False)
        assert refs(plan) == [
            ("injection", "update", "Namespace/default"),
            ("listeners", "update", "Deployment/httpbin"),
        ]
        assert changed(plan, "Namespace")["metadata"]["labels"]["istio-injection"] == "enabled"

    def test_chosen_pods_get_theirs(self) -> None:
        """With a selector only the chosen workloads join."""
        plan = settled(
            self.bare(deployment("other")), prometheus="none", inject=True, harden=False,
            selector={"matchLabels": {"app": "httpbin"}},
        )  # fmt: skip
        assert [each[2] for each in refs(plan)] == ["Deployment/httpbin"] * 2
        assert template(plan)["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"

    def test_without_a_default_revision_the_revision_is_named(self) -> None:
        """`istio-injection` reaches the default revision only."""
        objects = cluster(control_plane(revision="canary"), namespace(labels={}), deployment())
        plan = settled(objects, prometheus="none", inject=True, harden=False)
        assert changed(plan, "Namespace")["metadata"]["labels"]["istio.io/rev"] == "canary"

    @pytest.mark.parametrize("out", [{"istio-injection": "disabled"}, {}])
    def test_who_opted_out_stays_out(self, out: dict[str, str]) -> None:
        """An explicit no, on the namespace or the pod, is not overridden."""
        pod = {} if out else {"sidecar.istio.io/inject": "false"}
        objects = cluster(control_plane(), namespace(labels=out), deployment(labels=pod))
        plan = settled(objects, prometheus="none", inject=True)
        assert plan.changes == ()
        assert "opted-out" in codes(plan)

    def test_system_namespaces_stay_out(self) -> None:
        """Neither kube-system nor the control plane's own namespace is injected."""
        objects = cluster(control_plane(), deployment("coredns", "kube-system"))
        assert settled(objects, prometheus="none", inject=True).changes == ()

    def test_plaintext_jobs_that_will_find_them_are_moved(self) -> None:
        """The injector announces 15020 on every pod: the add-on's job would find them from then on."""
        plan = settled(self.bare(plain_prometheus()), inject=True)
        assert jobs(plan)["kubernetes-pods"]["relabel_configs"][-1]["action"] == "drop"


def owned_by(kind: str, name: str) -> dict[str, Any]:
    owner = {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": True}
    return {"ownerReferences": [owner]}


def test_stale_pods_are_named() -> None:
    """Trap 11: a changed annotation does nothing until pods are recreated; who still waits is said."""
    own = {CONFIG: 'proxyMetadata: {ENVOY_SECURE_MERGED_METRICS_PORT: "15092"}'}
    labels = {"app": "httpbin"}
    replicas = {
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": meta("httpbin-abc", **owned_by("Deployment", "httpbin")),
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}},
    }  # fmt: skip
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": meta(
            "httpbin-abc-1", labels={**labels, "pod-template-hash": "abc"},
            annotations={"sidecar.istio.io/status": "{}"}, **owned_by("ReplicaSet", "httpbin-abc"),
        ),
        "spec": {"containers": [
            {"name": "app", "image": "app:1"},
            {"name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.31.0", "args": ["proxy", "sidecar"]},
        ]},
        "status": {"phase": "Running", "podIP": "10.0.0.7"},
    }  # fmt: skip
    objects = cluster(control_plane(), injected_namespace(), deployment(annotations=own), replicas, pod)
    plan = planned(objects, prometheus="none", harden=False)
    assert "pods-stale" in codes(plan)


class TestApplications:
    """Trap 10: an application's own port, where its metrics are in no merge."""

    OWN = {
        "prometheus.istio.io/merge-metrics": "false",
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "8080",
    }

    def app(self, mode: str, *more: Any, port_name: str = "http") -> Inventory:
        made = service(port_name=port_name)
        made["metadata"]["labels"] = {"app": "httpbin"}
        return mesh(peer_authentication(mode), made, *more, annotations=self.OWN)

    def test_under_strict_it_is_scraped_over_mutual_tls(self) -> None:
        """A job of its own on the application's port, with its path."""
        found = jobs(settled(self.app("STRICT", plain_prometheus())))
        job = found["istio-secure-application-metrics/default/httpbin"]
        assert (job["scheme"], job["metrics_path"]) == ("https", "/metrics")

    def test_the_operator_gets_a_servicemonitor(self) -> None:
        """With the scrape class, by the name of the Service's port."""
        operated_one = operated(podMonitorSelector={}, serviceMonitorSelector={})
        spec = changed(settled(self.app("STRICT", operated_one)), "ServiceMonitor")["spec"]
        assert spec["endpoints"][0]["port"] == "http"
        assert spec["selector"] == {"matchLabels": {"app": "httpbin"}}

    def test_under_permissive_it_stays_in_the_clear(self) -> None:
        """Istio's sidecar takes mutual TLS there only with an ALPN that Prometheus does not send."""
        plan = settled(self.app("PERMISSIVE", plain_prometheus()))
        assert not [name for name in jobs(plan) if "application" in name]
        assert "application-port-permissive" in codes(plan)

    def test_a_port_of_unknown_protocol_is_said(self) -> None:
        """Without `http` in the port's name Envoy forwards bytes, HTTP/2 among them."""
        plan = settled(self.app("STRICT", plain_prometheus(), port_name="metrics"))
        assert "application-port-not-http" in codes(plan)
