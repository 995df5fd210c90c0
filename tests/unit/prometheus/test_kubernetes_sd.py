"""The jobs of a cluster as data; what their relabeling does is tested in Prometheus itself."""

from __future__ import annotations

import pytest

from meshscrape.prometheus.direct import direct_tls
from meshscrape.prometheus.kubernetes_sd import (
    ApplicationPort,
    ClusterJobs,
    ProxyInPod,
    camel,
    drop_secured,
    drop_secured_monitor,
    label_name,
    secure_jobs,
)

# Every field that Prometheus 2.42 and 3, vmagent and the Collector all know.
COMMON = {
    "job_name", "scheme", "metrics_path", "follow_redirects", "tls_config", "kubernetes_sd_configs",
    "relabel_configs", "metric_relabel_configs", "scrape_interval", "scrape_timeout",
}  # fmt: skip


def test_both_jobs_go_over_mutual_tls() -> None:
    """Istio's names of the jobs, https, the path of the secure ports, no redirects, the three files."""
    merged, envoy = secure_jobs(ClusterJobs("/certs/"))
    assert (merged["job_name"], envoy["job_name"]) == (
        "istio-secure-merged-metrics",
        "istio-secure-envoy-metrics",
    )
    for job in (merged, envoy):
        assert set(job) <= COMMON
        assert (job["scheme"], job["metrics_path"]) == ("https", "/stats/prometheus")
        assert job["follow_redirects"] is False
        assert job["tls_config"] == direct_tls("/certs")
        assert job["kubernetes_sd_configs"] == [{"role": "pod"}]


def test_jobs_through_a_scrape_proxy_verify_and_scrape_ready_pods() -> None:
    """Plain HTTP to the proxy with its token, no TLS settings; a pod that is not ready yet is no target."""
    application = ApplicationPort("shop", "web", {"app": "web"}, 9080)
    proxy = ProxyInPod("127.0.0.1:15094", "/run/scrape-proxy/token")
    jobs = secure_jobs(ClusterJobs("/certs", (), (application,), proxy=proxy))
    assert len(jobs) == 3
    for job in jobs:
        assert "tls_config" not in job
        assert (job["scheme"], job["proxy_url"]) == ("http", "http://127.0.0.1:15094")
        assert job["authorization"] == {"credentials_file": "/run/scrape-proxy/token"}
        assert job["relabel_configs"][0]["source_labels"] == ["__meta_kubernetes_pod_ready"]
        assert job["kubernetes_sd_configs"][0]["role"] == "pod"


def test_a_workload_cannot_choose_its_labels() -> None:
    """Without honor_labels, what a target says of its namespace is put aside."""
    assert all("honor_labels" not in job for job in secure_jobs(ClusterJobs("/certs")))


def test_namespaces_and_intervals_are_passed_on() -> None:
    """Namespaces sorted, so that their order changes nothing; intervals only when given."""
    (job, _) = secure_jobs(ClusterJobs("/certs", ("b", "a"), interval="30s", timeout="5s"))
    assert job["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": ["a", "b"]}}]
    assert (job["scrape_interval"], job["scrape_timeout"]) == ("30s", "5s")
    assert "scrape_interval" not in secure_jobs(ClusterJobs("/certs"))[0]


def test_an_applications_job_asks_its_own_namespace_only() -> None:
    """Whatever the other jobs see."""
    application = ApplicationPort("shop", "web", {"app": "web"}, 9080)
    job = secure_jobs(ClusterJobs("/certs", ("a", "b"), (application,)))[2]
    assert job["job_name"] == "istio-secure-application-metrics/shop/web"
    assert job["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": ["shop"]}}]


def test_the_drop_rule_in_both_spellings() -> None:
    """Prometheus' own, and the one of monitors."""
    present = "__meta_kubernetes_pod_annotationpresent_prometheus_istio_io_secure_port"
    rest = {"action": "drop", "regex": "true;.*:(15020|15090)"}
    assert drop_secured() == {**rest, "source_labels": [present, "__address__"]}
    assert drop_secured_monitor() == {**rest, "sourceLabels": [present, "__address__"]}


@pytest.mark.parametrize(
    ("key", "name"),
    [("app", "app"), ("app.kubernetes.io/name", "app_kubernetes_io_name"), ("a-b_c", "a_b_c"), ("é", "_")],
)
def test_label_keys_as_discovery_spells_them(key: str, name: str) -> None:
    """Everything but ASCII letters, digits and underscores becomes an underscore."""
    assert label_name(key) == name


def test_camel_case() -> None:
    """As Prometheus' Operator spells fields."""
    assert [camel(each) for each in ("ca_file", "insecure_skip_verify", "regex")] == [
        "caFile", "insecureSkipVerify", "regex",
    ]  # fmt: skip


def test_only_one_place_leaves_servers_unchecked() -> None:
    """`insecure_skip_verify` is in the direct scrape's tls_config, with the certificate that goes with it."""
    assert direct_tls("/certs") == {
        "ca_file": "/certs/root-cert.pem",
        "cert_file": "/certs/cert-chain.pem",
        "key_file": "/certs/key.pem",
        "insecure_skip_verify": True,
    }
