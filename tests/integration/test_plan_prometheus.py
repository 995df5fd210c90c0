"""The configuration that a plan leaves, in Prometheus' own hands: promtool's checks and relabeling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from meshscrape.kube.objects import manifest_of
from meshscrape.observe.discovery import pod_targets
from support.objects import cluster, control_plane, deployment, injected_namespace
from support.planning import changed, planned
from support.promtool import check_config, relabelled
from support.scraping_objects import plain_prometheus

PLAIN = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": "15020",
    "prometheus.io/path": "/stats/prometheus",
}


def config() -> str:
    """prometheus.yml after the plan."""
    inventory = cluster(control_plane(), injected_namespace(), deployment(), plain_prometheus())
    text: str = changed(planned(inventory), "ConfigMap")["data"]["prometheus.yml"]
    return text


def pod(
    name: str, address: str, annotations: Mapping[str, str], phase: str = "Running"
) -> list[dict[str, str]]:
    """The targets that discovery makes of an injected pod (a native sidecar)."""
    proxy = {"name": "istio-proxy", "ports": [{"containerPort": 15090, "name": "http-envoy-prom"}]}
    app = {"name": "app", "ports": [{"containerPort": 8080}, {"containerPort": 8081}]}
    data = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": dict(annotations)},
        "spec": {"containers": [app], "initContainers": [proxy]},
        "status": {"phase": phase, "podIP": address},
    }
    return list(pod_targets(manifest_of(data)))


def test_promtool_accepts_it(tmp_path: Path) -> None:
    """The user's text with what the plan adds is a configuration that Prometheus loads."""
    for name in ("cert-chain.pem", "key.pem", "root-cert.pem"):
        (tmp_path / name).touch()
    check_config(config().replace("/etc/istio-output-certs", str(tmp_path)), tmp_path)


def test_every_pod_is_scraped_once(tmp_path: Path) -> None:
    """Pods with the old configuration stay in the plaintext job; those with the new one move.

    Prometheus makes one target of those with equal labels: the plaintext job finds one for each port.
    """
    secured = PLAIN | {"prometheus.istio.io/secure-port": "15092"}
    discovered = [
        *pod("old", "10.0.0.1", PLAIN),
        *pod("new", "10.0.0.2", secured),
        *pod("six", "fd00::2", secured),
        *pod("gone", "10.0.0.3", secured, phase="Succeeded"),
    ]
    jobs: dict[str, Any] = {job["job_name"]: job for job in yaml.safe_load(config())["scrape_configs"]}
    plaintext = relabelled(jobs["kubernetes-pods"], discovered, tmp_path)
    secure = relabelled(jobs["istio-secure-merged-metrics"], discovered, tmp_path)
    assert {each["instance"] for each in plaintext} == {"10.0.0.1:15020"}
    labels = [{name: value for name, value in each.items() if name[:2] != "__"} for each in secure]
    assert {tuple(sorted(each.items())) for each in labels} == {
        (("instance", "10.0.0.2:15092"), ("job", "kubernetes-pods")),
        (("instance", "[fd00::2]:15092"), ("job", "kubernetes-pods")),
    }
