"""Compute a pod's targets over mutual TLS and the SPIFFE IDs that must answer, from the pod alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from meshscrape.errors import InputError
from meshscrape.istio import names
from meshscrape.istio.ports import RESERVED, read_port
from meshscrape.istio.scrape_targets import DEFAULT_PATH, ScrapeSource, parse_prometheus_annotations_env
from meshscrape.kube import objects
from meshscrape.kube.objects import as_list, as_mapping, dig
from meshscrape.kube.views.peer_authentication import PeerAuthentications
from meshscrape.kube.views.pod import pod_addresses, service_account
from meshscrape.kube.views.proxy import Proxy, proxy_of, running_version
from meshscrape.spiffe.ids import SpiffeId, workload_id
from meshscrape.spiffe.templates import IdTemplate

Metrics = Literal["merged", "envoy", "application"]
# Why a pod has no target now.
Absence = Literal["terminating", "finished", "pending", "not-ready", "no-address", "no-proxy", "no-port"]

# Istio's proxy opens the secure ports from this version on; an older one ignores the variables.
_SINCE = "1.31"
_FINISHED = ("Succeeded", "Failed")
_HASH = "pod-template-hash"
_CRON_JOB_RUN = re.compile(r"(.+)-[0-9]{8,10}")


@dataclass(frozen=True, slots=True)
class TargetMesh:
    """The facts about the mesh that decide a pod's targets.

    `aliases` are other names of the trust domain: while it is being renamed, certificates may carry them.
    `policies` decide whether an application's own port speaks mutual TLS; without them it is no target.
    `template` is the shape of the IDs of a mesh where it is not Istio's.
    """

    trust_domain: str
    aliases: tuple[str, ...] = ()
    policies: PeerAuthentications | None = None
    template: IdTemplate | None = None


@dataclass(frozen=True, slots=True)
class SecurePort:
    """The port number that a pod declares for one of its proxy's secure ports.

    `announced` is the text of the annotation, or None. `opened` is the port that the proxy's variable asks
    for, or None without a valid value. Proxies before 1.31 ignore the variable.
    """

    announced: str | None
    opened: int | None


@dataclass(frozen=True, slots=True)
class PodTarget:
    """One endpoint over mutual TLS of a pod.

    `addresses` are those of one pod (dual stack), its main one first: scrape one of them, not each.
    `identities` are the SPIFFE IDs of which one must answer, the current one first.
    `labels` are namespace, pod and workload.
    """

    metrics: Metrics
    addresses: tuple[str, ...]
    port: int
    path: str
    identities: tuple[SpiffeId, ...]
    labels: Mapping[str, str]

    @property
    def identity(self) -> SpiffeId:
        """Return the identity that the pod's certificate has when it is new."""
        return self.identities[0]


def absence_of(pod: Mapping[str, Any]) -> Absence | None:
    """Return why a pod has no target now, or None when it has one.

    A pod counts as ready when its proxy is ready. An application that is not ready still has metrics, and
    that is when they are needed. When the status does not mention the proxy, a running pod counts as ready.
    """
    if dig(pod, "metadata", "deletionTimestamp"):
        return "terminating"
    phase = dig(pod, "status", "phase")
    if phase in _FINISHED:
        return "finished"
    if phase != "Running":
        return "pending"
    proxy = proxy_of(pod)
    if proxy is None:
        return "no-proxy"
    if not _proxy_is_ready(pod):
        return "not-ready"
    if not pod_addresses(pod):
        return "no-address"
    return None if _secure_ports(pod, proxy) else "no-port"


