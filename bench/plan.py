"""Observing and planning a cluster of 10,000 pods from one dump."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bench.measure import Row

PODS = 10_000
PODS_PER_DEPLOYMENT = 20
DEPLOYMENTS_PER_NAMESPACE = 10
VERSION = "1.30.2"
NEWER = "1.31.0"


def run(rounds: int) -> list[Row]:
    """Rows about `plan` and `observe` of a dump; `rounds` does not matter here."""
    del rounds
    with tempfile.TemporaryDirectory() as directory:
        dump = Path(directory) / "dump.yaml"
        size = write_dump(dump)
        note = (
            f"{PODS} injected pods in {PODS // PODS_PER_DEPLOYMENT} Deployments, {size / 1e6:.0f} MB of YAML"
        )
        rows = []
        for name, arguments in (
            ("plan", ["plan", "-f", str(dump), "--mode", "bootstrap"]),
            ("observe", ["observe", "-f", str(dump), "-o", "json"]),
        ):
            seconds, megabytes = _measured(arguments)
            rows.append(Row(f"{name} of 10,000 pods", seconds, "s", "≤ 30", note))
            rows.append(Row(f"{name} of 10,000 pods, peak memory", megabytes, "MB", "≤ 500", note))
    return rows


def _measured(arguments: list[str]) -> tuple[float, float]:
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "meshscrape", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):
        raise RuntimeError(f"{arguments[0]} ended with {process.returncode}")
    return seconds, usage.ru_maxrss * 1.024e-3


def write_dump(path: Path) -> int:
    """Write a dump as `kubectl get … -A -o yaml` does; its size in bytes."""
    with path.open("w") as out:
        out.write("apiVersion: v1\nitems:\n")
        for obj in objects():
            text = yaml.dump(obj, Dumper=yaml.CSafeDumper, width=80)
            lines = text.splitlines()
            out.write("\n".join(("- " if not n else "  ") + line for n, line in enumerate(lines)) + "\n")
        out.write('kind: List\nmetadata:\n  resourceVersion: ""\n')
    return path.stat().st_size


def objects() -> Iterator[dict[str, Any]]:
    """A mesh in the middle of an upgrade, with a Prometheus in the clear."""
    yield from _control_plane()
    yield from _prometheus()
    pod = _pod()
    for number in range(PODS // PODS_PER_DEPLOYMENT):
        namespace = f"team-{number // DEPLOYMENTS_PER_NAMESPACE}"
        if not number % DEPLOYMENTS_PER_NAMESPACE:
            labels = {"istio-injection": "enabled"}
            yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
        yield from _workload(f"service-{number}", namespace, number, pod)


def _workload(name: str, namespace: str, number: int, pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    labels = {"app": name, "version": "v1"}
    digest = f"{number:x}"
    container = {"name": "app", "image": f"example/{name}:1", "ports": [{"containerPort": 8080}]}
    template = {
        "metadata": {"labels": labels},
        "spec": {"serviceAccountName": name, "containers": [container]},
    }
    meta = {"name": name, "namespace": namespace, "uid": f"d{number}"}
    spec = {"replicas": PODS_PER_DEPLOYMENT, "selector": {"matchLabels": labels}, "template": template}
    yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    yield {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": ports},
    }  # fmt: skip
    yield {
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": f"{name}-{digest}", "namespace": namespace, "labels": labels,
            "ownerReferences": [_owner("Deployment", name, f"d{number}")],
        },
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }  # fmt: skip
    for replica in range(PODS_PER_DEPLOYMENT):
        made = copy.deepcopy(pod)
        address = f"10.{number // 250}.{number % 250}.{replica + 1}"
        made["metadata"] |= {
            "name": f"{name}-{digest}-{replica:05d}", "namespace": namespace,
            "labels": {**labels, "pod-template-hash": digest, "security.istio.io/tlsMode": "istio"},
            "ownerReferences": [_owner("ReplicaSet", f"{name}-{digest}", f"r{number}")],
            "uid": f"00000000-0000-4000-8000-{number * 100 + replica:012d}",
        }  # fmt: skip
        made["spec"]["serviceAccountName"] = name
        made["spec"]["containers"][0] |= container
        made["status"] |= {"podIP": address, "podIPs": [{"ip": address}], "hostIP": f"192.0.2.{number % 250}"}
        _individual(made, number * 100 + replica)
        yield made


def _individual(pod: dict[str, Any], number: int) -> None:
    """What every pod of a real cluster has for itself: times, container IDs, its token's volume."""
    moment = f"2026-11-{1 + number % 20:02d}T{number % 24:02d}:{number % 60:02d}:07Z"
    token = f"kube-api-access-{number:05x}"
    conditions = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    pod["metadata"]["creationTimestamp"] = moment
    pod["metadata"]["resourceVersion"] = str(10**6 + number)
    pod["spec"]["nodeName"] = f"node-{number % 300}"
    pod["spec"]["volumes"].append({"name": token, "projected": {"sources": [{"serviceAccountToken": {}}]}})
    for container in pod["spec"]["containers"]:
        mounts = container.setdefault("volumeMounts", [])
        container["volumeMounts"] = [*mounts, {"name": token, "mountPath": "/var/run/secrets/k8s"}]
    pod["status"]["startTime"] = moment
    pod["status"]["conditions"] = [
        {"type": each, "status": "True", "lastProbeTime": None, "lastTransitionTime": moment}
        for each in conditions
    ]
    for index, status in enumerate(pod["status"]["containerStatuses"]):
        digest = f"{number * 7 + index:064x}"
        status |= {
            "containerID": f"containerd://{digest}",
            "imageID": f"docker.io/istio/proxyv2@sha256:{digest[::-1]}",
            "state": {"running": {"startedAt": moment}},
        }


