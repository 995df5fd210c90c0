"""What was found in a cluster's objects, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.istio.versions import UNKNOWN, IstioVersion
from meshscrape.kube.objects import Ref

Kind = Literal[
    "sidecar", "gateway-injected", "gateway-classic", "gateway-api", "waypoint", "asm-gateway", "ambient",
    "uninjected",
]  # fmt: skip
Mode = Literal["none", "native", "bootstrap", "legacy", "mixed"]
Over = Literal["plaintext", "tls-unverified", "mtls"]
Severity = Literal["error", "warning", "info"]
MtlsMode = Literal["STRICT", "PERMISSIVE", "DISABLE"]
Flavour = Literal["istio", "asm"]
GATEWAYS: tuple[Kind, ...] = (
    "gateway-injected", "gateway-classic", "gateway-api", "waypoint", "asm-gateway",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """The mesh configuration of one control plane; Istio's defaults where nothing was found.

    `default_metadata` is `defaultConfig.proxyMetadata`; `found` tells whether the ConfigMap was there.
    """

    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    root_namespace: str = ROOT_NAMESPACE
    default_config: Mapping[str, Any] = field(default_factory=dict)
    default_metadata: Mapping[str, str] = field(default_factory=dict)
    prometheus_merge: bool = True
    exclude_inbound_ports: tuple[str, ...] = ()
    found: bool = False


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A revision of a control plane. `version` is what its injector gives to new proxies, where told.

    `external`: no istiod Deployment was found behind it. `version_source` says what told the version.
    """

    revision: str
    version: IstioVersion
    tags: tuple[str, ...]
    namespace: str
    external: bool
    flavour: Flavour
    mesh: MeshSettings = field(default_factory=MeshSettings)
    version_source: str = ""
    native_sidecars: bool | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    custom_templates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Injection:
    """How a workload gets its proxy: `by` what, in plain words, and which revision or tag injects.

    `by`: `namespace-label`, `namespace-revision`, `pod-label`, `pod-revision`, `manual` (the template holds
    the proxy already), `controller` (a gateway that nothing injects), `none`.
    """

    by: Literal[
        "namespace-label", "namespace-revision", "pod-label", "pod-revision", "manual", "controller", "none"
    ]
    injected: bool
    revision: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port of the application; `protocol` is how Istio treats it, from the Services that select the pod."""

    number: int
    name: str
    protocol: Literal["http", "tcp", "auto"] = "auto"
    service_port_name: str = ""


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod and what it runs with now; `current` is False when its workload's template says otherwise."""

    ref: Ref
    phase: str
    version: IstioVersion
    secure_port: int | None
    secure_envoy_port: int | None
    hardened: bool
    native_sidecar: bool | None
    injected: bool
    annotations: Mapping[str, str]
    ip: str = ""
    current: bool = True
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mtls:
    """The effective mTLS mode: of the workload, and of single ports where they differ."""

    default: MtlsMode = "PERMISSIVE"
    ports: Mapping[int, MtlsMode] = field(default_factory=dict)
    source: Ref | None = None

    def of(self, port: int) -> MtlsMode:
        """The mode of a port."""
        return self.ports.get(port, self.default)


