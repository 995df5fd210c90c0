"""Find pods that run with an older configuration, because a changed template does not change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.ports import MERGED
from meshscrape.istio.versions import IstioVersion
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Manifest, Ref
from meshscrape.observe.cluster import owners
from meshscrape.observe.control import split_ports
from meshscrape.observe.model import RunningPod
from meshscrape.observe.workload import DeclaredWorkload, MetricsPorts, ProxyVersions

_WATCHED = (
    names.PROXY_CONFIG_ANNOTATION, names.BOOTSTRAP_OVERRIDE, names.EXCLUDE_INBOUND, names.INCLUDE_INBOUND,
    names.USER_VOLUME, names.USER_VOLUME_MOUNT, names.INTERCEPTION_MODE,
)  # fmt: skip
# The injector writes these on pods by itself when Istio's CNI plugin is used.
_WRITTEN_ON_PODS = (names.EXCLUDE_INBOUND, names.INCLUDE_INBOUND, names.INTERCEPTION_MODE)


def compared_pods(
    workload: DeclaredWorkload,
    versions: ProxyVersions,
    metrics: MetricsPorts,
    running: tuple[RunningPod, ...],
    inventory: Inventory,
    checksum: str = "",
) -> tuple[RunningPod, ...]:
    """Return the pods, each compared with a pod that would be created now.

    `checksum` is that of the bootstrap override that the injection template gives new pods.
    """
    newest = _newest_replica_set(workload.ref, workload.pods, inventory)
    return tuple(
        _compared(pod, runs, workload, versions, metrics, newest, checksum)
        for pod, runs in zip(workload.pods, running, strict=True)
    )


def _compared(
    pod: Manifest,
    runs: RunningPod,
    workload: DeclaredWorkload,
    versions: ProxyVersions,
    metrics: MetricsPorts,
    newest: Ref | None,
    checksum: str,
) -> RunningPod:
    if runs.phase in ("Succeeded", "Failed"):
        return runs
    differs = []
    if newest is not None and next(owners(pod), None) != newest:
        differs.append("made by an older ReplicaSet")
    if workload.in_mesh and not runs.injected:
        differs.append("has no proxy")
    elif not workload.in_mesh and runs.injected:
        differs.append("has a proxy that a new pod would not get")
    elif workload.in_mesh:
        differs += _settings(runs, versions.after, metrics)
        differs += _override(pod, workload.annotations, checksum)
    if workload.manifest is not None and workload.ref.kind != "Pod":
        differs += _annotations(pod, workload.template)
    return replace(runs, current=not differs, differs=tuple(dict.fromkeys(differs)))


def _settings(runs: RunningPod, after: IstioVersion, metrics: MetricsPorts) -> list[str]:
    differs = []
    if runs.version.known and after.known and runs.version.numbers != after.numbers:
        differs.append(f"proxy {runs.version} instead of {after}")
    if runs.secure_port != metrics.merged:
        differs.append(f"secure port {runs.secure_port or 'off'} instead of {metrics.merged or 'off'}")
    if runs.secure_envoy_port != metrics.envoy:
        differs.append(
            f"secure Envoy port {runs.secure_envoy_port or 'off'} instead of {metrics.envoy or 'off'}"
        )
    if runs.hardened != metrics.hardened:
        differs.append("plaintext ports are closed" if runs.hardened else "plaintext ports are open")
    return differs


def _override(pod: Manifest, wanted: Mapping[str, str], checksum: str) -> list[str]:
    """Return how a pod's bootstrap override differs from that of a new pod: it is missing, or not wanted."""
    here = objects.annotations(pod.data).get(names.BOOTSTRAP_CHECKSUM, "")
    if checksum:
        return [] if here == checksum else ["no bootstrap override of the injection template's"]
    if here and names.BOOTSTRAP_CHECKSUM not in wanted:
        return ["has a bootstrap override that a new pod would not get"]
    return []


def _annotations(pod: Manifest, template: Mapping[str, Any]) -> list[str]:
    here, wanted = objects.annotations(pod.data), objects.annotations(template)
    differs = []
    for key in _WATCHED:
        expected = key in wanted or key not in _WRITTEN_ON_PODS
        if expected and not _same(key, here.get(key), wanted.get(key)):
            differs.append(f"annotation {key}")
    if names.SECURE_PORT in wanted and here.get(names.SECURE_PORT) != wanted[names.SECURE_PORT]:
        differs.append(f"annotation {names.SECURE_PORT}")
    return differs


def _same(key: str, here: str | None, wanted: str | None) -> bool:
    if key == names.EXCLUDE_INBOUND and here is not None and wanted is not None:
        # With Istio's CNI plugin the injector adds the agent's port to the pod's list.
        return {*split_ports(here), str(MERGED)} == {*split_ports(wanted), str(MERGED)}
    return here == wanted


def _newest_replica_set(ref: Ref, pods: tuple[Manifest, ...], inventory: Inventory) -> Ref | None:
    if ref.kind != "Deployment" or not pods:
        return None
    revisions: dict[Ref, int] = {}
    for pod in pods:
        owner = next(owners(pod), None)
        replica_set = inventory.get(owner) if owner else None
        revision = (
            objects.annotations(replica_set.data).get(names.DEPLOYMENT_REVISION, "") if replica_set else ""
        )
        if owner is None or not revision.isdigit():
            return None
        revisions[owner] = int(revision)
    return max(revisions, key=lambda ref: revisions[ref])
