"""A complete Prometheus without an operator, with its own workload certificate."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import INJECT
from meshscrape.kube.yaml_text import dump
from meshscrape.prometheus import scrape_proxy_pod
from meshscrape.prometheus.access import PODS, access
from meshscrape.prometheus.config import plain_job
from meshscrape.prometheus.kubernetes_sd import secure_jobs
from meshscrape.prometheus.options import PrometheusOptions
from meshscrape.prometheus.rules import rules_file
from meshscrape.prometheus.scraper_pod import pod_annotations, pod_labels, unscraped, volume, volume_mount
from meshscrape.prometheus.targets import PROXY_JOB

PORT = 9090
_CONFIG = "/etc/prometheus"
_USER = 65534


def addon(options: PrometheusOptions) -> tuple[dict[str, Any], ...]:
    """Return ServiceAccount, roles, ConfigMap, Deployment, Service, and a NetworkPolicy if requested."""
    objects = [*access(options, PODS), _config_map(options), _deployment(options), _service(options)]
    if options.network_policy:
        objects.append(_network_policy(options))
    return tuple(objects)


def prometheus_config(options: PrometheusOptions) -> dict[str, Any]:
    """Return the data of prometheus.yml: the secure jobs, and jobs for the metrics of this pod itself."""
    own: list[dict[str, Any]] = [
        {"job_name": "prometheus", "static_configs": [{"targets": [f"localhost:{PORT}"]}]}
    ]
    if options.proxy:
        own.append(plain_job(PROXY_JOB, scrape_proxy_pod.DISCOVERY, scrape_proxy_pod.IN_POD.token_file))
    return {
        "global": {
            "scrape_interval": options.interval,
            "scrape_timeout": options.timeout,
            "evaluation_interval": options.interval,
        },
        **({"rule_files": [f"{_CONFIG}/rules.yml"]} if options.rules else {}),
        "scrape_configs": [*secure_jobs(options.jobs), *own],
    }


def _config_map(options: PrometheusOptions) -> dict[str, Any]:
    files = {"prometheus.yml": dump(prometheus_config(options))}
    if options.rules:
        files["rules.yml"] = rules_file(options.rules)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": options.metadata(), "data": files}


def _deployment(options: PrometheusOptions) -> dict[str, Any]:
    credentials = scrape_proxy_pod.volumes(options.proxy) if options.proxy else [volume()]
    sidecars = scrape_proxy_pod.init_containers(options.proxy) if options.proxy else []
    template = {
        "metadata": {
            "labels": {**options.selector, **_labels(options)},
            "annotations": {**unscraped(), **({} if options.proxy else pod_annotations(options.harden))},
        },
        "spec": {
            "serviceAccountName": options.service_account,
            **({"initContainers": sidecars} if sidecars else {}),
            "containers": [_container(options)],
            "volumes": [
                {"name": "config", "configMap": {"name": options.name}},
                {"name": "data", "emptyDir": {}},
                *credentials,
            ],
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": options.metadata(),
        "spec": {
            "replicas": 1,
            # Two pods at once would scrape every target twice.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": options.selector},
            "template": template,
        },
    }


def _labels(options: PrometheusOptions) -> dict[str, str]:
    # With a scrape proxy, the pod gets its certificate by itself.
    return {INJECT: "false"} if options.proxy else pod_labels(options.revision)


def _container(options: PrometheusOptions) -> dict[str, Any]:
    def probe(path: str) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": PORT}, "periodSeconds": 10, "timeoutSeconds": 5}

    return {
        "name": "prometheus",
        "image": options.image,
        "args": [
            f"--config.file={_CONFIG}/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            f"--storage.tsdb.retention.time={options.retention}",
            # Prometheus reloads a changed ConfigMap without a restart. Old versions ignore this option.
            "--enable-feature=auto-reload-config",
        ],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": probe("/-/ready"),
        "livenessProbe": {**probe("/-/healthy"), "failureThreshold": 6},
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
        "securityContext": scrape_proxy_pod.restricted(_USER),
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG, "readOnly": True},
            {"name": "data", "mountPath": "/prometheus"},
            scrape_proxy_pod.token_mount() if options.proxy else volume_mount(),
        ],
    }


def _service(options: PrometheusOptions) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": options.metadata(),
        "spec": {
            "type": "ClusterIP",
            "selector": options.selector,
            "ports": [{"name": "http", "port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }


def _network_policy(options: PrometheusOptions) -> dict[str, Any]:
    """Return a NetworkPolicy that lets only pods of its namespace query Prometheus, which has no login."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": options.metadata(),
        "spec": {
            "podSelector": {"matchLabels": options.selector},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": PORT, "protocol": "TCP"}]}],
        },
    }
