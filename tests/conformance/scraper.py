"""Scrapers in the cluster that run with a configuration of `meshscrape prometheus-config --kubernetes`."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from conformance import prober
from conformance.kube import Kube, Object
from conformance.prometheus import Prometheus

FILE = "/etc/scraper/config.yml"


@dataclass(frozen=True)
class Program:
    """A program that scrapes; all of them answer on port 9090."""

    image: str
    arguments: tuple[str, ...]
    collector: str  # for `--for`


PROMETHEUS = Program(
    "docker.io/prom/prometheus:v3", (f"--config.file={FILE}", "--storage.tsdb.path=/data"), "prometheus"
)
VMAGENT = Program(
    "docker.io/victoriametrics/vmagent:v1.79.5",
    (
        f"-promscrape.config={FILE}",
        "-httpListenAddr=:9090",
        "-remoteWrite.url=http://127.0.0.1:1/",
        "-remoteWrite.tmpDataPath=/data",
    ),
    "vmagent",
)
COLLECTOR = Program("docker.io/otel/opentelemetry-collector-contrib:0.165.1", (f"--config={FILE}",), "otel")


def configuration(meshscrape: Path, program: Program, namespace: str) -> str:
    """Return what meshscrape generates for a program that scrapes a namespace every second."""
    words = ("prometheus-config", "--kubernetes", "--namespace", namespace, "--scrape-interval", "1s")
    made = ("--certs", prober.CERTIFICATES, "--for", program.collector)
    done = subprocess.run([str(meshscrape), *words, *made], capture_output=True, text=True, check=True)
    return done.stdout


def pod(namespace: str, name: str, program: Program, **variables: str) -> Object:
    """Return the pod of a scraper, with a certificate of its own; `variables` are its sidecar's."""
    container = {
        "name": "scraper",
        "image": program.image,
        "args": list(program.arguments),
        "ports": [{"containerPort": 9090}],
        "readinessProbe": {"tcpSocket": {"port": 9090}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "configuration", "mountPath": "/etc/scraper"},
            {"name": "data", "mountPath": "/data"},
        ],
    }
    value = prober.certified(namespace, name, name, container, **variables)
    value["spec"]["volumes"] += [
        {"name": "configuration", "configMap": {"name": name}},
        {"name": "data", "emptyDir": {}},
    ]
    return value


def start(kube: Kube, value: Object, text: str) -> Prometheus:
    """Start a scraper's pod with its configuration and the right to find pods of its own namespace."""
    namespace, name = value["metadata"]["namespace"], value["metadata"]["name"]
    meta = prober.named(namespace, name)
    group = "rbac.authorization.k8s.io"
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    reference = {"apiGroup": group, "kind": "Role", "name": name}
    subject = {"kind": "ServiceAccount", **meta}
    kube.apply(
        [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
            {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": [pods]},
            {
                "apiVersion": f"{group}/v1",
                "kind": "RoleBinding",
                "metadata": meta,
                "roleRef": reference,
                "subjects": [subject],
            },
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"config.yml": text}},
            value,
        ]
    )
    kube("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=300s")
    return Prometheus(kube, namespace, f"app={name}")


def up(exposition: str) -> dict[str, bool]:
    """Return whether each instance is up, from the text that the Collector's exporter serves."""
    lines = re.findall(r"^up\{(.*)\} (\S+)", exposition, re.MULTILINE)
    found = {}
    for labels, value in lines:
        (instance,) = re.findall(r'\binstance="([^"]*)"', labels)
        found[instance] = float(value) == 1
    return found


def collecting(receivers: str, address: str) -> str:
    """Return a Collector's whole configuration: the receivers, and an exporter that serves what they read."""
    pipeline = "{receivers: [prometheus], exporters: [prometheus]}"
    return f"""{receivers}
exporters:
  prometheus:
    endpoint: {address}
service:
  telemetry:
    metrics:
      level: none
  pipelines:
    metrics: {pipeline}
"""
