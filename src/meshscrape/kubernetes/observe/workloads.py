"""Workloads and gateways: what their templates configure, and what their pods run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meshscrape.istio.annotations import (
    EXCLUDE_INBOUND,
    INCLUDE_INBOUND,
    SECURE_ENVOY_PORT,
    SECURE_PORT,
)
from meshscrape.kubernetes import objects
from meshscrape.kubernetes.objects import Manifest, Ref
from meshscrape.kubernetes.observe import gateways
from meshscrape.kubernetes.observe.bootstrap import Override, override_of
from meshscrape.kubernetes.observe.cluster import ASM, GATEWAY_GROUP, Cluster
from meshscrape.kubernetes.observe.control import Control, is_asm_container, is_istiod, split_ports
from meshscrape.kubernetes.observe.injection import injection_of
from meshscrape.kubernetes.observe.legacy import Legacy, LegacyPort
from meshscrape.kubernetes.observe.model import (
    ContainerPort,
    Flavour,
    Injection,
    Kind,
    Mode,
    ObservedWorkload,
)
from meshscrape.kubernetes.observe.policies import PeerAuthentications, ProxyConfigs
from meshscrape.kubernetes.observe.proxies import (
    ENVOY,
    LOCALHOST_ONLY,
    MERGED,
    Proxy,
    annotation_metadata,
    config_annotation,
    injected_revision,
    is_injected,
    is_true,
    metadata_of,
    port_value,
    proxy_of,
    running_pod,
    uses_gateway_template,
)
from meshscrape.kubernetes.observe.stale import compared
from meshscrape.kubernetes.versions import UNKNOWN, IstioVersion, image_version

DATAPLANE_MODE = "istio.io/dataplane-mode"
_OWNERS = ("Deployment", "StatefulSet", "DaemonSet", "CronJob", "Job", "ReplicaSet", "ReplicationController")
_HTTP = ("http", "http2", "grpc", "grpc-web")


@dataclass(frozen=True, slots=True)
class Found:
    """A workload with what traps need beside it: its object and template, override, legacy ports, proxy."""

    workload: ObservedWorkload
    manifest: Manifest | None
    template: Mapping[str, Any]
    pods: tuple[Manifest, ...] = ()
    proxy: Proxy | None = None
    override: Override | None = None
    legacy: tuple[LegacyPort, ...] = ()
    services: tuple[Manifest, ...] = ()


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the agent's process environment and its ProxyConfig say."""

    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


