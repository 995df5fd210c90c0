"""Istio's CA protocol both ways: Istio's agent with meshscrape's CA, meshscrape's agent with istiod."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from conformance import prober
from conformance.kube import Kube, Object, until
from conformance.prober import Prober, anonymous, plain, secure

SPACE = "authorities"
IMAGE = "docker.io/meshscrape/meshscrape:test"
ISSUER = "https://kubernetes.default.svc.cluster.local"
Row = Callable[..., None]


@pytest.fixture(scope="module")
def space(kube: Kube) -> Iterator[str]:
    """Provide a namespace without injection."""
    with kube.namespace(SPACE) as name:
        yield name


@pytest.fixture(scope="module")
def scraper(kube: Kube, space: str) -> Prober:
    """Provide a workload with a certificate of istiod."""
    return prober.start(kube, space, "scraper")


@pytest.fixture(scope="module")
def stranger(kube: Kube, space: str) -> Prober:
    """Provide another one."""
    return prober.start(kube, space, "stranger")


def from_pod(path: str) -> Object:
    """Return the source of a variable that is a field of the pod."""
    return {"fieldRef": {"fieldPath": path}}


def agent() -> Object:
    """Return a pod that runs meshscrape's agent as the injector would, with istiod as its CA."""
    values = {
        "ENVOY_SECURE_MERGED_METRICS_PORT": "15092",
        "METRICS_LOCALHOST_ACCESS_ONLY": "true",
        "MESHSCRAPE_SCRAPERS": f"spiffe:spiffe://cluster.local/ns/{SPACE}/sa/scraper",
        "MESHSCRAPE_AGENT_DIR": "/etc/istio/proxy",
        "SECRET_TTL": "1h",
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
        "name": "agent",
        "image": IMAGE,
        "args": ["agent", "proxy", "sidecar"],
        "env": variables,
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
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": prober.named(SPACE, "agent") | {"labels": {"app": "agent"}},
        "spec": {"serviceAccountName": "default", "containers": [container], "volumes": volumes},
    }


def test_meshscrape_agent_gets_its_certificate_from_istiod(
    kube: Kube, space: str, scraper: Prober, stranger: Prober, row: Row
) -> None:
    """The agent's secure port accepts the scraper that istiod certified, and nobody else."""
    kube.apply(agent())
    kube("-n", space, "wait", "--for=condition=Ready", "pod/agent", "--timeout=300s")
    address = kube.address(space, "app=agent")
    root = f"{prober.CERTIFICATES}/root-cert.pem"
    assert scraper.outcomes(secure(address, 15092, ca=root)) == [200]
    assert stranger.outcomes(secure(address, 15092)) == [403]
    assert stranger.outcomes(anonymous(address, 15092), plain(address, 15092)) == ["tls", "closed"]
    row(
        "CA protocol: `meshscrape agent` with istiod",
        "certificate of istiod; scraper 200, another workload 403",
    )


def authority(keys: str) -> list[Object]:
    """Return a pod with meshscrape's CA, which verifies the cluster's own tokens, and its Service."""
    arguments = ["ca", "serve", "--dir", "/var/lib/ca/own", "--listen", "0.0.0.0:15012"]
    arguments += ["--dns", f"ca.{SPACE}.svc", "--jwks", "/etc/keys/jwks.json", "--issuer", ISSUER]
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
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": prober.named(SPACE, "keys"),
            "data": {"jwks.json": keys},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": prober.named(SPACE, "ca") | {"labels": {"app": "ca"}},
            "spec": {"containers": [container], "volumes": volumes},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": prober.named(SPACE, "ca"),
            "spec": {"selector": {"app": "ca"}, "ports": [{"name": "grpc", "port": 15012}]},
        },
    ]


def test_istio_agent_gets_its_certificate_from_meshscrape(kube: Kube, space: str, row: Row) -> None:
    """Istio's own agent, injected as always, gets its certificate from `meshscrape ca serve`."""
    kube.apply(authority(kube("get", "--raw", "/openid/v1/jwks")))
    kube("-n", space, "wait", "--for=condition=Ready", "pod/ca", "--timeout=300s")
    root = until(
        lambda: kube.run("-n", space, "exec", "ca", "--", "cat", "/var/lib/ca/own/ca-cert.pem").stdout,
        "the CA writes its root",
    )
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": prober.named(space, "ca-root"),
            "data": {"root-cert.pem": root},
        }
    )
    pod = prober.manifest(space, "istio-agent", "default")
    pod["metadata"]["annotations"]["proxy.istio.io/config"] += (
        f"  CA_ADDR: ca.{space}.svc:15012\n  CA_ROOT_CA: /etc/ca-root/root-cert.pem\n"
    )
    pod["metadata"]["annotations"]["sidecar.istio.io/userVolumeMount"] = (
        '{"certificates": {"mountPath": "/etc/istio-certs"}, "ca-root": {"mountPath": "/etc/ca-root"}}'
    )
    pod["spec"]["volumes"].append({"name": "ca-root", "configMap": {"name": "ca-root"}})
    kube.apply(pod)
    kube("-n", space, "wait", "--for=condition=Ready", "pod/istio-agent", "--timeout=300s")
    read = (
        "-n",
        space,
        "exec",
        "istio-agent",
        "-c",
        "prober",
        "--",
        "cat",
        f"{prober.CERTIFICATES}/root-cert.pem",
    )
    written = until(lambda: kube.run(*read).stdout, "pilot-agent writes its certificate")
    assert written.strip() == root.strip()
    row(
        "CA protocol: Istio's pilot-agent with `meshscrape ca serve`",
        "certificate and root of meshscrape's CA",
    )
