"""Compute the second stage of a workload: effective versions, metrics ports, policies and running pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.environment import is_true
from meshscrape.istio.names import ASM_GROUP
from meshscrape.istio.ports import read_port
from meshscrape.istio.versions import UNKNOWN, IstioVersion, image_version
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.peer_authentication import PeerAuthentications, peer_authentication
from meshscrape.kube.views.proxy import config_annotation
from meshscrape.observe import gateways
from meshscrape.observe.application import application_ports
from meshscrape.observe.bootstrap import KEY, Override, override_of, read_override
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.control import DEFAULT, Control, split_ports
from meshscrape.observe.injection_template import OVERRIDE_NAME, TEMPLATE, InjectionTemplate
from meshscrape.observe.legacy import Legacy, LegacyPort
from meshscrape.observe.model import Mode, RunningPod
from meshscrape.observe.proxies import running_pod
from meshscrape.observe.stale import compared_pods
from meshscrape.observe.workload import (
    DeclaredWorkload,
    Interception,
    MetricsPorts,
    ProxyVersions,
    ResolvedWorkload,
    fields_of,
)


class Resolver:
    """Resolve declared workloads against the policies and control planes of their cluster."""

    def __init__(self, cluster: Cluster, control: Control) -> None:
        self.cluster = cluster
        self.control = control
        root = control.mesh.root_namespace
        policies = cluster.inventory.of_kind("PeerAuthentication", names.ISTIO_SECURITY)
        self.authentications = PeerAuthentications(map(peer_authentication, policies), root)
        self.legacy = Legacy(cluster, root)

    def resolve(self, workload: DeclaredWorkload) -> ResolvedWorkload:
        """Return the workload with its versions, metrics ports, policies and running pods."""
        running = tuple(running_pod(pod) for pod in workload.pods)
        versions = self._versions(workload, running)
        template = self._template(workload)
        override = self._override(workload, versions.after, template)
        legacy = self._legacy(workload)
        metrics = metrics_ports(workload, versions.after, override, legacy, template)
        checksum = template.checksums[workload.namespace] if template else ""
        services = self._services(workload)
        return ResolvedWorkload(
            **fields_of(workload),
            versions=versions,
            metrics=metrics,
            interception=self._interception(workload),
            mtls=self.authentications.of(workload.namespace, workload.labels),
            container_ports=application_ports(workload.template, services),
            services=services,
            override=override,
            legacy=legacy,
            running=compared_pods(workload, versions, metrics, running, self.cluster.inventory, checksum),
            template_checksum=checksum,
        )

    def _versions(self, workload: DeclaredWorkload, running: tuple[RunningPod, ...]) -> ProxyVersions:
        if not workload.in_mesh:
            after = self.control.version_of(DEFAULT)
            return ProxyVersions(running=(), after=after, native_sidecar=None)
        given = self.control.given
        # The template holds the whole proxy, so its image is the version.
        whole = workload.proxy is not None and workload.proxy.complete
        written = image_version(workload.proxy.image) if workload.proxy and whole else UNKNOWN
        after = self.control.version_of(workload.revision)
        if workload.injection.by == "manual" or workload.kind == "gateway-classic":
            after = written if written.known else given
        elif not after.known:
            after = written
        versions = {pod.version if pod.version.known else given for pod in running if pod.injected}
        if not running and whole:
            versions = {written if written.known else given}
        return ProxyVersions(
            running=tuple(sorted(versions, key=lambda version: version.numbers or (0, 0, 0))),
            after=after,
            native_sidecar=self._native_sidecar(workload, running),
        )

    def _native_sidecar(self, workload: DeclaredWorkload, running: tuple[RunningPod, ...]) -> bool | None:
        if workload.kind != "sidecar":
            return None
        if workload.proxy is not None and workload.proxy.complete:
            return workload.proxy.native
        wish = workload.annotations.get(names.NATIVE_SIDECAR)
        if wish in ("true", "false") and workload.injection.injected:
            return wish == "true"
        native = {pod.native_sidecar for pod in running if pod.native_sidecar is not None}
        if len(native) == 1:
            return native.pop()
        plane = self.control.plane(workload.revision)
        return plane.native_sidecars if plane else None

    def _template(self, workload: DeclaredWorkload) -> InjectionTemplate | None:
        """Return the injection template that gives a new pod its bootstrap override; None without one."""
        if workload.kind != "sidecar" or workload.injection.by == "manual":
            return None
        plane = self.control.plane(workload.revision)
        template = plane.override_template if plane else None
        if plane is None or template is None or workload.namespace not in template.checksums:
            return None
        wanted = workload.annotations.get(names.TEMPLATES)
        chosen = plane.default_templates if wanted is None else split_ports(wanted)
        own = names.BOOTSTRAP_OVERRIDE in workload.annotations
        native = any(
            (workload.proxy_metadata.get(key) or "0") != "0"
            for key in (names.ENVOY_SECURE_MERGED_METRICS_PORT, names.ENVOY_SECURE_METRICS_PORT)
        )
        return None if own or native or TEMPLATE not in chosen else template

    def _override(
        self, workload: DeclaredWorkload, after: IstioVersion, template: InjectionTemplate | None
    ) -> Override | None:
        annotations = workload.annotations if _honours_override(workload, after) else {}
        inventory = self.cluster.inventory
        templates = (workload.template, self._volumes_of_gateway(workload))
        overrides = (
            override_of(workload.namespace, annotations, workload.env, template, inventory)
            for template in templates
        )
        found = next((override for override in overrides if override), None)
        if found is None and template is not None:
            return read_override(Ref("", "ConfigMap", workload.namespace, OVERRIDE_NAME), KEY, inventory)
        return found

    def _volumes_of_gateway(self, workload: DeclaredWorkload) -> Mapping[str, Any]:
        """Return the pod template that a Gateway gives to its Deployment, which may not have it yet."""
        gateway = self.cluster.inventory.get(workload.gateway_ref) if workload.gateway_ref else None
        if gateway is None:
            return {}
        if gateway.ref.group == ASM_GROUP:
            return gateways.istio_gateway_volumes(gateway)
        overlay = gateways.overlay_of(gateway, self.cluster, self.control.mesh.root_namespace)
        return objects.as_mapping(objects.dig(overlay.deployment, "spec", "template"))

    def _legacy(self, workload: DeclaredWorkload) -> tuple[LegacyPort, ...]:
        if workload.kind == "sidecar":
            return self.legacy.of_sidecar(workload.namespace, workload.labels)
        return self.legacy.of_gateway(workload.labels) if workload.is_gateway else ()

    def _services(self, workload: DeclaredWorkload) -> tuple[Manifest, ...]:
        services = self.cluster.services.matching(workload.namespace, workload.labels)
        return tuple(sorted(services, key=lambda service: service.ref))

    def _interception(self, workload: DeclaredWorkload) -> Interception:
        annotations = workload.annotations
        include = _include(annotations)
        exclude = annotations.get(names.EXCLUDE_INBOUND)
        plane = self.control.plane(workload.revision)
        mesh_wide = plane.mesh.exclude_inbound_ports if plane else ()
        return Interception(
            captured=workload.in_mesh and not workload.is_gateway and _is_captured(annotations, include),
            include=include,
            exclude=mesh_wide if exclude is None else split_ports(str(exclude)),
        )


def metrics_ports(
    workload: DeclaredWorkload,
    after: IstioVersion,
    override: Override | None,
    legacy: tuple[LegacyPort, ...],
    template: InjectionTemplate | None = None,
) -> MetricsPorts:
    """Return the metrics ports of a workload once its proxy has the version `after`."""
    if not workload.in_mesh or workload.envoy_missing:
        return MetricsPorts(
            mode="none",
            merged=None,
            envoy=None,
            listening=(),
            announced=workload.annotations.get(names.SECURE_PORT),
            announced_envoy=workload.annotations.get(names.SECURE_ENVOY_PORT),
            hardened=False,
            half_hardened="",
        )
    merged = read_port(workload.env.get(names.ENVOY_SECURE_MERGED_METRICS_PORT))
    envoy = read_port(workload.env.get(names.ENVOY_SECURE_METRICS_PORT))
    native = tuple(port for port in (merged, envoy) if port and after.at_least("1.31") is not False)
    overriding = tuple(listener.port for listener in override.listeners) if override else ()
    hardened, half_hardened = _hardened(workload, after)
    return MetricsPorts(
        mode=_mode(bool(native), bool(overriding), bool(legacy)),
        merged=merged,
        envoy=envoy,
        listening=tuple(sorted({*native, *overriding, *(port.port for port in legacy)})),
        announced=_announced(workload, after, merged, template),
        announced_envoy=workload.annotations.get(names.SECURE_ENVOY_PORT)
        or (str(template.envoy_port) if template and template.envoy_port else None),
        hardened=hardened,
        half_hardened=half_hardened,
    )


def _announced(
    workload: DeclaredWorkload, after: IstioVersion, merged: int | None, template: InjectionTemplate | None
) -> str | None:
    written = workload.annotations.get(names.SECURE_PORT)
    if written is not None:
        return str(written)
    if template is not None and template.merged_port:
        return str(template.merged_port)
    injects = workload.kind in ("sidecar", "gateway-injected") and workload.injection.by != "manual"
    return str(merged) if injects and merged and after.at_least("1.31") is not False else None


def _honours_override(workload: DeclaredWorkload, after: IstioVersion) -> bool:
    """Return whether the annotation bootstrapOverride has an effect: only the injector reads it."""
    if workload.kind == "gateway-injected":
        return after.at_least("1.27") is not False
    return workload.kind == "sidecar"


def _hardened(workload: DeclaredWorkload, after: IstioVersion) -> tuple[bool, str]:
    """Return whether both plaintext ports are closed; else the one that stays open alone, if any."""
    if after.at_least("1.22") is False:
        return False, ""
    merged = is_true(workload.env.get(names.METRICS_LOCALHOST_ACCESS_ONLY))
    # Istio's bootstrap template accepts only this spelling.
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
    modes: list[Mode] = []
    if native:
        modes.append("native")
    if bootstrap:
        modes.append("bootstrap")
    if legacy:
        modes.append("legacy")
    return modes[0] if len(modes) == 1 else "mixed" if modes else "none"