class Workloads:
    """Reads all workloads of a cluster."""

    def __init__(self, cluster: Cluster, control: Control) -> None:
        self.cluster = cluster
        self.control = control
        root = control.mesh.root_namespace
        self.authentications = PeerAuthentications(cluster, root)
        self.configs = ProxyConfigs(cluster, root)
        self.legacy = Legacy(cluster, root)

    def read(self) -> Iterator[Found]:
        """Every workload; gateways that nothing renders yet too. In the order of their references."""
        seen: set[Ref] = set()
        found = []
        for ref, manifest, template in self._templates():
            seen.add(ref)
            if not _is_infrastructure(manifest, template):
                found.append(self._workload(ref, manifest, template))
        found += self._unrendered({each.workload.gateway_ref for each in found})
        return iter(sorted(found, key=lambda each: each.workload.ref))

    def _templates(self) -> Iterator[tuple[Ref, Manifest | None, Mapping[str, Any]]]:
        inventory = self.cluster.inventory
        seen = set()
        for kind in _OWNERS:
            for manifest in inventory.of_kind(kind):
                template = objects.pod_template(manifest.data)
                if template and not objects.dig(manifest.data, "metadata", "ownerReferences"):
                    seen.add(manifest.ref)
                    yield manifest.ref, manifest, template
                elif template and _owned_by_controller(manifest):
                    # A controller that is not Kubernetes' own (an operator, istiod) made it.
                    seen.add(manifest.ref)
                    yield manifest.ref, manifest, template
        for owner, pods in self.cluster.pods.items():
            if owner not in seen:
                # Bare pods, and pods whose owner is not in the dump: the pod stands for its template.
                yield owner, inventory.get(owner), pods[0].data

    def _workload(self, ref: Ref, manifest: Manifest | None, template: Mapping[str, Any]) -> Found:
        control, namespace = self.control, ref.namespace
        pods = tuple(self.cluster.pods.get(ref, ()))
        proxy = proxy_of(template)
        standing_in = manifest is None or manifest.ref.kind == "Pod"
        space = self.cluster.namespace_labels(namespace)
        injection = injection_of(namespace, space, template, proxy)
        if standing_in and is_injected(objects.annotations(template)):
            injection = self._as_running(injection, namespace, space, template)
        gateway_ref = self._gateway_ref(manifest, template)
        kind = _kind(manifest, template, proxy, injection, gateway_ref, space)
        if kind in ("gateway-classic", "gateway-api", "waypoint", "asm-gateway"):
            injection = Injection(
                "controller", True, reason="its Deployment holds the proxy; nothing injects it"
            )
        settings = self._settings(kind, ref, template, proxy, injection, gateway_ref)
        revision = self._revision(injection, template, proxy)
        running = tuple(running_pod(pod) for pod in pods)
        return self._assemble(
            Found(
                ObservedWorkload(
                    ref=ref,
                    kind=kind,
                    namespace=namespace,
                    name=ref.name,
                    service_account=_service_account(template),
                    spiffe_id=self._spiffe_id(namespace, _service_account(template), revision),
                    labels=objects.labels(template),
                    annotations=settings.annotations,
                    injection=injection,
                    gateway_ref=gateway_ref,
                    flavour=_flavour(template, control.flavour),
                    revision=revision,
                    proxy_metadata=settings.metadata,
                    env=settings.env,
                    running=running,
                    standalone=ref.kind in ("Pod", "Job"),
                    host_network=objects.dig(template, "spec", "hostNetwork") is True,
                ),
                manifest,
                template,
                pods,
                proxy,
            )
        )

    def _as_running(
        self, injection: Injection, namespace: str, space: Mapping[str, str], template: Mapping[str, Any]
    ) -> Injection:
        """A pod that stands for its template holds what the webhook gave it; was it the webhook?"""
        again = injection_of(namespace, space, template, None)
        if again.injected:
            return again
        return Injection(
            "manual", True, injected_revision(objects.annotations(template)), "the pod has been injected"
        )

    def _assemble(self, found: Found) -> Found:
        """Fill in what depends on the rest."""
        draft, template = found.workload, found.template
        annotations, env = draft.annotations, draft.env
        override = override_of(
            draft.namespace,
            annotations if _honours_override(draft) else {},
            env,
            template,
            self.cluster.inventory,
        )
        legacy = self._legacy(draft)
        after, now = self._versions(draft, found.proxy)
        merged, envoy = port_value(env.get(MERGED)), port_value(env.get(ENVOY))
        native = tuple(port for port in (merged, envoy) if port and after.at_least("1.31") is not False)
        overriding = tuple(each.port for each in override.listeners) if override else ()
        hardened, half = _hardened(draft, after)
        services = tuple(
            sorted(self.cluster.services.matching(draft.namespace, draft.labels), key=lambda each: each.ref)
        )
        include = _include(annotations)
        workload = replace(
            draft,
            proxy_version_after=after,
            proxy_version_now=now[0] if now else UNKNOWN,
            proxy_versions_now=now,
            native_sidecar=self._native_sidecar(draft, found.proxy),
            secure_port=merged if draft.in_mesh else None,
            secure_envoy_port=envoy if draft.in_mesh else None,
            listener_ports=tuple(sorted({*native, *overriding, *(each.port for each in legacy)}))
            if draft.in_mesh
            else (),
            announced_secure_port=self._announced(draft, after, merged),
            announced_secure_envoy_port=annotations.get(SECURE_ENVOY_PORT),
            hardened=hardened,
            half_hardened=half,
            mtls=self.authentications.of(draft.namespace, draft.labels),
            container_ports=_container_ports(template, services),
            exclude_inbound=self._excluded(draft),
            include_inbound=include,
            intercepted=draft.in_mesh and not draft.is_gateway and _is_captured(annotations, include),
            mode_now=_mode(bool(native), bool(overriding), bool(legacy)) if draft.in_mesh else "none",
            bootstrap_override=override.config_map.name if override else "",
            prometheus_annotations={
                key: str(value) for key, value in annotations.items() if key.startswith("prometheus.io/")
            },
        )
        workload = compared(
            workload, found.pods, template, found.manifest is not None, self.cluster.inventory
        )
        return Found(workload, found.manifest, template, found.pods, found.proxy, override, legacy, services)

    def _legacy(self, workload: ObservedWorkload) -> tuple[LegacyPort, ...]:
        if workload.kind == "sidecar":
            return self.legacy.of_sidecar(workload.namespace, workload.labels)
        return self.legacy.of_gateway(workload.labels) if workload.is_gateway else ()

    def _announced(self, workload: ObservedWorkload, after: IstioVersion, merged: int | None) -> str | None:
        written = workload.annotations.get(SECURE_PORT)
        if written is not None:
            return str(written)
        injects = workload.kind in ("sidecar", "gateway-injected") and workload.injection.by != "manual"
        if injects and merged and after.at_least("1.31") is not False:
            return str(merged)
        return None

    def _excluded(self, workload: ObservedWorkload) -> tuple[str, ...]:
        written = workload.annotations.get(EXCLUDE_INBOUND)
        if written is not None:
            return split_ports(str(written))
        plane = self.control.plane(workload.revision)
        return plane.mesh.exclude_inbound_ports if plane else ()

    def _native_sidecar(self, workload: ObservedWorkload, proxy: Proxy | None) -> bool | None:
        if workload.kind != "sidecar":
            return None
        if proxy is not None and proxy.complete:
            return proxy.native
        wish = workload.annotations.get("sidecar.istio.io/nativeSidecar")
        if wish in ("true", "false") and workload.injection.injected:
            return wish == "true"
        running = {pod.native_sidecar for pod in workload.running if pod.native_sidecar is not None}
        if len(running) == 1:
            return running.pop()
        plane = self.control.plane(workload.revision)
        return plane.native_sidecars if plane else None

    def _versions(
        self, workload: ObservedWorkload, proxy: Proxy | None
    ) -> tuple[IstioVersion, tuple[IstioVersion, ...]]:
        if not workload.in_mesh:
            return UNKNOWN, ()
        given = self.control.given
        own = image_version(proxy.image) if proxy is not None and proxy.complete else UNKNOWN
        after = self.control.version_of(workload.revision)
        if workload.injection.by == "manual" or workload.kind == "gateway-classic":
            after = own if own.known else given
        elif not after.known:
            after = own
        versions = {pod.version if pod.version.known else given for pod in workload.running if pod.injected}
        if not workload.running and own.known:
            versions = {own}
        elif not workload.running and proxy is not None and proxy.complete:
            versions = {given}
        lowest = sorted(versions, key=lambda each: each.numbers or (0, 0, 0))
        return after, tuple(lowest)

    def _revision(self, injection: Injection, template: Any, proxy: Proxy | None) -> str:
        if injection.revision:
            return injection.revision
        if not injection.injected:
            return ""
        annotations = objects.annotations(template)
        named = injected_revision(annotations) or objects.labels(template).get("istio.io/rev", "")
        return named or (proxy.env.get("ISTIO_META_REVISION", "") if proxy else "")

    def _spiffe_id(self, namespace: str, account: str, revision: str) -> str:
        plane = self.control.plane(revision)
        trust_domain = (plane.mesh if plane else self.control.mesh).trust_domain
        return f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}"

    def _gateway_ref(self, manifest: Manifest | None, template: Any) -> Ref | None:
        if manifest is None:
            return None
        if ref := gateways.gateway_of(manifest, template):
            return ref
        return gateways.istio_gateway_of(manifest, self.cluster.inventory)

    def _settings(
        self,
        kind: Kind,
        ref: Ref,
        template: Mapping[str, Any],
        proxy: Proxy | None,
        injection: Injection,
        gateway_ref: Ref | None,
    ) -> _Settings:
        annotations = objects.annotations(template)
        own_env = proxy.env if proxy else {}
        gateway = self.cluster.inventory.get(gateway_ref) if gateway_ref else None
        if gateway is not None and gateway_ref is not None:
            return self._gateway_settings(gateway, annotations, own_env)
        if kind in ("ambient", "uninjected"):
            return _Settings(own_env, annotation_metadata(annotations), annotations)
        if proxy is not None and proxy.complete:
            metadata = _written_config(own_env) | annotation_metadata(annotations)
            if kind == "gateway-classic":
                metadata = {**self.control.mesh.default_metadata, **metadata}
            return _Settings(own_env, metadata, annotations)
        plane = self.control.plane(injection.revision)
        mesh = plane.mesh if plane else self.control.mesh
        base = {**mesh.default_metadata, **self.configs.wide(ref.namespace)}
        selected = self.configs.selecting(ref.namespace, objects.labels(template))
        written = annotation_metadata(annotations)
        # For the process environment an object that selects the pod wins; for the bootstrap the annotation.
        return _Settings(
            {**base, **written, **selected, **own_env}, {**base, **selected, **written}, annotations
        )

    def _gateway_settings(
        self, gateway: Manifest, annotations: Mapping[str, str], own_env: Mapping[str, str]
    ) -> _Settings:
        if gateway.ref.group == ASM:
            pod = {**annotations, **objects.as_mapping(objects.dig(gateway.data, "spec", "podAnnotations"))}
            env = gateways.istio_gateway_env(gateway)
            return _Settings(env, {**_written_config(own_env), **annotation_metadata(pod)}, pod)
        mesh = self.control.mesh
        overlay = gateways.overlay_of(gateway, self.cluster, mesh.root_namespace)
        base = {
            **mesh.default_metadata,
            **self.configs.wide(gateway.ref.namespace),
            **self.configs.selecting(gateway.ref.namespace, {gateways.GATEWAY_NAME: gateway.ref.name}),
        }
        pod = {**gateways.gateway_annotations(gateway), **overlay.annotations}
        return _Settings({**base, **overlay.env}, {**base, **annotation_metadata(pod)}, pod)

    def _unrendered(self, rendered: set[Ref | None]) -> Iterator[Found]:
        """Gateways whose Deployment is not in the dump: the Gateway stands for it."""
        for gateway in self.cluster.inventory.of_kind("Gateway", GATEWAY_GROUP):
            name = str(objects.dig(gateway.data, "spec", "gatewayClassName", default=""))
            kind = gateways.class_kind(name, self.cluster.inventory)
            if (
                gateway.ref not in rendered
                and kind in ("gateway-api", "waypoint")
                and gateways.is_managed(gateway)
            ):
                yield self._gateway(gateway, "gateway-api" if kind == "gateway-api" else "waypoint")
        for gateway in self.cluster.inventory.of_kind("IstioGateway", ASM):
            if gateway.ref not in rendered:
                yield self._gateway(gateway, "asm-gateway")

    def _gateway(self, gateway: Manifest, kind: Kind) -> Found:
        deployment = gateways.managed_deployment(gateway)
        account = deployment.name
        labels = {gateways.GATEWAY_NAME: gateway.ref.name}
        if kind == "asm-gateway":
            account = f"istio-{gateway.ref.name}"
            labels = {
                str(k): str(v)
                for k, v in objects.as_mapping(objects.dig(gateway.data, "spec", "podLabels")).items()
            }
        settings = self._gateway_settings(gateway, {}, {})
        return self._assemble(
            Found(
                ObservedWorkload(
                    ref=gateway.ref,
                    kind=kind,
                    namespace=gateway.ref.namespace,
                    name=gateway.ref.name,
                    service_account=account,
                    spiffe_id=self._spiffe_id(gateway.ref.namespace, account, ""),
                    labels=labels,
                    annotations=settings.annotations,
                    injection=Injection("controller", True, reason="its controller renders the proxy"),
                    gateway_ref=gateway.ref,
                    flavour="asm" if kind == "asm-gateway" else self.control.flavour,
                    revision=objects.labels(gateway.data).get("istio.io/rev", ""),
                    proxy_metadata=settings.metadata,
                    env=settings.env,
                ),
                gateway,
                {},
            )
        )


