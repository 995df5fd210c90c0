"""Plain data about a cluster: control planes, pods, scrapers, scrape jobs, pitfalls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.istio.versions import IstioVersion
from meshscrape.kube.objects import Ref
from meshscrape.observe.injection_template import InjectionTemplate

Kind = Literal[
    "sidecar", "gateway-injected", "gateway-classic", "gateway-api", "waypoint", "asm-gateway", "ambient",
    "uninjected",
]  # fmt: skip
Mode = Literal["none", "native", "bootstrap", "legacy", "mixed"]
Over = Literal["plaintext", "tls-unverified", "mtls", "ztunnel"]
# `critical`: pods cannot start.
Severity = Literal["critical", "error", "warning", "info"]
MtlsMode = Literal["STRICT", "PERMISSIVE", "DISABLE"]
Flavour = Literal["istio", "asm"]
OperatorVersion = tuple[int, int, int]
# `gmp` and `azure` are managed collectors, `vm-operator` is an object of the VictoriaMetrics operator.
ScraperKind = Literal[
    "prometheus", "operator", "vmagent", "vm-operator", "otel", "arms", "gmp", "azure", "other"
]
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
    ca_certificates: bool = False
    found: bool = False


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A revision of a control plane. `version` is the version that its injector gives to new proxies.

    `external`: no istiod Deployment was found behind it. `version_source` names the source of the version.
    `default_templates` are the injection templates of pods that name none, `override_template` is
    meshscrape's among the known ones.
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
    default_templates: tuple[str, ...] = ()
    override_template: InjectionTemplate | None = None


@dataclass(frozen=True, slots=True)
class Injection:
    """How a workload gets its proxy: `by` what, the reason in words, and which revision or tag injects.

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
class WorkloadPort:
    """A port of the application; `protocol` is how Istio treats it, from the Services that select the pod."""

    number: int
    name: str
    protocol: Literal["http", "tcp", "auto"] = "auto"
    service_port_name: str = ""


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod and the settings that it runs with; `current` is False when its workload's template differs."""

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
class ObservedJob:
    """A scrape job (of a configuration, a monitor or an agent) and the workloads that it scrapes.

    `ref` is the object that declares it, `scraper` the object that runs it, `spiffe_id` the identity that it
    scrapes with, if any. `over` is `mtls` when it presents a client certificate, `tls-unverified` for TLS
    without one, `ztunnel` when ztunnel carries it from one ambient pod to another. `ports_of` are the ports
    that it scrapes on the pods of each workload, and `labels_of` the label sets of those targets, one for
    each distinct target, as relabelling leaves them. `ports_after` and `labels_after` are the same once all
    pods are as their templates say (the same where there are no pods). `certain` is False when the objects do
    not tell what it matches; then it may match no workload here. `static`: it names targets by address.
    `verified`: a scrape proxy carries it, which verifies the SPIFFE ID of every target.
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
    static: bool = False
    verified: bool = False
    ports_of: Mapping[Ref, tuple[int, ...]] = field(default_factory=dict)
    ports_after: Mapping[Ref, tuple[int, ...]] = field(default_factory=dict)
    labels_of: Mapping[Ref, tuple[Mapping[str, str], ...]] = field(default_factory=dict)
    labels_after: Mapping[Ref, tuple[Mapping[str, str], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObservedScrapeProxy:
    """A scrape proxy: its address for scrapes (empty: none), and the namespaces that it knows (none: all)."""

    address: str
    namespaces: tuple[str, ...] = ()


NO_PROXY = ObservedScrapeProxy("")


@dataclass(frozen=True, slots=True)
class Scraper:
    """Something that scrapes: a Prometheus Deployment, a Prometheus object of the Operator, an agent.

    `product` is its display name. `output_certs` is where its sidecar writes the certificate, `certs_mount`
    where its own container sees it. `intercepts_inbound` and `intercepts_outbound` tell whether its sidecar
    intercepts its traffic; scrapes pass through the sidecar in the second case. `ambient`: it has no sidecar,
    and ztunnel carries its scrapes. `scrape_proxy` is the scrape proxy in its pod. `takes_monitors`: it
    reads all monitors of the Prometheus Operator, with or without a selector that matches. `stopped`: it has
    0 replicas, so it reads nothing until a user scales it up. `paused`: its Operator applies no change of it
    or of its monitors.
    """

    ref: Ref
    kind: ScraperKind
    namespace: str
    name: str
    service_account: str
    spiffe_id: str
    injected: bool
    config: Ref | None = None
    output_certs: str = ""
    certs_mount: str = ""
    version: str = ""
    product: str = ""
    intercepts_inbound: bool = False
    intercepts_outbound: bool = False
    ambient: bool = False
    takes_monitors: bool = False
    scrape_proxy: ObservedScrapeProxy = NO_PROXY
    stopped: bool = False
    paused: bool = False


@dataclass(frozen=True, slots=True)
class PlaintextComponent:
    """A component of Istio that serves its metrics in plain text, and has no secure port for them."""

    ref: Ref
    component: str
    port: int


@dataclass(frozen=True, slots=True)
class Pitfall:
    """A known configuration problem, and what to do about it; docs/pitfalls.md documents each `code`."""

    code: str
    severity: Severity
    ref: Ref | None
    text: str
    remedy: str
