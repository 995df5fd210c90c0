"""Workloads and gateways: what their templates configure, and what their pods run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.versions import UNKNOWN, IstioVersion, image_version
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.observe import gateways
from meshscrape.observe.application import application_ports
from meshscrape.observe.bootstrap import Override, override_of
from meshscrape.observe.cluster import GATEWAY_GROUP, Cluster
from meshscrape.observe.control import DEFAULT, Control, split_ports
from meshscrape.observe.injection import injection_of
from meshscrape.observe.kinds import (
    flavour_of,
    is_infrastructure,
    kind_of,
    owned_by_controller,
    service_account,
)
from meshscrape.observe.legacy import Legacy, LegacyPort
from meshscrape.observe.model import Injection, Kind, Mode, ObservedWorkload
from meshscrape.observe.policies import PeerAuthentications
from meshscrape.observe.proxies import (
    Proxy,
    config_annotation,
    injected_revision,
    is_injected,
    is_true,
    port_value,
    proxy_of,
    running_pod,
)
from meshscrape.observe.settings import ProxySettings
from meshscrape.observe.stale import compared

_OWNERS = ("Deployment", "StatefulSet", "DaemonSet", "CronJob", "Job", "ReplicaSet", "ReplicationController")


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


class Workloads:
    """Reads all workloads of a cluster."""

    def __init__(self, cluster: Cluster, control: Control) -> None:
        self.cluster = cluster
        self.control = control
        root = control.mesh.root_namespace
        self.authentications = PeerAuthentications(cluster, root)
        self.settings = ProxySettings(cluster, control)
        self.legacy = Legacy(cluster, root)

    def read(self) -> Iterator[Found]:
        """Every workload; gateways that nothing renders yet too. In the order of their references."""
        seen: set[Ref] = set()
        found = []
        for ref, manifest, template in self._templates():
            seen.add(ref)
            if not is_infrastructure(manifest, template):
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
                elif template and owned_by_controller(manifest):
                    # A controller that is not Kubernetes' own (an operator, istiod) made it.
                    seen.add(manifest.ref)
                    yield manifest.ref, manifest, template
        for owner, pods in self.cluster.pods.items():
            if owner not in seen:
                # Bare pods, and pods whose owner is not in the dump: the pod stands for its template.
                yield owner, inventory.get(owner), pods[0].data

    def _workload(self, ref: Ref, manifest: Manifest | None, template: Mapping[str, Any]) -> Found:
        control, namespace = self.control, ref.namespace
        # A pod without a status is a manifest that nobody has applied yet.
        pods = tuple(
            pod for pod in self.cluster.pods.get(ref, ()) if objects.dig(pod.data, "status", "phase")
        )
        proxy = proxy_of(template)
        standing_in = template.get("kind") == "Pod"
        space = self.cluster.namespace_labels(namespace)
        injection = injection_of(namespace, space, template, proxy)
        if standing_in and is_injected(objects.annotations(template)):
            injection = self._as_running(injection, namespace, space, template)
        gateway_ref = self._gateway_ref(manifest, template)
        kind = kind_of(manifest, template, proxy, injection, gateway_ref, space)
        if kind in ("gateway-classic", "gateway-api", "waypoint", "asm-gateway"):
            injection = Injection(
                "controller", True, reason="its Deployment holds the proxy; nothing injects it"
            )
        settings = self.settings.of(kind, ref, template, proxy, injection, gateway_ref)
        revision = self._revision(injection, template, proxy)
        running = tuple(running_pod(pod) for pod in pods)
        return self._assemble(
            Found(
                ObservedWorkload(
                    ref=ref,
                    kind=kind,
                    namespace=namespace,
                    name=ref.name,
                    service_account=service_account(template),
                    spiffe_id=self._spiffe_id(namespace, service_account(template), revision),
                    labels=objects.labels(template),
                    annotations=settings.annotations,
                    injection=injection,
                    gateway_ref=gateway_ref,
                    flavour=flavour_of(template, control.flavour),
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
        after, now = self._versions(draft, found.proxy)
        override = self._override(draft, after, template)
        legacy = self._legacy(draft)
        merged, envoy = (
            port_value(env.get(names.ENVOY_SECURE_MERGED_METRICS_PORT)),
            port_value(env.get(names.ENVOY_SECURE_METRICS_PORT)),
        )
        native = tuple(port for port in (merged, envoy) if port and after.at_least("1.31") is not False)
        overriding = tuple(each.port for each in override.listeners) if override else ()
        hardened, half = _hardened(draft, after)
        services = self._services(draft)
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
            announced_secure_envoy_port=annotations.get(names.SECURE_ENVOY_PORT),
            hardened=hardened,
            half_hardened=half,
            mtls=self.authentications.of(draft.namespace, draft.labels),
            container_ports=application_ports(template, services),
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

    def _override(
        self, workload: ObservedWorkload, after: IstioVersion, template: Mapping[str, Any]
    ) -> Override | None:
        annotations = workload.annotations if _honours_override(workload, after) else {}
        return override_of(workload.namespace, annotations, workload.env, template, self.cluster.inventory)

    def _services(self, workload: ObservedWorkload) -> tuple[Manifest, ...]:
        found = self.cluster.services.matching(workload.namespace, workload.labels)
        return tuple(sorted(found, key=lambda each: each.ref))

    def _legacy(self, workload: ObservedWorkload) -> tuple[LegacyPort, ...]:
        if workload.kind == "sidecar":
            return self.legacy.of_sidecar(workload.namespace, workload.labels)
        return self.legacy.of_gateway(workload.labels) if workload.is_gateway else ()

    def _announced(self, workload: ObservedWorkload, after: IstioVersion, merged: int | None) -> str | None:
        written = workload.annotations.get(names.SECURE_PORT)
        if written is not None:
            return str(written)
        injects = workload.kind in ("sidecar", "gateway-injected") and workload.injection.by != "manual"
        if injects and merged and after.at_least("1.31") is not False:
            return str(merged)
        return None

    def _excluded(self, workload: ObservedWorkload) -> tuple[str, ...]:
        written = workload.annotations.get(names.EXCLUDE_INBOUND)
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
            return self.control.version_of(DEFAULT), ()
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
        named = injected_revision(annotations) or objects.labels(template).get(names.REVISION, "")
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
        for gateway in self.cluster.inventory.of_kind("IstioGateway", names.ASM_GROUP):
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
        settings = self.settings.of_gateway(gateway, {}, {})
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
                    revision=objects.labels(gateway.data).get(names.REVISION, ""),
                    proxy_metadata=settings.metadata,
                    env=settings.env,
                ),
                gateway,
                {},
            )
        )


def _honours_override(workload: ObservedWorkload, after: IstioVersion) -> bool:
    """Whether the annotation bootstrapOverride does anything: only the injector reads it."""
    if workload.kind == "gateway-injected":
        return after.at_least("1.27") is not False
    return workload.kind == "sidecar"


def _hardened(workload: ObservedWorkload, after: IstioVersion) -> tuple[bool, str]:
    """Whether both plaintext ports are closed; else which one stays open although the other closes."""
    if not workload.in_mesh or after.at_least("1.22") is False:
        return False, ""
    merged = is_true(workload.env.get(names.METRICS_LOCALHOST_ACCESS_ONLY))
    stats = workload.proxy_metadata.get(names.METRICS_LOCALHOST_ACCESS_ONLY) == "true"
    if merged and stats:
        return True, ""
    return False, "15090" if merged else "15020" if stats else ""


def _include(annotations: Mapping[str, str]) -> tuple[str, ...] | None:
    written = annotations.get(names.INCLUDE_INBOUND)
    return None if written is None or str(written).strip() == "*" else split_ports(str(written))


def _is_captured(annotations: Mapping[str, str], include: tuple[str, ...] | None) -> bool:
    mode = annotations.get(names.INTERCEPTION_MODE)
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