def _owned_by_controller(manifest: Manifest) -> bool:
    owner = next(
        (each for each in objects.as_list(objects.dig(manifest.data, "metadata", "ownerReferences"))), None
    )
    return objects.dig(owner, "kind") not in ("Deployment", "CronJob", "StatefulSet", "DaemonSet", "Rollout")


def _is_infrastructure(manifest: Manifest | None, template: Mapping[str, Any]) -> bool:
    """Istio's own parts, which are no workloads of the mesh: istiod, ztunnel, the CNI agent, agentgateway."""
    if manifest is not None and is_istiod(manifest):
        return True
    if objects.labels(template).get("app") in ("ztunnel", "istiod") or is_agentgateway(template):
        return True
    return objects.labels(template).get("k8s-app") == "istio-cni-node"


def is_agentgateway(template: Any) -> bool:
    """Whether a managed gateway runs agentgateway, which has no Envoy."""
    proxy = proxy_of(template)
    return proxy is not None and gateways.AGENTGATEWAY in proxy.image.rpartition("/")[2]


def _kind(
    manifest: Manifest | None,
    template: Mapping[str, Any],
    proxy: Proxy | None,
    injection: Injection,
    gateway_ref: Ref | None,
    space: Mapping[str, str],
) -> Kind:
    labels, annotations = objects.labels(template), objects.annotations(template)
    role = proxy.role if proxy else ""
    if gateway_ref is not None and gateway_ref.kind == "IstioGateway":
        return "asm-gateway"
    managed = {**(objects.labels(manifest.data) if manifest else {}), **labels}.get(gateways.MANAGED, "")
    if managed or gateway_ref is not None:
        return "waypoint" if role == "waypoint" or "mesh-controller" in managed else "gateway-api"
    if role == "router" and proxy is not None and proxy.complete and not is_injected(annotations):
        return "gateway-classic"
    if role == "router" or (injection.injected and uses_gateway_template(annotations)):
        return "gateway-injected"
    if injection.injected:
        return "sidecar"
    if labels.get(DATAPLANE_MODE, space.get(DATAPLANE_MODE)) == "ambient":
        return "ambient"
    return "uninjected"


