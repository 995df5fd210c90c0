"""The scrape proxy as native sidecars of a Prometheus's pod.

Three containers of one image share a volume in memory. The agent asks istiod for a workload certificate with
the pod's own token, so that the pod needs no istio-proxy. Envoy carries the scrapes and outlives the third
one, which follows the cluster's pods. Prometheus starts when Envoy uses the first list of pods.

All run as user 1337. Istio never intercepts that user's traffic, so scrapes leave a pod with a sidecar
directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshscrape.istio import names
from meshscrape.prometheus.config import PROXY_DISCOVERY_PORT, PROXY_PORT
from meshscrape.prometheus.kubernetes_sd import ProxyInPod

# Native sidecars: an init container with restartPolicy Always. On by default since this Kubernetes version.
KUBERNETES_SINCE = "1.29"
CONTAINER = "scrape-proxy"
CONTAINERS = (f"{CONTAINER}-agent", f"{CONTAINER}-envoy", CONTAINER)
VOLUME = "scrape-proxy"
# Prometheus mounts this volume too, and nothing else of the proxy.
TOKEN_VOLUME = "scrape-proxy-token"  # noqa: S105
TOKEN_DIRECTORY = "/run/scrape-proxy-token"  # noqa: S105
_ISTIO_TOKEN_VOLUME = "scrape-proxy-istio-token"  # noqa: S105
_ROOTS_VOLUME = "scrape-proxy-istio-roots"
_DIRECTORY = "/run/meshscrape"
_CERTIFICATES = f"{_DIRECTORY}/certificates"
_PROXY = f"{_DIRECTORY}/proxy"
_ISTIO_TOKEN = "/var/run/secrets/meshscrape/token"  # noqa: S105
_ROOTS = "/var/run/secrets/meshscrape/roots"
_TOKEN_FILE = f"{TOKEN_DIRECTORY}/token"
_USER = 1337
# The agent's own ports, on loopback: those of Istio's agent belong to a sidecar of the pod.
_AGENT_PORTS = {names.STATUS_PORT: "15096", names.ENVOY_STATUS_PORT: "15097"}

IN_POD = ProxyInPod(f"127.0.0.1:{PROXY_PORT}", _TOKEN_FILE)
DISCOVERY = f"127.0.0.1:{PROXY_DISCOVERY_PORT}"


@dataclass(frozen=True, slots=True)
class ScrapeProxyPod:
    """The scrape proxy of one Prometheus: the image with meshscrape, its CA and its mesh.

    `ca_address` is istiod's `host:port`. `aliases` are other names of the trust domain that targets'
    certificates may have.
    """

    image: str
    ca_address: str
    trust_domain: str
    aliases: tuple[str, ...] = ()


def init_containers(proxy: ScrapeProxyPod) -> list[dict[str, Any]]:
    """Return the native sidecars in the order to start them."""
    return [_agent(proxy), _envoy(proxy), _routes(proxy)]


def volumes() -> list[dict[str, Any]]:
    """Return the pod's volumes. What holds a key or a token is in memory."""
    token = {
        "audience": names.CA_TOKEN_AUDIENCE,
        "expirationSeconds": 43200,
        "path": "istio-token",
    }
    return [
        {"name": VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "128Mi"}},
        {"name": TOKEN_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": _ISTIO_TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": _ROOTS_VOLUME, "configMap": {"name": names.CA_ROOT_CONFIG_MAP}},
    ]


