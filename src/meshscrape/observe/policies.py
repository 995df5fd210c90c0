"""Policies on workloads, indexed: PeerAuthentication, ProxyConfig objects, Sidecars.

Precedence as in Istio's `ComposePeerAuthentication` and `GetProxyConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from meshscrape.istio.names import ISTIO_NETWORKING, ISTIO_SECURITY
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.observe.cluster import Cluster, Selecting, oldest
from meshscrape.observe.model import Mtls, MtlsMode

_MODES = ("STRICT", "PERMISSIVE", "DISABLE")


class PeerAuthentications:
    """Answers the effective mTLS mode of a workload."""

    def __init__(self, cluster: Cluster, root_namespace: str) -> None:
        self._root = root_namespace
        self._selecting: Selecting[Manifest] = Selecting()
        wide: dict[str, list[Manifest]] = {}
        for each in cluster.inventory.of_kind("PeerAuthentication", ISTIO_SECURITY):
            match = objects.as_mapping(objects.dig(each.data, "spec", "selector", "matchLabels"))
            if not match:
                wide.setdefault(each.ref.namespace, []).append(each)
            elif each.ref.namespace != root_namespace:
                # Istio ignores policies of the root namespace that select workloads.
                self._selecting.add(each.ref.namespace, {"matchLabels": match}, each)
        self._wide = {namespace: oldest(found) for namespace, found in wide.items()}

    def of(self, namespace: str, labels: Mapping[str, str]) -> Mtls:
        """The mode of a workload with `labels`, and of its single ports."""
        policy = oldest(self._selecting.matching(namespace, labels))
        chain = (policy, self._wide.get(namespace), self._wide.get(self._root))
        default, source = _inherited(chain)
        ports: dict[int, MtlsMode] = {}
        levels = objects.as_mapping(objects.dig(policy.data, "spec", "portLevelMtls")) if policy else {}
        for port, level in levels.items():
            mode = objects.dig(level, "mode")
            if mode in _MODES and str(port).isdigit():
                ports[int(port)] = cast(MtlsMode, mode)
        if ports and policy is not None:
            source = policy
        return Mtls(default, ports, source.ref if source else None)


def _inherited(chain: tuple[Manifest | None, ...]) -> tuple[MtlsMode, Manifest | None]:
    for policy in chain:
        mode = objects.dig(policy.data, "spec", "mtls", "mode") if policy else None
        if mode in _MODES:
            return cast(MtlsMode, mode), policy
    return "PERMISSIVE", None


class ProxyConfigs:
    """ProxyConfig objects: environment variables by selector, namespace and mesh; the oldest wins."""

    def __init__(self, cluster: Cluster, root_namespace: str) -> None:
        self._root = root_namespace
        self._selecting: Selecting[Manifest] = Selecting()
        wide: dict[str, list[Manifest]] = {}
        for each in cluster.inventory.of_kind("ProxyConfig", ISTIO_NETWORKING):
            match = objects.as_mapping(objects.dig(each.data, "spec", "selector", "matchLabels"))
            if match:
                self._selecting.add(each.ref.namespace, {"matchLabels": match}, each)
            else:
                wide.setdefault(each.ref.namespace, []).append(each)
        self._wide = {namespace: oldest(found) for namespace, found in wide.items()}

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> Mapping[str, str]:
        """The variables for exactly this workload: they beat the annotation."""
        return _environment(oldest(self._selecting.matching(namespace, labels)))

    def wide(self, namespace: str) -> dict[str, str]:
        """The variables for the namespace, over those for the mesh: the annotation beats them."""
        return _environment(self._wide.get(self._root)) | _environment(self._wide.get(namespace))


def _environment(config: Manifest | None) -> dict[str, str]:
    found = objects.as_mapping(objects.dig(config.data, "spec", "environmentVariables")) if config else {}
    return {str(key): str(value) for key, value in found.items()}


class Sidecars:
    """Sidecar objects: the one that is in force for a workload."""

    def __init__(self, cluster: Cluster, root_namespace: str) -> None:
        self._root = root_namespace
        self._selecting: Selecting[Manifest] = Selecting()
        self._wide: dict[str, list[Manifest]] = {}
        for each in cluster.inventory.of_kind("Sidecar", ISTIO_NETWORKING):
            match = objects.as_mapping(objects.dig(each.data, "spec", "workloadSelector", "labels"))
            if match:
                self._selecting.add(each.ref.namespace, {"matchLabels": match}, each)
            else:
                self._wide.setdefault(each.ref.namespace, []).append(each)

    def of(self, namespace: str, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        """The Sidecars in force, the effective one first; more than one is undefined behaviour of Istio."""
        found = self._selecting.matching(namespace, labels)
        found = found or self._wide.get(namespace) or self._wide.get(self._root, [])
        first = oldest(found)
        return (first, *(each for each in found if each is not first)) if first else ()