def _service_account(template: Any) -> str:
    spec = objects.dig(template, "spec")
    return str(objects.dig(spec, "serviceAccountName") or objects.dig(spec, "serviceAccount") or "default")


def _flavour(template: Any, flavour: Flavour) -> Flavour:
    return "asm" if any(is_asm_container(each) for each in objects.containers(template)) else flavour


def _written_config(env: Mapping[str, str]) -> dict[str, str]:
    """The proxyMetadata in PROXY_CONFIG, which the injection template wrote."""
    try:
        return metadata_of(objects.as_mapping(json.loads(env.get("PROXY_CONFIG", "{}"))))
    except ValueError:
        return {}


def _honours_override(workload: ObservedWorkload) -> bool:
    """Whether the annotation bootstrapOverride does anything: only the injector reads it."""
    if workload.kind == "sidecar":
        return True
    return workload.kind == "gateway-injected"


def _hardened(workload: ObservedWorkload, after: IstioVersion) -> tuple[bool, str]:
    """Whether both plaintext ports are closed; else which one stays open although the other closes."""
    if not workload.in_mesh or after.at_least("1.22") is False:
        return False, ""
    merged = is_true(workload.env.get(LOCALHOST_ONLY))
    stats = workload.proxy_metadata.get(LOCALHOST_ONLY) == "true"
    if merged and stats:
        return True, ""
    return False, "15090" if merged else "15020" if stats else ""


