"""Targets of a pod: addresses, ports, identities, and when there is none."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml

from meshscrape.errors import InputError
from meshscrape.kube.objects import manifest_of
from meshscrape.kube.pod_targets import TargetMesh, absence_of, targets_of, workload_name
from meshscrape.kube.views.peer_authentication import PeerAuthentications, peer_authentication
from support.objects import deployment, pod_of
from support.objects import peer_authentication as policy
from support.upstream import INJECTED, needs_upstream

MESH = TargetMesh("example.org")
SECURE = {"ENVOY_SECURE_MERGED_METRICS_PORT": "15092", "ENVOY_SECURE_METRICS_PORT": "15091"}


def ready(pod: dict[str, Any], *, proxy: bool = True) -> dict[str, Any]:
    """Return a pod whose proxy is ready, or is not."""
    changed = copy.deepcopy(pod)
    changed["status"]["initContainerStatuses"] = [{"name": "istio-proxy", "ready": proxy}]
    return changed


def web(version: str = "1.31.0", **options: Any) -> dict[str, Any]:
    """Return a ready pod of an injected Deployment."""
    return ready(pod_of(deployment("web", "shop"), version, **options))


def test_variables_of_an_injected_pod_make_targets() -> None:
    """The injector writes no annotation for Envoy's port, and the proxy opens it all the same."""
    merged, envoy = targets_of(web(variables=SECURE), MESH)
    assert [(target.metrics, target.port) for target in (merged, envoy)] == [
        ("merged", 15092),
        ("envoy", 15091),
    ]
    assert str(merged.identity) == "spiffe://example.org/ns/shop/sa/web"
    assert merged.addresses == ("10.0.0.7",)
    assert merged.path == "/stats/prometheus"
    assert merged.labels == {"namespace": "shop", "pod": "web-5d8f6c7b9-x2x4z", "workload": "web"}


@pytest.mark.parametrize(
    ("annotations", "variables", "version", "ports"),
    [
        ({"prometheus.istio.io/secure-port": "15092"}, {}, "1.31.0", [15092]),
        ({"prometheus.istio.io/secure-port": "15091"}, {}, "1.20.0", [15091]),
        ({"prometheus.istio.io/secure-envoy-port": "16091"}, SECURE, "1.31.0", [15092, 16091]),
        ({"prometheus.istio.io/secure-port": "off"}, {}, "1.31.0", []),
        ({"prometheus.istio.io/secure-port": "0"}, {}, "1.31.0", []),
        ({}, {"ENVOY_SECURE_METRICS_PORT": "0"}, "1.31.0", []),
        ({}, {"ENVOY_SECURE_METRICS_PORT": "99999"}, "1.31.0", []),
        ({}, SECURE, "1.30.2", []),
        ({}, SECURE, "latest", [15092, 15091]),
        ({}, {}, "1.31.0", []),
    ],
)
def test_a_port_is_announced_or_opened_by_a_variable(
    annotations: dict[str, str], variables: dict[str, str], version: str, ports: list[int]
) -> None:
    """An annotation counts for every proxy; variables open ports from 1.31 on."""
    pod = web(version, annotations=annotations, variables=variables)
    assert [target.port for target in targets_of(pod, MESH)] == ports
    assert absence_of(pod) == (None if ports else "no-port")


@pytest.mark.parametrize(("runs", "ports"), [("1.30.2", []), ("1.31.0", [15092, 15091]), ("sha256:1f", [])])
def test_the_proxy_s_version_is_that_of_the_image_that_runs(runs: str, ports: list[int]) -> None:
    """A tag such as `stable` may have moved since; a digest tells nothing, so that the tag counts."""
    pod = web("1.30.0", variables=SECURE)
    pod["status"]["initContainerStatuses"][0]["image"] = f"docker.io/istio/proxyv2:{runs}"
    assert [target.port for target in targets_of(pod, MESH)] == ports


def test_a_pod_of_both_families_is_one_target_with_two_addresses() -> None:
    """Scraping each address would read the pod twice."""
    pod = web(variables=SECURE)
    pod["status"]["podIPs"] = [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]
    assert targets_of(pod, MESH)[0].addresses == ("10.0.0.7", "fd00::7")


