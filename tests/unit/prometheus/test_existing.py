"""What to change in a Prometheus that is there already."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meshscrape.prometheus.existing import existing_advice, plaintext_pod_jobs, with_secure_jobs
from meshscrape.prometheus.kubernetes_sd import ClusterJobs, drop_secured, secure_jobs
from support.upstream import SAMPLES, needs_upstream

JOBS = ClusterJobs("/etc/istio-output-certs")
SAMPLE = SAMPLES / "prometheus-secure-metrics.yaml"
CONFIG = {
    "global": {"scrape_interval": "15s"},
    "scrape_configs": [
        {"job_name": "kubernetes-pods", "relabel_configs": [{"action": "keep", "regex": "true"}]},
        {"job_name": "prometheus", "static_configs": [{"targets": ["localhost:9090"]}]},
    ],
}


def job(config: dict[str, Any], name: str) -> dict[str, Any]:
    """One job by name."""
    (found,) = [each for each in config["scrape_configs"] if each["job_name"] == name]
    return dict(found)


def test_secure_jobs_are_appended_and_plaintext_jobs_drop_secured_pods() -> None:
    """The user's jobs keep their place and rules; the drop comes last, when the address is known."""
    changed = with_secure_jobs(CONFIG, JOBS, ["kubernetes-pods"])
    assert changed["global"] == CONFIG["global"]
    assert [each["job_name"] for each in changed["scrape_configs"]] == [
        "kubernetes-pods", "prometheus", "istio-secure-merged-metrics", "istio-secure-envoy-metrics",
    ]  # fmt: skip
    rules = job(changed, "kubernetes-pods")["relabel_configs"]
    assert rules == [{"action": "keep", "regex": "true"}, drop_secured()]
    assert job(changed, "prometheus") == CONFIG["scrape_configs"][1]


def test_changing_twice_changes_nothing_more() -> None:
    """The second time finds jobs and rule in place; the given configuration is never touched."""
    before = yaml.safe_dump(CONFIG)
    once = with_secure_jobs(CONFIG, JOBS, ["kubernetes-pods"])
    assert with_secure_jobs(once, JOBS, ["kubernetes-pods"]) == once
    assert yaml.safe_dump(CONFIG) == before


@pytest.mark.parametrize("empty", [{}, {"scrape_configs": None}, {"scrape_configs": []}])
def test_a_configuration_without_jobs(empty: dict[str, Any]) -> None:
    """Absent, null or empty: the secure jobs are all there is."""
    assert with_secure_jobs(empty, JOBS)["scrape_configs"] == secure_jobs(JOBS)


def test_advice_says_what_where_and_why_in_order() -> None:
    """Credentials, then jobs, then the plaintext job; each with data that can be pasted."""
    advice = existing_advice(CONFIG, JOBS, ["kubernetes-pods", "absent"])
    assert [each.action for each in advice] == ["add", "add", "add", "add"]
    assert "pod template" in advice[0].where
    assert "kubernetes-pods" in advice[-1].where
    assert yaml.safe_load(advice[-1].text) == [drop_secured()]
    assert all(each.reason and yaml.safe_load(each.text) == each.data for each in advice)


def test_no_advice_on_finished_steps() -> None:
    """With jobs and rule in place, only the pod is left to look at."""
    done = with_secure_jobs(CONFIG, JOBS, ["kubernetes-pods"])
    assert len(existing_advice(done, JOBS, ["kubernetes-pods"])) == 1


def test_a_job_of_the_same_name_keeps_its_interval_and_certificate() -> None:
    """Where the files are and how often to scrape is the user's own; what is scraped is ours."""
    theirs = {
        "job_name": "istio-secure-merged-metrics",
        "scrape_interval": "1m",
        "tls_config": {"ca_file": "/c"},
    }
    (changed, _) = with_secure_jobs({"scrape_configs": [theirs]}, JOBS)["scrape_configs"]
    (ours, _) = secure_jobs(JOBS)
    assert changed == {**ours, "scrape_interval": "1m", "tls_config": {"ca_file": "/c"}}


@needs_upstream
def test_the_jobs_of_istios_sample_are_corrected_where_they_stand() -> None:
    """Same names, same place: Running pods, IPv6, default path and labels come in, nothing else moves."""
    documents = yaml.safe_load_all(SAMPLE.read_text())
    data = next(each for each in documents if each["kind"] == "ConfigMap")["data"]
    config = yaml.safe_load(data["prometheus.yml"])
    changed = with_secure_jobs(config, JOBS, ["kubernetes-pods", "kubernetes-pods-slow"])
    names = [each["job_name"] for each in config["scrape_configs"]]
    assert [each["job_name"] for each in changed["scrape_configs"]] == names
    for job, theirs, ours in zip(
        changed["scrape_configs"], config["scrape_configs"], secure_jobs(JOBS), strict=False
    ):
        assert job == {**ours, "tls_config": theirs["tls_config"]}
    touched = {
        "istio-secure-merged-metrics",
        "istio-secure-envoy-metrics",
        "kubernetes-pods",
        "kubernetes-pods-slow",
    }
    for before, after in zip(config["scrape_configs"], changed["scrape_configs"], strict=True):
        assert (before == after) is (before["job_name"] not in touched)
    assert [each.action for each in existing_advice(config, JOBS)] == ["add", "change", "change"]


def test_jobs_that_may_read_proxies_in_the_clear_are_found() -> None:
    """Those that find pods and speak http; not those on nodes, over TLS, or with fixed targets."""
    pods = [{"role": "pod"}]
    config = {
        "scrape_configs": [
            {"job_name": "plain", "kubernetes_sd_configs": pods},
            {"job_name": "said", "scheme": "http", "kubernetes_sd_configs": pods},
            {"job_name": "secure", "scheme": "https", "kubernetes_sd_configs": pods},
            {"job_name": "nodes", "kubernetes_sd_configs": [{"role": "node"}]},
            {"job_name": "fixed", "static_configs": []},
        ]
    }
    assert plaintext_pod_jobs(config) == ("plain", "said")
    assert plaintext_pod_jobs({}) == ()


def test_an_existing_prometheus_keeps_its_own_scraping() -> None:
    """Whether somebody scrapes the Prometheus that is there is not changed."""
    (pod, *_) = existing_advice(CONFIG, JOBS)
    assert "prometheus.io/scrape" not in pod.data["metadata"]["annotations"]


def test_one_plaintext_job_is_derived_from() -> None:
    """The secure job keeps its rules and its label `job`; several jobs get the standard one."""
    rule = {"action": "replace", "target_label": "team", "replacement": "a"}
    own = {"job_name": "pods", "kubernetes_sd_configs": [{"role": "pod"}], "relabel_configs": [rule]}
    changed = with_secure_jobs({"scrape_configs": [own]}, JOBS, ["pods"])
    secure = job(changed, "istio-secure-merged-metrics")
    assert rule in secure["relabel_configs"]
    assert secure["relabel_configs"][0]["replacement"] == "pods"
    assert with_secure_jobs(changed, JOBS, ["pods"]) == changed
    several = with_secure_jobs({"scrape_configs": [own, {**own, "job_name": "more"}]}, JOBS, ["pods", "more"])
    assert job(several, "istio-secure-merged-metrics") == secure_jobs(JOBS)[0]
