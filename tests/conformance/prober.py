"""Pods that make requests inside the cluster, each with the identity of its ServiceAccount."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance import samples
from conformance.kube import Kube, Object, until

SCRIPT = (Path(__file__).parent / "probe.py").read_text()
CERTIFICATES = "/etc/istio-certs"
IMAGE = "docker.io/library/python:3.12-slim"


@dataclass(frozen=True)
class Prober:
    """A pod that runs requests with its own workload certificate."""

    kube: Kube
    namespace: str
    name: str

    def ask(self, *requests: Object) -> list[Object]:
        """Make requests one after the other and return the answers."""
        words = ("-n", self.namespace, "exec", "-i", self.name, "-c", "prober", "--", "python3", "-c", SCRIPT)
        answers: list[Object] = json.loads(self.kube(*words, stdin=json.dumps(requests)))
        return answers

    def outcomes(self, *requests: Object) -> list[int | str]:
        """Make requests and return the status, or the kind of failure, of each."""
        return [answer.get("status") or str(answer["failure"]) for answer in self.ask(*requests)]

    def certificates(self, *requests: Object) -> list[str]:
        """Make requests over TLS and return a fingerprint of each server's certificate."""
        return [str(answer["peer"]) for answer in self.ask(*requests)]


def secure(host: str, port: int, **more: Any) -> Object:
    """Return a request over mutual TLS with the pod's own certificate."""
    own = {"certificate": f"{CERTIFICATES}/cert-chain.pem", "key": f"{CERTIFICATES}/key.pem"}
    return {"host": host, "port": port, **own, **more}


def anonymous(host: str, port: int, **more: Any) -> Object:
    """Return a request over TLS without a certificate."""
    return {"host": host, "port": port, **more}


def plain(host: str, port: int, **more: Any) -> Object:
    """Return a request without TLS."""
    return {"host": host, "port": port, "tls": False, **more}


def start(kube: Kube, namespace: str, name: str, account: str | None = None) -> Prober:
    """Start a pod whose sidecar does nothing but get a certificate, and wait until it has one."""
    if account is None:
        kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named(namespace, name)})
    kube.apply(manifest(namespace, name, account or name))
    return ready(kube, namespace, name)


def ready(kube: Kube, namespace: str, name: str) -> Prober:
    """Wait until an applied pod has its certificate."""
    kube("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=300s")
    found = ("-n", namespace, "exec", name, "-c", "prober", "--", "test", "-s", f"{CERTIFICATES}/key.pem")
    until(lambda: kube.run(*found).returncode == 0, f"{namespace}/{name} has its certificate")
    return Prober(kube, namespace, name)


def named(namespace: str, name: str) -> Object:
    """Return metadata."""
    return {"name": name, "namespace": namespace}


def manifest(namespace: str, name: str, account: str) -> Object:
    """Return the pod."""
    container = {"name": "prober", "image": IMAGE, "command": ["sleep", "infinity"]}
    return certified(namespace, name, account, container)


def certified(namespace: str, name: str, account: str, container: Object, **variables: str) -> Object:
    """Return a pod whose container finds a workload certificate in CERTIFICATES.

    Its sidecar intercepts nothing. `variables` are the sidecar's.
    """
    annotations = {
        "proxy.istio.io/config": samples.proxy_metadata(OUTPUT_CERTS=CERTIFICATES, **variables),
        "sidecar.istio.io/userVolumeMount": json.dumps({"certificates": {"mountPath": CERTIFICATES}}),
        "traffic.sidecar.istio.io/includeInboundPorts": "",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
    }
    metadata = {**named(namespace, name), "labels": {"sidecar.istio.io/inject": "true", "app": name}}
    mounts = [
        *container.get("volumeMounts", []),
        {"name": "certificates", "mountPath": CERTIFICATES, "readOnly": True},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "annotations": annotations},
        "spec": {
            "serviceAccountName": account,
            "terminationGracePeriodSeconds": 2,
            "containers": [{**container, "volumeMounts": mounts}],
            "volumes": [{"name": "certificates", "emptyDir": {"medium": "Memory"}}],
        },
    }
