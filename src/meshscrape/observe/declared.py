"""Read the first stage of a workload: what its objects declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio.names import ASM_GROUP, REVISION
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.views.proxy import Proxy, injected_revision, is_injected, proxy_of
from meshscrape.observe import gateways
from meshscrape.observe.cluster import GATEWAY_GROUP, Cluster, owners
from meshscrape.observe.control import Control
from meshscrape.observe.injection import injection_of
from meshscrape.observe.kinds import (
    flavour_of,
    is_infrastructure,
    kind_of,
    owned_by_controller,
    service_account,
)
from meshscrape.observe.model import Injection, Kind
from meshscrape.observe.refusals import refusals_of
from meshscrape.observe.settings import ProxySettings
from meshscrape.observe.workload import DeclaredWorkload

_OWNERS = ("Deployment", "StatefulSet", "DaemonSet", "CronJob", "Job", "ReplicaSet", "ReplicationController")


class Declarations:
    """The objects of a cluster, from which the declared workloads are read."""

    def __init__(self, cluster: Cluster, control: Control) -> None:
        self.cluster = cluster
        self.control = control
        self.settings = ProxySettings(cluster, control)

    def read(self) -> list[DeclaredWorkload]:
        """Return every workload, and every Gateway that no controller has rendered yet, by reference."""
        workloads = [
            self._workload(ref, manifest, template)
            for ref, manifest, template in self._templates()
            if not is_infrastructure(manifest, template)
        ]
        workloads += self._unrendered({workload.gateway_ref for workload in workloads})
        return sorted(workloads, key=lambda workload: workload.ref)

    def _templates(self) -> Iterator[tuple[Ref, Manifest | None, Mapping[str, Any]]]:
        inventory = self.cluster.inventory
        owners = set()
        for kind in _OWNERS:
            for manifest in inventory.of_kind(kind):
                template = objects.pod_template(manifest.data)
                owned = objects.dig(manifest.data, "metadata", "ownerReferences")
                # A ReplicaSet of a Deployment is not a workload of its own. An object that an operator or
                # istiod made is.
                if template and (not owned or owned_by_controller(manifest)):
                    owners.add(manifest.ref)
                    yield manifest.ref, manifest, template
        for owner, pods in self.cluster.pods.items():
            if owner not in owners:
                # For bare pods, and for pods whose owner is not in the dump, the pod stands for its template.
                yield owner, inventory.get(owner), pods[0].data

    def _workload(self, ref: Ref, manifest: Manifest | None, template: Mapping[str, Any]) -> DeclaredWorkload:
        proxy = proxy_of(template)
        injection = self._injection(ref.namespace, template, proxy)
        gateway_ref = self._gateway_ref(manifest, template)
        space = self.cluster.namespace_labels(ref.namespace)
        kind = kind_of(manifest, template, proxy, injection, gateway_ref, space)
        if kind in ("gateway-classic", "gateway-api", "waypoint", "asm-gateway"):
            injection = Injection(
                "controller", True, reason="its Deployment holds the proxy; nothing injects it"
            )
        settings = self.settings.of(kind, ref, template, proxy, injection, gateway_ref)
        revision = _revision(injection, template, proxy)
        account = service_account(template)
        return DeclaredWorkload(
            ref=ref,
            kind=kind,
            manifest=manifest,
            template=template,
            # A pod without a status is a manifest that was not applied yet.
            pods=tuple(
                pod for pod in self.cluster.pods.get(ref, ()) if objects.dig(pod.data, "status", "phase")
            ),
            proxy=proxy,
            service_account=account,
            spiffe_id=self._spiffe_id(ref.namespace, account, revision),
            labels=objects.labels(template),
            annotations=settings.annotations,
            injection=injection,
            gateway_ref=gateway_ref,
            flavour=flavour_of(template, self.control.flavour),
            revision=revision,
            env=settings.env,
            proxy_metadata=settings.metadata,
            host_network=objects.dig(template, "spec", "hostNetwork") is True,
            owned_by=_owned_by(manifest),
            refusals=refusals_of(settings.annotations),
        )

    def _injection(self, namespace: str, template: Mapping[str, Any], proxy: Proxy | None) -> Injection:
        space = self.cluster.namespace_labels(namespace)
        if template.get("kind") != "Pod" or not is_injected(objects.annotations(template)):
            return injection_of(namespace, space, template, proxy)
        # A pod that stands for its template already has what the injector added. Check whether the webhook
        # would add it again.
        again = injection_of(namespace, space, template, None)
        if again.injected:
            return again
        revision = injected_revision(objects.annotations(template))
        return Injection("manual", True, revision, "the pod has been injected")

    def _spiffe_id(self, namespace: str, account: str, revision: str) -> str:
        plane = self.control.plane(revision)
        trust_domain = (plane.mesh if plane else self.control.mesh).trust_domain
        return f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}"

    def _gateway_ref(self, manifest: Manifest | None, template: Any) -> Ref | None:
        if manifest is None:
            return None
        return gateways.gateway_of(manifest, template) or gateways.istio_gateway_of(
            manifest, self.cluster.inventory
        )

    # A Gateway that no controller has rendered yet stands for its Deployment.

    def _unrendered(self, rendered: set[Ref | None]) -> Iterator[DeclaredWorkload]:
        for gateway in self.cluster.inventory.of_kind("Gateway", GATEWAY_GROUP):
            name = str(objects.dig(gateway.data, "spec", "gatewayClassName", default=""))
            kind = gateways.class_kind(name, self.cluster.inventory)
            if (
                gateway.ref not in rendered
                and kind in ("gateway-api", "waypoint")
                and gateways.is_managed(gateway)
            ):
                yield self._gateway(gateway, "gateway-api" if kind == "gateway-api" else "waypoint")
        for gateway in self.cluster.inventory.of_kind("IstioGateway", ASM_GROUP):
            if gateway.ref not in rendered:
                yield self._gateway(gateway, "asm-gateway")

    def _gateway(self, gateway: Manifest, kind: Kind) -> DeclaredWorkload:
        account = gateways.managed_deployment(gateway).name
        labels = {gateways.GATEWAY_NAME: gateway.ref.name}
        if kind == "asm-gateway":
            account = f"istio-{gateway.ref.name}"
            pod_labels = objects.as_mapping(objects.dig(gateway.data, "spec", "podLabels"))
            labels = {str(key): str(value) for key, value in pod_labels.items()}
        settings = self.settings.of_gateway(gateway, {}, {})
        return DeclaredWorkload(
            ref=gateway.ref,
            kind=kind,
            manifest=gateway,
            template={},
            pods=(),
            proxy=None,
            service_account=account,
            spiffe_id=self._spiffe_id(gateway.ref.namespace, account, ""),
            labels=labels,
            annotations=settings.annotations,
            injection=Injection("controller", True, reason="its controller renders the proxy"),
            gateway_ref=gateway.ref,
            flavour="asm" if kind == "asm-gateway" else self.control.flavour,
            revision=objects.labels(gateway.data).get(REVISION, ""),
            env=settings.env,
            proxy_metadata=settings.metadata,
            host_network=False,
            owned_by=None,
            refusals=refusals_of(settings.annotations),
        )


def _owned_by(manifest: Manifest | None) -> Ref | None:
    """Return the object of another controller that writes this object's pod template."""
    owner = next(owners(manifest), None) if manifest else None
    # `gateway_ref` has the Gateway of objects that istiod or ASM made.
    return owner if owner is not None and owner.kind not in (*_OWNERS, "Gateway", "IstioGateway") else None


def _revision(injection: Injection, template: Any, proxy: Proxy | None) -> str:
    if injection.revision or not injection.injected:
        return injection.revision
    named = injected_revision(objects.annotations(template)) or objects.labels(template).get(REVISION)
    return named or (proxy.env.get("ISTIO_META_REVISION", "") if proxy else "")