def _owner(kind: str, name: str, uid: str) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": True}


def _pod() -> dict[str, Any]:
    """A pod as the injector writes it, with the fields that a cluster adds."""
    env: list[dict[str, Any]] = [
        {"name": f"ISTIO_META_{number}", "value": f"value {number}"} for number in range(20)
    ]
    env += [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in (("POD_NAME", "metadata.name"), ("INSTANCE_IP", "status.podIP"))
    ]
    env.append({"name": "PROXY_CONFIG", "value": "{}\n"})
    image = f"docker.io/istio/proxyv2:{VERSION}"
    volumes = ("data", "token", "podinfo", "envoy")
    mounts = [{"mountPath": f"/var/run/{name}", "name": name} for name in volumes]
    proxy = {
        "name": "istio-proxy", "image": image, "args": ["proxy", "sidecar"], "env": env,
        "ports": [{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}],
        "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
        "volumeMounts": mounts,
    }  # fmt: skip
    init = {
        "name": "istio-init", "image": image,
        "args": ["istio-iptables", "-p", "15001", "-b", "*", "-d", "15090,15021,15020"],
    }  # fmt: skip
    status = {"name": "istio-proxy", "image": image, "ready": True, "restartCount": 0, "started": True}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "annotations": {
                "istio.io/rev": "default", "prometheus.io/path": "/stats/prometheus",
                "prometheus.io/port": "15020", "prometheus.io/scrape": "true",
                "sidecar.istio.io/status": '{"initContainers":["istio-init"],"containers":["istio-proxy"],'
                '"revision":"default"}',
            },
            "creationTimestamp": "2026-11-01T10:00:00Z", "resourceVersion": "123456",
        },
        "spec": {
            "containers": [{}, proxy], "initContainers": [init], "dnsPolicy": "ClusterFirst",
            "volumes": [{"name": name, "emptyDir": {}} for name in volumes],
        },
        "status": {"phase": "Running", "qosClass": "Burstable", "containerStatuses": [status]},
    }  # fmt: skip


def _control_plane() -> Iterator[dict[str, Any]]:
    labels = {"app": "istiod", "istio.io/rev": "default"}
    container = {"name": "discovery", "image": f"docker.io/istio/pilot:{NEWER}"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    meta: dict[str, Any] = {"name": "istiod", "namespace": "istio-system", "labels": labels}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    values = json.dumps({"global": {"tag": NEWER}, "revision": ""})
    for name, data in (
        ("istio", {"mesh": "trustDomain: cluster.local\n"}),
        ("istio-sidecar-injector", {"values": values, "config": "policy: enabled\n"}),
    ):
        meta = {"name": name, "namespace": "istio-system", "labels": {"istio.io/rev": "default"}}
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
    yield {
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "istio-system"}, "spec": {"mtls": {"mode": "STRICT"}},
    }  # fmt: skip


def _prometheus() -> Iterator[dict[str, Any]]:
    config = (
        "scrape_configs:\n- job_name: kubernetes-pods\n  kubernetes_sd_configs:\n  - role: pod\n"
        "  relabel_configs:\n  - action: keep\n    regex: true\n    source_labels:\n"
        "    - __meta_kubernetes_pod_annotation_prometheus_io_scrape\n"
        "  - action: replace\n    regex: (\\d+);([^:]+)\n    replacement: $2:$1\n    source_labels:\n"
        "    - __meta_kubernetes_pod_annotation_prometheus_io_port\n    - __meta_kubernetes_pod_ip\n"
        "    target_label: __address__\n"
    )
    labels = {"app": "prometheus"}
    container = {"name": "prometheus", "image": "prom/prometheus:v3.5.0"}
    volumes = [{"name": "config", "configMap": {"name": "prometheus"}}]
    spec = {"serviceAccountName": "prometheus", "containers": [container], "volumes": volumes}
    meta = {"name": "prometheus", "namespace": "monitoring"}
    template = {"metadata": {"labels": labels}, "spec": spec}
    body = {"selector": {"matchLabels": labels}, "template": template}
    yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": body}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"prometheus.yml": config}}