@dataclass(frozen=True, slots=True)
class ObservedWorkload:
    """A workload or gateway: what its template configures, and what its pods run.

    `ref` is the object to change (Deployment, StatefulSet, DaemonSet, Job, CronJob, or a bare Pod);
    `gateway_ref` is the Gateway or IstioGateway that owns it. `annotations`, `labels` are the template's.
    `proxy_metadata` is effective, after a restart: mesh default, ProxyConfig objects, annotation.
    `env` is what the process environment of istio-proxy will have of it, with the container's own variables.
    `secure_port` (merged) and `secure_envoy_port` are Istio's native listeners as configured;
    `listener_ports` are all that serve metrics over mTLS, by whichever mode; a proxy of an unknown version
    is taken to open what it is told to. `proxy_version_after` of an uninjected workload is what it would get.
    `announced_secure_port` is the `secure-port` annotation that pods carry or will carry.
    `hardened` is whether 15090 and 15020 are both closed; `half_hardened` when only one of them is.
    """

    ref: Ref
    kind: Kind
    namespace: str
    name: str
    service_account: str
    spiffe_id: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    injection: Injection
    gateway_ref: Ref | None = None
    flavour: Flavour = "istio"
    proxy_version_now: IstioVersion = UNKNOWN
    proxy_versions_now: tuple[IstioVersion, ...] = ()
    proxy_version_after: IstioVersion = UNKNOWN
    native_sidecar: bool | None = None
    revision: str = ""
    proxy_metadata: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    secure_port: int | None = None
    secure_envoy_port: int | None = None
    listener_ports: tuple[int, ...] = ()
    announced_secure_port: str | None = None
    announced_secure_envoy_port: str | None = None
    hardened: bool = False
    half_hardened: str = ""
    running: tuple[RunningPod, ...] = ()
    stale: tuple[str, ...] = ()
    mtls: Mtls = field(default_factory=Mtls)
    container_ports: tuple[ContainerPort, ...] = ()
    exclude_inbound: tuple[str, ...] = ()
    include_inbound: tuple[str, ...] | None = None
    intercepted: bool = True
    scraped_by: tuple[str, ...] = ()
    mode_now: Mode = "none"
    bootstrap_override: str = ""
    standalone: bool = False
    host_network: bool = False
    prometheus_annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_gateway(self) -> bool:
        """Whether it is a gateway or waypoint: nothing intercepts its traffic."""
        return self.kind in GATEWAYS

    @property
    def in_mesh(self) -> bool:
        """Whether it has (or will have) an Envoy of the mesh."""
        return self.kind not in ("ambient", "uninjected")


@dataclass(frozen=True, slots=True)
class ScrapedBy:
    """A scrape job (or monitor, or agent) and the workloads whose metrics it takes.

    `ref` is the object that declares it; `scraper` the object that runs it; `spiffe_id` the identity that it
    scrapes with, if any. `ports` are those of the matched workloads' pods; `ports_of` says which of whom.
    `over` is `mtls` when it presents a client certificate, `tls-unverified` for TLS without one.
    `ports_after` is the same once all pods are as their templates say (the same where there are no pods).
    `certain` is False when what it matches could not be told from the objects (then it may match nothing).
    """

    name: str
    ref: Ref
    job: str
    over: Over
    matches: tuple[Ref, ...]
    ports: tuple[int, ...]
    scraper: Ref | None = None
    spiffe_id: str | None = None
    certain: bool = True
    ports_of: Mapping[Ref, tuple[int, ...]] = field(default_factory=dict)
    ports_after: Mapping[Ref, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scraper:
    """Something that scrapes: a Prometheus Deployment, a Prometheus object of the Operator, an agent.

    `output_certs` is where its sidecar writes the certificate, `certs_mount` where its own container sees it.
    """

    ref: Ref
    kind: Literal["prometheus", "operator", "vmagent", "otel", "arms", "other"]
    namespace: str
    name: str
    service_account: str
    spiffe_id: str
    injected: bool
    config: Ref | None = None
    output_certs: str = ""
    certs_mount: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Pitfall:
    """Something that bites, in plain words, and what to do; `code` is documented in docs/pitfalls.md."""

    code: str
    severity: Severity
    ref: Ref | None
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Observation:
    """All that was found."""

    control_planes: tuple[ControlPlane, ...] = ()
    mesh: MeshSettings = field(default_factory=MeshSettings)
    workloads: tuple[ObservedWorkload, ...] = ()
    consumers: tuple[ScrapedBy, ...] = ()
    scrapers: tuple[Scraper, ...] = ()
    pitfalls: tuple[Pitfall, ...] = ()

    def workload(self, ref: Ref) -> ObservedWorkload | None:
        """The workload of this reference, or None; linear."""
        return next((each for each in self.workloads if each.ref == ref), None)
