"""Secure jobs derived from plaintext ones: the same targets and labels, tried by real relabelling."""

from __future__ import annotations

from typing import Any

import pytest

from meshscrape.observe.relabel import relabel, rules_of
from meshscrape.prometheus.derived import derived_endpoint, derived_job, is_derived, with_drop, without_drop

POD = "__meta_kubernetes_pod_"
POOL = "istio-secure-merged-metrics"
JOB: dict[str, Any] = {
    "job_name": "mesh.$1",
    "scrape_interval": "7s",
    "sample_limit": 5000,
    "honor_timestamps": False,
    "metrics_path": "/stats/prometheus",
    "basic_auth": {"username": "u", "password": "p"},
    "kubernetes_sd_configs": [{"role": "pod", "namespaces": {"names": ["shop"]}}],
    "static_configs": [{"targets": ["one:1"]}],
    "relabel_configs": [
        {"action": "keep", "source_labels": [f"{POD}container_port_name"], "regex": ".*-envoy-prom"},
        {"action": "labelmap", "regex": f"{POD}label_(.+)"},
        {"source_labels": ["job", f"{POD}name"], "separator": "/", "target_label": "origin"},
    ],
    "metric_relabel_configs": [{"action": "drop", "source_labels": ["__name__"], "regex": "noisy_.*"}],
}


def target(**more: str) -> dict[str, str]:
    """A discovered target of a pod's proxy."""
    return {
        "__address__": "10.0.0.7:15090", "__scheme__": "http", "__metrics_path__": "/metrics",
        f"{POD}phase": "Running", f"{POD}ip": "10.0.0.7", f"{POD}name": "web-1",
        f"{POD}container_port_name": "http-envoy-prom",
        f"{POD}label_app": "web",
        f"{POD}annotation_prometheus_istio_io_secure_port": "15092",
        f"{POD}annotationpresent_prometheus_istio_io_secure_port": "true",
        **more,
    }  # fmt: skip


def yielded(job: dict[str, Any], labels: dict[str, str]) -> dict[str, str] | None:
    """What a job makes of a target: the labels that stay, and where it asks."""
    start = {**labels, "job": job["job_name"]}
    found = relabel(start, rules_of(job.get("relabel_configs")))
    kept = ("__address__", "__scheme__", "__metrics_path__")
    return found and {k: v for k, v in found.items() if k in kept or not k.startswith("__")}


def test_labels_are_those_of_the_plaintext_job() -> None:
    """The same labels, `job` included; only the address, path and scheme are the secure port's."""
    before, after = yielded(JOB, target()), yielded(derived_job(JOB, POOL, "/certs"), target())
    assert before is not None and after is not None
    assert after.pop("__address__") == "10.0.0.7:15092"
    assert (after.pop("__scheme__"), after.pop("__metrics_path__")) == ("https", "/stats/prometheus")
    assert after == {k: v for k, v in before.items() if not k.startswith("__")}
    assert after["job"] == "mesh.$1"
    assert after["origin"] == "mesh.$1/web-1"


def test_each_target_is_in_one_of_the_two_jobs() -> None:
    """What the plaintext job drops, the derived job keeps, and the other way round."""
    plain = {**JOB, "relabel_configs": with_drop(JOB["relabel_configs"])}
    secure = derived_job(JOB, POOL, "/certs")
    unsecured = target()
    del unsecured[f"{POD}annotationpresent_prometheus_istio_io_secure_port"]
    for labels in (target(), unsecured, target(**{"__address__": "[::1]:15090", f"{POD}ip": "::1"})):
        assert (yielded(plain, labels) is None) != (yielded(secure, labels) is None)
    six = yielded(secure, target(**{"__address__": "[::1]:15090", f"{POD}ip": "::1"}))
    assert six is not None and six["__address__"] == "[::1]:15092"


def test_ended_pod_is_not_a_target() -> None:
    """Whatever the plaintext job does with it: such a target is down."""
    assert yielded(derived_job(JOB, POOL, "/certs"), target(**{f"{POD}phase": "Succeeded"})) is None


def test_settings_of_the_plaintext_job_are_inherited() -> None:
    """Interval, limits, honor_* and discovery stay; credentials for a plaintext server do not."""
    job = derived_job(JOB, POOL, "/certs")
    for key in ("scrape_interval", "sample_limit", "honor_timestamps", "kubernetes_sd_configs"):
        assert job[key] == JOB[key]
    assert not {"basic_auth", "static_configs"} & set(job)
    assert job["tls_config"]["cert_file"] == "/certs/cert-chain.pem"
    assert JOB["metric_relabel_configs"][0] in job["metric_relabel_configs"]


def test_the_label_job_can_follow_the_new_job() -> None:
    """With new_job the pool's name is the label."""
    found = yielded(derived_job(JOB, POOL, "/certs", new_job=True), target())
    assert found is not None and found["job"] == POOL


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("up", False), ("scrape_duration_seconds", False), ("scrape_samples_scraped", False),
        ("scrape_it", True), ("upper", True), ("noisy_x", False),
    ],
)  # fmt: skip
def test_an_application_cannot_write_prometheus_own_series(name: str, kept: bool) -> None:
    """`up` and `scrape_*` that Prometheus itself adds are dropped from samples; similar names are not."""
    rules = rules_of(derived_job(JOB, POOL, "/certs")["metric_relabel_configs"])
    assert (relabel({"__name__": name}, rules) is not None) == kept
    open_to_all = derived_job(JOB, POOL, "/certs", keep_own_series=True)["metric_relabel_configs"]
    assert relabel({"__name__": "up"}, rules_of(open_to_all)) is not None


def test_deriving_again_changes_nothing() -> None:
    """From the plaintext job that pods have left, the same secure job follows."""
    moved = {**JOB, "relabel_configs": with_drop(JOB["relabel_configs"])}
    assert with_drop(moved["relabel_configs"]) == moved["relabel_configs"]
    assert without_drop(moved["relabel_configs"]) == JOB["relabel_configs"]
    assert derived_job(moved, POOL, "/certs") == derived_job(JOB, POOL, "/certs")
    assert is_derived(derived_job(JOB, POOL, "/certs")["relabel_configs"])
    assert not is_derived(moved["relabel_configs"])


def test_a_monitors_endpoint_keeps_its_relabelling_and_names_its_job() -> None:
    """In the Operator's spelling, with the label `job` of the monitor that it replaces."""
    endpoint = {
        "port": "http-envoy-prom", "interval": "9s", "tlsConfig": {"insecureSkipVerify": True},
        "relabelings": [{"action": "labeldrop", "regex": "x"}],
    }  # fmt: skip
    found = derived_endpoint(endpoint, ("m/meshscrape-envoy", "m/envoy"))
    assert (found["scheme"], found["interval"], found["port"]) == ("https", "9s", "http-envoy-prom")
    assert "tlsConfig" not in found
    first, second, *_ = found["relabelings"]
    assert (first["targetLabel"], first["replacement"]) == ("job", "m/envoy")
    assert second == {"action": "labeldrop", "regex": "x"}