def token_mount() -> dict[str, Any]:
    """Return the mount of the proxy's token in Prometheus's own container."""
    return {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": True}


def rights(name: str, namespace: str, account: str) -> list[dict[str, Any]]:
    """Return a ClusterRole to list and watch pods, and its binding to a ServiceAccount."""
    metadata = {"name": name, "labels": {names.MANAGED_BY: "meshscrape"}}
    role = {"apiGroup": names.RBAC_GROUP, "kind": "ClusterRole", "name": name}
    return [
        {
            "apiVersion": f"{names.RBAC_GROUP}/v1",
            "kind": "ClusterRole",
            "metadata": metadata,
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
        },
        {
            "apiVersion": f"{names.RBAC_GROUP}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        },
    ]


def _agent(proxy: ScrapeProxyPod) -> dict[str, Any]:
    variables = {
        # An empty list of ports turns Envoy off: the agent only keeps the certificate.
        names.INBOUND_CAPTURE_PORTS: "",
        names.CA_ADDR: proxy.ca_address,
        names.CA_ROOT_CA: f"{_ROOTS}/{names.ROOTS_FILE}",
        names.MESHSCRAPE_AGENT_DIR: f"{_DIRECTORY}/agent",
        names.MESHSCRAPE_TOKEN_PATH: f"{_ISTIO_TOKEN}/istio-token",
        names.OUTPUT_CERTS: _CERTIFICATES,
        names.TRUST_DOMAIN: proxy.trust_domain,
        **_AGENT_PORTS,
    }
    fields = {
        names.INSTANCE_IP: "status.podIP",
        names.POD_NAME: "metadata.name",
        names.POD_NAMESPACE: "metadata.namespace",
        names.SERVICE_ACCOUNT: "spec.serviceAccountName",
    }
    container = _container(f"{CONTAINER}-agent", proxy.image, ["agent", "proxy", "sidecar"], "16m", "48Mi")
    container["env"] = [
        # The API server stores an empty value as none; written out, it would be a change in every later plan.
        *({"name": name, **({"value": value} if value else {})} for name, value in sorted(variables.items())),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
    ]
    container["volumeMounts"] += [
        {"name": _ISTIO_TOKEN_VOLUME, "mountPath": _ISTIO_TOKEN, "readOnly": True},
        {"name": _ROOTS_VOLUME, "mountPath": _ROOTS, "readOnly": True},
    ]
    return container


def _envoy(proxy: ScrapeProxyPod) -> dict[str, Any]:
    # It waits for its configuration, which the next container writes.
    words = ["proxy", "--role", "envoy", "--dir", _PROXY, "--wait", "3600"]
    return _container(f"{CONTAINER}-envoy", proxy.image, words, "50m", "128Mi")


def _routes(proxy: ScrapeProxyPod) -> dict[str, Any]:
    words = [
        "proxy", "--role", "routes", "--kubernetes", "--credentials", _CERTIFICATES, "--dir", _PROXY,
        "--token-file", _TOKEN_FILE, "--share-token", "--wait", "600",
        "--listen", IN_POD.address, "--discovery", DISCOVERY,
        # The jobs decide which of the applications' own ports are scraped; the proxy only has to know them.
        "--applications",
    ]  # fmt: skip
    for alias in proxy.aliases:
        words += ["--trust-domain-alias", alias]
    container = _container(CONTAINER, proxy.image, words, "50m", "128Mi")
    container["volumeMounts"].append({"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY})
    probe = ["meshscrape", "proxy", "--check", "--discovery", DISCOVERY, "--token-file", _TOKEN_FILE]
    # A probe over the network would meet a sidecar's interception, and the proxy listens on loopback only.
    container["startupProbe"] = {
        "exec": {"command": probe},
        "periodSeconds": 2,
        "timeoutSeconds": 10,
        "failureThreshold": 300,
    }
    return container


def restricted(user: int) -> dict[str, Any]:
    """Return the security context that the restricted Pod Security Standard asks for, with this user."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsGroup": user,
        "runAsNonRoot": True,
        "runAsUser": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(name: str, image: str, words: list[str], cpu: str, memory: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "args": words,
        "restartPolicy": "Always",
        "resources": {"requests": {"cpu": cpu, "memory": memory}},
        "securityContext": restricted(_USER),
        "volumeMounts": [{"name": VOLUME, "mountPath": _DIRECTORY}],
    }