def is_coming(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod has an address of its own, and a proxy that is not ready yet."""
    own = dig(pod, "spec", "hostNetwork") is not True and bool(pod_addresses(pod))
    return own and absence_of(pod) in ("pending", "not-ready")


def targets_of(pod: Mapping[str, Any], mesh: TargetMesh, *, coming: bool = False) -> tuple[PodTarget, ...]:
    """Return the targets of a pod; none while `absence_of` gives a reason.

    With `coming`, also those that a pod will have (`is_coming`). A port number comes from the annotation that
    announces it, else from the variable that makes an injected proxy open it. Raises InputError for a pod
    whose namespace or ServiceAccount is not valid in a SPIFFE ID.
    """
    proxy = proxy_of(pod)
    if proxy is None or not (absence_of(pod) is None or (coming and is_coming(pod))):
        return ()
    namespace = str(dig(pod, "metadata", "namespace", default="default"))
    account = service_account(pod)
    name = str(dig(pod, "metadata", "name", default=""))
    identities = _identities(mesh, namespace, account, name, objects.labels(pod))
    if not identities:
        return ()
    addresses = pod_addresses(pod)
    shown = {"namespace": namespace, "pod": name, "workload": workload_name(pod)}
    endpoints = [
        *((metrics, port, names.MERGED_PATH) for metrics, port in _secure_ports(pod, proxy).items()),
        *_application_endpoints(pod, proxy, namespace, mesh),
    ]
    return tuple(
        PodTarget(metrics, addresses, port, path, identities, shown) for metrics, port, path in endpoints
    )


def _identities(
    mesh: TargetMesh, namespace: str, account: str, pod: str, labels: Mapping[str, str]
) -> tuple[SpiffeId, ...]:
    """Return the IDs of which a pod must show one; none when the mesh's template gives it none."""
    domains = (mesh.trust_domain, *mesh.aliases)
    if mesh.template is None:
        return tuple(workload_id(domain, namespace, account) for domain in domains)
    filled = (mesh.template.fill(domain, namespace, account, pod, labels) for domain in domains)
    return tuple(target for target in filled if target is not None)


def workload_name(pod: Mapping[str, Any]) -> str:
    """Return the name of a pod's Deployment, CronJob or other controller; without one, the pod's own name.

    The name is derived from the pod alone, exactly as the relabelling of the generated scrape jobs derives
    it.
    """
    name = str(dig(pod, "metadata", "name", default=""))
    owners = as_list(dig(pod, "metadata", "ownerReferences"))
    owner = next((item for item in owners if dig(item, "controller") is True), None)
    if owner is None:
        return name
    controller = str(dig(owner, "name", default=name))
    kind = dig(owner, "kind")
    if kind == "ReplicaSet" and objects.labels(pod).get(_HASH):
        return controller.rpartition("-")[0] or controller
    run = _CRON_JOB_RUN.fullmatch(controller) if kind == "Job" else None
    return run[1] if run else controller


def _proxy_is_ready(pod: Mapping[str, Any]) -> bool:
    status = as_mapping(pod.get("status"))
    for field in ("initContainerStatuses", "containerStatuses"):
        for container in as_list(status.get(field)):
            if dig(container, "name") == names.PROXY_CONTAINER:
                return dig(container, "ready") is True
    return True


def secure_ports(pod: Mapping[str, Any], env: Mapping[str, str]) -> dict[Metrics, SecurePort]:
    """Return the secure ports that a pod's annotations and its proxy's environment declare."""
    announced = objects.annotations(pod)
    sources: tuple[tuple[Metrics, str, str], ...] = (
        ("merged", names.SECURE_PORT, names.ENVOY_SECURE_MERGED_METRICS_PORT),
        ("envoy", names.SECURE_ENVOY_PORT, names.ENVOY_SECURE_METRICS_PORT),
    )
    return {
        metrics: SecurePort(announced.get(annotation), read_port(env.get(variable)))
        for metrics, annotation, variable in sources
    }


def _secure_ports(pod: Mapping[str, Any], proxy: Proxy) -> dict[Metrics, int]:
    """Return the secure ports that can be scraped."""
    native = running_version(pod, proxy).at_least(_SINCE) is not False
    ports: dict[Metrics, int] = {}
    for metrics, said in secure_ports(pod, proxy.env).items():
        port = read_port(said.announced) if said.announced else said.opened if native else None
        if port is not None:
            ports[metrics] = port
    return ports


def _annotated(pod: Mapping[str, Any]) -> tuple[ScrapeSource, ...]:
    """Return the endpoint that a pod's own annotations name; none for a port of the proxy."""
    said = objects.annotations(pod)
    port = read_port(said.get(names.PROMETHEUS_PORT))
    if said.get(names.PROMETHEUS_SCRAPE, "").lower() != "true" or port is None or port in RESERVED:
        return ()
    path = said.get(names.PROMETHEUS_PATH) or DEFAULT_PATH
    scheme = said.get(names.PROMETHEUS_SCHEME, "http")
    return (ScrapeSource(port, path if path.startswith("/") else f"/{path}", scheme),)


def _application_endpoints(
    pod: Mapping[str, Any], proxy: Proxy, namespace: str, mesh: TargetMesh
) -> list[tuple[Metrics, int, str]]:
    """Return the application's own endpoints whose ports speak mutual TLS.

    Where metrics are merged, the injector overwrites the pod's annotations and hands the application's
    endpoints to the proxy. Elsewhere the annotations are the application's own.
    """
    if mesh.policies is None:
        return []
    try:
        handed = proxy.env.get(names.ISTIO_PROMETHEUS_ANNOTATIONS, "")
        sources = parse_prometheus_annotations_env(handed) if handed else _annotated(pod)
    except InputError:
        return []
    excluded = {text.strip() for text in objects.annotations(pod).get(names.EXCLUDE_INBOUND, "").split(",")}
    modes = mesh.policies.of(namespace, objects.labels(pod))
    return [
        ("application", source.port, source.path)
        for source in sources
        if source.scheme == "http" and str(source.port) not in excluded and modes.of(source.port) != "DISABLE"
    ]