def _include(annotations: Mapping[str, str]) -> tuple[str, ...] | None:
    written = annotations.get(INCLUDE_INBOUND)
    return None if written is None or str(written).strip() == "*" else split_ports(str(written))


def _is_captured(annotations: Mapping[str, str], include: tuple[str, ...] | None) -> bool:
    mode = annotations.get("sidecar.istio.io/interceptionMode")
    mode = mode or config_annotation(annotations)[0].get("interceptionMode")
    return mode != "NONE" and include != ()


def _mode(native: bool, bootstrap: bool, legacy: bool) -> Mode:
    found: list[Mode] = []
    if native:
        found.append("native")
    if bootstrap:
        found.append("bootstrap")
    if legacy:
        found.append("legacy")
    return found[0] if len(found) == 1 else "mixed" if found else "none"


def _container_ports(template: Any, services: tuple[Manifest, ...]) -> tuple[ContainerPort, ...]:
    found: dict[int, ContainerPort] = {}
    named: dict[str, int] = {}
    for container in objects.containers(template):
        if container.get("name") == "istio-proxy":
            continue
        for port in objects.as_list(container.get("ports")):
            number = objects.dig(port, "containerPort")
            if isinstance(number, int) and objects.dig(port, "protocol", default="TCP") == "TCP":
                name = str(objects.dig(port, "name", default=""))
                found.setdefault(number, ContainerPort(number, name))
                named.setdefault(name, number)
    for service in services:
        for port in objects.as_list(objects.dig(service.data, "spec", "ports")):
            target = objects.dig(port, "targetPort", default=objects.dig(port, "port"))
            number = target if isinstance(target, int) else named.get(str(target))
            if number is not None:
                found[number] = _service_port(number, found.get(number), port)
    return tuple(found[number] for number in sorted(found))


def _service_port(number: int, known: ContainerPort | None, port: Any) -> ContainerPort:
    name = str(objects.dig(port, "name", default=""))
    spelled = str(objects.dig(port, "appProtocol") or name.partition("-")[0] or "").lower()
    protocol = "auto" if not spelled else "tcp"
    if spelled.removeprefix("kubernetes.io/") in (*_HTTP, "h2c", "ws"):
        protocol = "http"
    elif not objects.dig(port, "appProtocol") and spelled not in _KNOWN_PREFIXES:
        protocol = "auto"
    known_name = known.name if known else ""
    if protocol == "http":
        return ContainerPort(number, known_name, "http", name)
    return ContainerPort(number, known_name, "tcp" if protocol == "tcp" else "auto", name)


_KNOWN_PREFIXES = (*_HTTP, "tcp", "tls", "https", "mongo", "mysql", "redis", "udp")
