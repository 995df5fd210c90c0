"""One workload, in three stages. Each stage has every field that it promises.

declared the facts in its objects: template, injection, settings (declared.py) resolved with versions,
policies and the running pods (resolved.py) observed with the scrape jobs that read it (the result of
`observe`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.environment import is_false, is_true
from meshscrape.istio.versions import UNKNOWN, IstioVersion
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.peer_authentication import Mtls
from meshscrape.kube.views.proxy import Proxy
from meshscrape.observe.bootstrap import Override
from meshscrape.observe.legacy import LegacyPort
from meshscrape.observe.model import (
    GATEWAYS,
    Flavour,
    Injection,
    Kind,
    Mode,
    RunningPod,
    WorkloadPort,
)
from meshscrape.observe.refusals import PodRefusal

_TEMPLATES_WITHOUT_ENVOY = ("grpc-agent", "grpc-simple")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredWorkload:
    """A workload or gateway as its objects declare it, before versions and policies are known.

    `ref` is the object to change (Deployment, StatefulSet, DaemonSet, Job, CronJob, or a bare Pod);
    `gateway_ref` is the Gateway or IstioGateway that owns it. `manifest` is None when the dump has only its
    pods; then the first pod stands for the `template`. `pods` are those with a status, which the API server
    sets. `annotations` are the pod's, with those that a Gateway adds. `proxy_metadata` is effective after a
    restart: mesh default, ProxyConfig objects, annotation. `env` is the part of it that is also in the
    environment of the process istio-proxy, with the container's own variables. `owned_by` is the object of
    another controller (Knative, ECK, Argo Rollouts, an operator) that writes the template and reverts
    changes. `refusals` tell why new pods are refused.
    """

    ref: Ref
    kind: Kind
    manifest: Manifest | None
    template: Mapping[str, Any]
    pods: tuple[Manifest, ...]
    proxy: Proxy | None
    service_account: str
    spiffe_id: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    injection: Injection
    gateway_ref: Ref | None
    flavour: Flavour
    revision: str
    env: Mapping[str, str]
    proxy_metadata: Mapping[str, str]
    host_network: bool
    owned_by: Ref | None
    refusals: tuple[PodRefusal, ...]

    @property
    def namespace(self) -> str:
        """Return the namespace of the workload."""
        return self.ref.namespace

    @property
    def name(self) -> str:
        """Return the name of the object to change."""
        return self.ref.name

    @property
    def standalone(self) -> bool:
        """Return whether no controller recreates its pods with new settings."""
        return self.ref.kind in ("Pod", "Job")

    @property
    def is_gateway(self) -> bool:
        """Return whether it is a gateway or waypoint: nothing intercepts its traffic."""
        return self.kind in GATEWAYS

    @property
    def in_mesh(self) -> bool:
        """Return whether it has (or will have) an Envoy of the mesh."""
        return self.kind not in ("ambient", "uninjected")

    @property
    def refusal(self) -> str:
        """Return why the injector refuses new pods; empty when it does not."""
        return self.refusals[0].text if self.refusals else ""

    @property
    def envoy_missing(self) -> str:
        """Return why the agent runs no Envoy and so opens no secure port; empty if it runs one."""
        if is_true(self.env.get("DISABLE_ENVOY")):
            return "DISABLE_ENVOY is set: the agent runs without Envoy"
        templates = [part.strip() for part in self.annotations.get(names.TEMPLATES, "").split(",")]
        without = next((name for name in templates if name in _TEMPLATES_WITHOUT_ENVOY), "")
        return f"the injection template {without} has no Envoy" if without else ""

    @property
    def stats_merged(self) -> bool:
        """Return whether the merged metrics contain Envoy's statistics; else only 15090 and 15091 do."""
        return not is_false(self.env.get(names.PILOT_AGENT_MERGE_ENVOY_STATS))

    @property
    def prometheus_annotations(self) -> Mapping[str, str]:
        """Return the `prometheus.io/*` annotations."""
        return {
            key: str(value) for key, value in self.annotations.items() if key.startswith("prometheus.io/")
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyVersions:
    """The versions of a workload's proxy.

    `running` are those of its pods, lowest first. `after` is the version of a restarted pod; for an
    uninjected workload, its version once it is injected. `native_sidecar` is None when it is unknown.
    """

    running: tuple[IstioVersion, ...]
    after: IstioVersion
    native_sidecar: bool | None

    @property
    def now(self) -> IstioVersion:
        """Return the lowest running version."""
        return self.running[0] if self.running else UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsPorts:
    """The ports where a workload's proxy serves metrics.

    `merged` and `envoy` are Istio's native listeners as configured; `listening` are all ports that serve
    metrics over mutual TLS, by whichever mode. A proxy of unknown version is assumed to support every
    listener that its configuration asks for. `announced` and `announced_envoy` are the annotations
    `secure-port` and `secure-envoy-port` that pods carry or will carry. `hardened`: 15090 and 15020 are both
    closed; `half_hardened` names the one that stays open when only the other is closed.
    """

    mode: Mode
    merged: int | None
    envoy: int | None
    listening: tuple[int, ...]
    announced: str | None
    announced_envoy: str | None
    hardened: bool
    half_hardened: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interception:
    """The inbound ports that the sidecar intercepts; `include` is None for all ports."""

    captured: bool
    include: tuple[str, ...] | None
    exclude: tuple[str, ...]

    def captures(self, port: int) -> bool:
        """Return whether connections to `port` go through the sidecar."""
        included = self.include is None or str(port) in self.include
        return self.captured and included and str(port) not in self.exclude


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedWorkload(DeclaredWorkload):
    """A workload with its effective versions, ports, policies and running pods.

    `services` select its pods; `override` is the bootstrap override that its proxy starts with; `legacy` are
    the metrics ports of Sidecars and Gateways. `template_checksum`: the injection template gives new pods
    that override, with this checksum; empty if the pod template names the override itself.
    """

    versions: ProxyVersions
    metrics: MetricsPorts
    interception: Interception
    mtls: Mtls
    container_ports: tuple[WorkloadPort, ...]
    services: tuple[Manifest, ...]
    override: Override | None
    legacy: tuple[LegacyPort, ...]
    running: tuple[RunningPod, ...]
    template_checksum: str = ""

    @property
    def stale(self) -> tuple[str, ...]:
        """Return the names of pods that differ from a new pod."""
        return tuple(pod.ref.name for pod in self.running if not pod.current)

    @property
    def bootstrap_override(self) -> str:
        """Return the name of the ConfigMap with the bootstrap override, or empty."""
        return self.override.config_map.name if self.override else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedWorkload(ResolvedWorkload):
    """A workload with the names of the scrape jobs that read it."""

    scraped_by: tuple[str, ...]


def fields_of(stage: DeclaredWorkload) -> dict[str, Any]:
    """Return the fields of a stage, to make the next stage of it."""
    return {field.name: getattr(stage, field.name) for field in fields(stage)}
