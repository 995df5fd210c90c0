"""Compute a proxy's settings after a restart: its process environment and its ProxyConfig.

Precedence as in `pilot/pkg/model/proxy_config.go` and in the agent: for the environment, a ProxyConfig object
that selects the pod wins over the annotation; for the bootstrap, the annotation wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshscrape.istio.names import ASM_GROUP
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.proxy import Proxy, annotation_metadata, written_metadata
from meshscrape.observe import gateways
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.control import Control
from meshscrape.observe.model import Injection, Kind
from meshscrape.observe.proxy_configs import ProxyConfigs


@dataclass(frozen=True, slots=True)
class Settings:
    """The agent's process environment, its ProxyConfig, and the pod's annotations."""

    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


class ProxySettings:
    """Compute the settings of workloads' proxies."""

    def __init__(self, cluster: Cluster, control: Control) -> None:
        self.cluster = cluster
        self.control = control
        self.configs = ProxyConfigs(cluster, control.mesh.root_namespace)

    def of(
        self,
        kind: Kind,
        ref: Ref,
        template: Mapping[str, Any],
        proxy: Proxy | None,
        injection: Injection,
        gateway_ref: Ref | None,
    ) -> Settings:
        """Return the settings of the proxy that a pod template gets."""
        annotations = objects.annotations(template)
        own_env = proxy.env if proxy else {}
        gateway = self.cluster.inventory.get(gateway_ref) if gateway_ref else None
        if gateway is not None and gateway_ref is not None:
            return self.of_gateway(gateway, annotations, own_env)
        if kind in ("ambient", "uninjected"):
            return Settings(own_env, annotation_metadata(annotations), annotations)
        if proxy is not None and proxy.complete:
            metadata = written_metadata(own_env) | annotation_metadata(annotations)
            if kind == "gateway-classic":
                metadata = {**self.control.mesh.default_metadata, **metadata}
            return Settings(own_env, metadata, annotations)
        plane = self.control.plane(injection.revision)
        mesh = plane.mesh if plane else self.control.mesh
        base = {**mesh.default_metadata, **self.configs.wide(ref.namespace)}
        selected = self.configs.selecting(ref.namespace, objects.labels(template))
        written = annotation_metadata(annotations)
        # For the process environment, an object that selects the pod wins; for the bootstrap, the annotation
        # wins.
        return Settings(
            {**base, **written, **selected, **own_env}, {**base, **selected, **written}, annotations
        )

    def of_gateway(
        self, gateway: Manifest, annotations: Mapping[str, str], own_env: Mapping[str, str]
    ) -> Settings:
        """Return the settings that a Gateway or IstioGateway gives to its proxies."""
        if gateway.ref.group == ASM_GROUP:
            pod = {**annotations, **objects.as_mapping(objects.dig(gateway.data, "spec", "podAnnotations"))}
            env = gateways.istio_gateway_env(gateway)
            return Settings(env, {**written_metadata(own_env), **annotation_metadata(pod)}, pod)
        mesh = self.control.mesh
        overlay = gateways.overlay_of(gateway, self.cluster, mesh.root_namespace)
        base = {
            **mesh.default_metadata,
            **self.configs.wide(gateway.ref.namespace),
            **self.configs.selecting(gateway.ref.namespace, {gateways.GATEWAY_NAME: gateway.ref.name}),
        }
        pod = {**gateways.gateway_annotations(gateway), **overlay.annotations}
        return Settings({**base, **overlay.env}, {**base, **annotation_metadata(pod)}, pod)
