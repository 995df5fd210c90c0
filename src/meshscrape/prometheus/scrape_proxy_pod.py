"""The scrape proxy as native sidecars of a Prometheus's pod.

Three containers of one image share a volume in memory. The agent asks istiod for a workload certificate with
the pod's own token, so that the pod needs no istio-proxy. There is no agent if the pod already has
certificate files. Envoy carries the scrapes. The third container follows the cluster's pods; Envoy goes on
while it restarts. Prometheus starts when Envoy uses the first list of pods.

All run as user 1337. Istio never intercepts that user's traffic, so scrapes leave a pod with a sidecar
directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_SPIFFE_VOLUME = "scrape-proxy-spiffe"
_SPIFFE_DIRECTORY = "/var/run/secrets/spiffe.io"
# Every volume that a scrape proxy may have.
VOLUMES = (VOLUME, TOKEN_VOLUME, _ISTIO_TOKEN_VOLUME, _ROOTS_VOLUME, _SPIFFE_VOLUME)
# Where the certificate comes from: the proxy's own agent, or cert-manager's driver.
ISTIOD, CSI_DRIVER = "istiod", "csi-driver-spiffe"
_CSI_NAME = "spiffe.csi.cert-manager.io"
_USER = 1337
# The agent's own ports, on loopback: those of Istio's agent belong to a sidecar of the pod.
_AGENT_PORTS = {names.STATUS_PORT: "15096", names.ENVOY_STATUS_PORT: "15097"}

IN_POD = ProxyInPod(f"127.0.0.1:{PROXY_PORT}", _TOKEN_FILE)
DISCOVERY = f"127.0.0.1:{PROXY_DISCOVERY_PORT}"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Certificate files that the proxy does not write: their directory, and how the proxy mounts it.

    `volume` is the volume to add, None if the pod already has it. `first`: the files exist before the proxy
    starts.
    """

    directory: str
    mount: Mapping[str, Any]
    volume: Mapping[str, Any] | None = None
    first: bool = True


# The proxy's group need not be the pod's `fsGroup`. This attribute makes the key readable by the proxy's
# group.
CSI_FILES = CertificateFiles(
    _SPIFFE_DIRECTORY,
    {"name": _SPIFFE_VOLUME, "mountPath": _SPIFFE_DIRECTORY, "readOnly": True},
    {
        "name": _SPIFFE_VOLUME,
        "csi": {
            "driver": _CSI_NAME,
            "readOnly": True,
            "volumeAttributes": {f"{_CSI_NAME}/fs-group": str(_USER)},
        },
    },
)


@dataclass(frozen=True, slots=True)
class ScrapeProxyPod:
    """The scrape proxy of one Prometheus: the image with meshscrape, its CA and its mesh.

    `ca_address` is istiod's `host:port`. `aliases` are other names of the trust domain that targets'
    certificates may have. `namespaces`: the proxy follows the pods of these only; empty means all. `files`:
    the proxy's certificate, if its own agent does not ask istiod for one.
    """

    image: str
    ca_address: str
    trust_domain: str
    aliases: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    files: CertificateFiles | None = None


def init_containers(proxy: ScrapeProxyPod) -> list[dict[str, Any]]:
    """Return the native sidecars in the order to start them."""
    return [*([] if proxy.files else [_agent(proxy)]), _envoy(proxy), _routes(proxy)]


def volumes(proxy: ScrapeProxyPod) -> list[dict[str, Any]]:
    """Return the pod's volumes. Volumes with a key or a token are in memory."""
    own: list[dict[str, Any]] = [
        {"name": VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "128Mi"}},
        {"name": TOKEN_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]
    if proxy.files:
        return [*own, *([dict(proxy.files.volume)] if proxy.files.volume else [])]
    token = {
        "audience": names.CA_TOKEN_AUDIENCE,
        "expirationSeconds": 43200,
        "path": "istio-token",
    }
    return [
        *own,
        {"name": _ISTIO_TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": _ROOTS_VOLUME, "configMap": {"name": names.CA_ROOT_CONFIG_MAP}},
    ]


def token_mount() -> dict[str, Any]:
    """Return the mount of the proxy's token in Prometheus's own container."""
    return {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": True}


def rights(name: str, namespace: str, account: str, places: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the role to list and watch pods, and its binding to the ServiceAccount `namespace`/`account`.

    They apply to each namespace of `places`; without any, to the whole cluster.
    """
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    if not places:
        return _rights(name, {}, "ClusterRole", subject)
    return [made for place in places for made in _rights(name, {"namespace": place}, "Role", subject)]


def _rights(name: str, place: dict[str, str], kind: str, subject: dict[str, str]) -> list[dict[str, Any]]:
    metadata = {"name": name, **place, "labels": {names.MANAGED_BY: "meshscrape"}}
    api = f"{names.RBAC_GROUP}/v1"
    return [
        {
            "apiVersion": api,
            "kind": kind,
            "metadata": metadata,
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
        },
        {
            "apiVersion": api,
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": names.RBAC_GROUP, "kind": kind, "name": name},
            "subjects": [subject],
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
    # Envoy waits for its configuration, which the next container writes.
    words = ["proxy", "--role", "envoy", "--dir", _PROXY, "--wait", "3600"]
    container = _container(f"{CONTAINER}-envoy", proxy.image, words, "50m", "128Mi")
    _mount_files(container, proxy)
    return container


def _routes(proxy: ScrapeProxyPod) -> dict[str, Any]:
    certificates = proxy.files.directory if proxy.files else _CERTIFICATES
    words = [
        "proxy", "--role", "routes", "--kubernetes", "--credentials", certificates, "--dir", _PROXY,
        "--token-file", _TOKEN_FILE, "--share-token", "--wait", "600",
        "--listen", IN_POD.address, "--discovery", DISCOVERY,
        # The jobs decide which of the applications' own ports are scraped; the proxy only has to know them.
        "--applications",
    ]  # fmt: skip
    for namespace in proxy.namespaces:
        words += ["--namespace", namespace]
    for alias in proxy.aliases:
        words += ["--trust-domain-alias", alias]
    container = _container(CONTAINER, proxy.image, words, "50m", "128Mi")
    _mount_files(container, proxy)
    container["volumeMounts"].append({"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY})
    if proxy.files and not proxy.files.first:
        # A container that starts later writes the files. With a probe here, each of the two would wait for
        # the other.
        return container
    probe = ["meshscrape", "proxy", "--check", "--discovery", DISCOVERY, "--token-file", _TOKEN_FILE]
    # A probe over the network would meet a sidecar's interception, and the proxy listens on loopback only.
    container["startupProbe"] = {
        "exec": {"command": probe},
        "periodSeconds": 2,
        "timeoutSeconds": 10,
        "failureThreshold": 300,
    }
    return container


def _mount_files(container: dict[str, Any], proxy: ScrapeProxyPod) -> None:
    if proxy.files:
        container["volumeMounts"].append(dict(proxy.files.mount))


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
