"""Pods with meshscrape's own parts, and what lets Istio's agent get its certificate from meshscrape's CA."""

from __future__ import annotations

import json

import yaml

from conformance import prober
from conformance.kube import Kube, Object, until

IMAGE = "docker.io/meshscrape/meshscrape:test"
ISSUER = "https://kubernetes.default.svc.cluster.local"
ROOT = "ca-root"  # the ConfigMap with the root of meshscrape's CA, and the volume of it
MOUNTED = "/etc/ca-root"


def from_pod(path: str) -> Object:
    """Return the source of a variable that is a field of the pod."""
    return {"fieldRef": {"fieldPath": path}}


def agent(namespace: str, scrapers: str, lifetime: str = "1h") -> Object:
    """Return a pod that runs meshscrape's agent as the injector would, with istiod as its CA.

    `scrapers` is its allow list, `lifetime` that of its certificates.
    """
    values = {
        "ENVOY_SECURE_MERGED_METRICS_PORT": "15092",
        "METRICS_LOCALHOST_ACCESS_ONLY": "true",
        "MESHSCRAPE_SCRAPERS": scrapers,
        "MESHSCRAPE_AGENT_DIR": "/etc/istio/proxy",
        "SECRET_TTL": lifetime,
    }
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
        "INSTANCE_IP": "status.podIP",
    }
    variables: list[Object] = [{"name": name, "value": value} for name, value in values.items()]
    variables += [{"name": name, "valueFrom": from_pod(path)} for name, path in fields.items()]
    token = {"path": "istio-token", "expirationSeconds": 43200, "audience": "istio-ca"}
    container = {
        "name": "istio-proxy",  # this and its port are what discovery keeps
        "image": IMAGE,
        "args": ["agent", "proxy", "sidecar"],
        "env": variables,
        "ports": [{"containerPort": 15090}],
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "token", "mountPath": "/var/run/secrets/tokens"},
            {"name": "root", "mountPath": "/var/run/secrets/istio"},
            {"name": "state", "mountPath": "/etc/istio"},
        ],
    }
    volumes = [
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "root", "configMap": {"name": "istio-ca-root-cert"}},
        {"name": "state", "emptyDir": {"medium": "Memory"}},
    ]
    announced = {
        "labels": {"app": "agent", "sidecar.istio.io/inject": "false"},
        "annotations": {"prometheus.istio.io/secure-port": "15092"},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**prober.named(namespace, "agent"), **announced},
        "spec": {"serviceAccountName": "default", "containers": [container], "volumes": volumes},
    }


def start_ca(kube: Kube, namespace: str) -> str:
    """Start meshscrape's CA, which verifies the cluster's own tokens; publish its root and return it."""
    kube.apply(_ca(namespace, kube("get", "--raw", "/openid/v1/jwks")))
    kube("-n", namespace, "wait", "--for=condition=Ready", "pod/ca", "--timeout=300s")
    root: str = until(
        lambda: kube.run("-n", namespace, "exec", "ca", "--", "cat", "/var/lib/ca/own/ca-cert.pem").stdout,
        "the CA writes its root",
    )
    kube.apply(_config_map(namespace, ROOT, {"root-cert.pem": root}))
    return root


def certified_by_ca(template: Object, namespace: str) -> Object:
    """Change a pod or a pod template: its proxy gets its certificate from meshscrape's CA. Return it."""
    annotations = template["metadata"].setdefault("annotations", {})
    configuration = yaml.safe_load(annotations.get("proxy.istio.io/config", "proxyMetadata: {}"))
    configuration["proxyMetadata"] |= {
        "CA_ADDR": f"ca.{namespace}.svc:15012",
        "CA_ROOT_CA": f"{MOUNTED}/root-cert.pem",
    }
    annotations["proxy.istio.io/config"] = yaml.safe_dump(configuration)
    mounts = json.loads(annotations.get("sidecar.istio.io/userVolumeMount", "{}"))
    mounts[ROOT] = {"mountPath": MOUNTED}
    annotations["sidecar.istio.io/userVolumeMount"] = json.dumps(mounts)
    template["spec"].setdefault("volumes", []).append({"name": ROOT, "configMap": {"name": ROOT}})
    return template


def _ca(namespace: str, keys: str) -> list[Object]:
    """Return the CA's pod, the keys of the tokens that it verifies, and its Service."""
    arguments = ["ca", "serve", "--dir", "/var/lib/ca/own", "--listen", "0.0.0.0:15012"]
    arguments += ["--dns", f"ca.{namespace}.svc", "--jwks", "/etc/keys/jwks.json", "--issuer", ISSUER]
    container = {
        "name": "ca",
        "image": IMAGE,
        "args": arguments,
        "readinessProbe": {"tcpSocket": {"port": 15012}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "keys", "mountPath": "/etc/keys"},
            {"name": "state", "mountPath": "/var/lib/ca"},
        ],
    }
    volumes = [
        {"name": "keys", "configMap": {"name": "keys"}},
        {"name": "state", "emptyDir": {"medium": "Memory"}},
    ]
    labels = {"app": "ca", "sidecar.istio.io/inject": "false"}
    return [
        _config_map(namespace, "keys", {"jwks.json": keys}),
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**prober.named(namespace, "ca"), "labels": labels},
            "spec": {"containers": [container], "volumes": volumes},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": prober.named(namespace, "ca"),
            "spec": {"selector": {"app": "ca"}, "ports": [{"name": "grpc", "port": 15012}]},
        },
    ]


def _config_map(namespace: str, name: str, data: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": prober.named(namespace, name), "data": data}