def test_aliases_of_the_trust_domain_are_accepted_too() -> None:
    """While a trust domain is renamed, some certificates carry the old name."""
    target = targets_of(web(variables=SECURE), TargetMesh("new.org", ("old.org",)))[0]
    assert [identity.trust_domain for identity in target.identities] == ["new.org", "old.org"]
    assert target.identity.trust_domain == "new.org"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, "terminating"),
        ({"status": {"phase": "Succeeded"}}, "finished"),
        ({"status": {"phase": "Failed"}}, "finished"),
        ({"status": {"phase": "Pending"}}, "pending"),
        ({"status": {"phase": None}}, "pending"),
        ({"status": {"initContainerStatuses": [{"name": "istio-proxy", "ready": False}]}}, "not-ready"),
        ({"status": {"podIP": None}}, "no-address"),
        ({"spec": {"initContainers": []}}, "no-proxy"),
    ],
)
def test_a_pod_that_cannot_answer_is_no_target(change: dict[str, Any], reason: str) -> None:
    """Its address may belong to another pod soon."""
    pod = web(variables=SECURE)
    assert absence_of(pod) is None
    for part, fields in change.items():
        pod[part] |= fields
    assert absence_of(pod) == reason
    assert targets_of(pod, MESH) == ()


def test_application_that_is_not_ready_is_scraped_too() -> None:
    """Its metrics say why it is not ready."""
    pod = web(variables=SECURE)
    pod["status"]["containerStatuses"] = [{"name": "web", "ready": False}]
    pod["status"]["initContainerStatuses"].insert(0, {"name": "migrate", "ready": False})
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    assert len(targets_of(pod, MESH)) == 2


@pytest.mark.parametrize(("mode", "ports"), [("STRICT", [9102]), ("PERMISSIVE", [9102]), ("DISABLE", [])])
def test_the_applications_own_port_is_a_target_where_envoy_takes_mutual_tls(
    mode: str, ports: list[int]
) -> None:
    """The injector hands the application's endpoints to the proxy; policies decide what the port speaks."""
    endpoints = json.dumps({"scrape": "true", "port": "9102", "path": "/m"})
    pod = web(variables={**SECURE, "ISTIO_PROMETHEUS_ANNOTATIONS": endpoints})
    policies = PeerAuthentications([peer_authentication(manifest_of(policy(mode)))])
    found = targets_of(pod, TargetMesh("example.org", policies=policies))[2:]
    assert [(target.metrics, target.port, target.path) for target in found] == [
        ("application", port, "/m") for port in ports
    ]
    if ports:
        https = endpoints.replace('"path"', '"scheme": "https", "path"')
        own_tls = web(variables={**SECURE, "ISTIO_PROMETHEUS_ANNOTATIONS": https})
        # What speaks TLS by itself would be TLS inside TLS: the merge reads it.
        assert len(targets_of(own_tls, TargetMesh("example.org", policies=policies))) == 2
    pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeInboundPorts"] = "80, 9102"
    assert len(targets_of(pod, TargetMesh("example.org", policies=policies))) == 2


@pytest.mark.parametrize(
    ("owner", "labels", "name"),
    [
        (None, {}, "pod-1"),
        ({"kind": "ReplicaSet", "name": "web-5d8f"}, {"pod-template-hash": "5d8f"}, "web"),
        ({"kind": "ReplicaSet", "name": "web-5d8f"}, {}, "web-5d8f"),
        ({"kind": "Job", "name": "report-29012345"}, {}, "report"),
        ({"kind": "Job", "name": "once"}, {}, "once"),
        ({"kind": "StatefulSet", "name": "db"}, {}, "db"),
    ],
)
def test_workload_name_is_derived_from_the_pod(owner: Any, labels: dict[str, str], name: str) -> None:
    """As the generated scrape jobs tell it."""
    owners = [{**owner, "controller": True}] if owner else []
    pod = {"metadata": {"name": "pod-1", "labels": labels, "ownerReferences": owners}}
    assert workload_name(pod) == name


def test_a_pod_that_can_have_no_identity_is_refused() -> None:
    """Names are compared exactly, so what is no name must not become part of an identity."""
    pod = web(variables=SECURE)
    pod["spec"]["serviceAccountName"] = "a/../b"
    with pytest.raises(InputError):
        targets_of(pod, MESH)


@needs_upstream
@pytest.mark.parametrize("file", sorted(INJECTED.glob("*.yaml")) or [INJECTED], ids=lambda file: file.name)
def test_real_injected_pods_have_the_ports_of_their_proxies(file: Any) -> None:
    """Pods as Istio's injector writes them, sidecars and gateways: their variables make the targets."""
    documents = [item for item in yaml.safe_load_all(file.read_text("utf-8")) if item]
    pods = [item for document in documents for item in _pods(document)]
    assert pods
    for pod in pods:
        pod["status"] = {"phase": "Running", "podIP": "10.0.0.1"}
        assert (absence_of(pod), targets_of(pod, MESH)) == ("no-port", ())
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            if container["name"] == "istio-proxy":
                # The injector puts proxyMetadata there.
                container["env"] += [{"name": name, "value": port} for name, port in SECURE.items()]
        assert [target.port for target in targets_of(pod, MESH)] == [15092, 15091]


def _pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    if document["kind"] == "Pod":
        return [document]
    template = document.get("spec", {}).get("template")
    return [{"metadata": {"name": "x"}, **template}] if template else []
