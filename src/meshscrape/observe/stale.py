"""What still runs with an older configuration: a changed template does nothing to pods that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from meshscrape.istio import names
from meshscrape.istio.ports import MERGED
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Manifest, Ref
from meshscrape.observe.cluster import owners
from meshscrape.observe.control import split_ports
from meshscrape.observe.model import ObservedWorkload, RunningPod

_REVISION = "deployment.kubernetes.io/revision"
_WATCHED = (
    names.PROXY_CONFIG_ANNOTATION, names.BOOTSTRAP_OVERRIDE, names.EXCLUDE_INBOUND, names.INCLUDE_INBOUND,
    names.USER_VOLUME, names.USER_VOLUME_MOUNT, names.INTERCEPTION_MODE,
)  # fmt: skip
# The injector writes these on pods by itself when Istio's CNI plugin is used.
_WRITTEN_ON_PODS = (names.EXCLUDE_INBOUND, names.INCLUDE_INBOUND, names.INTERCEPTION_MODE)


def compared(
    workload: ObservedWorkload,
    pods: tuple[Manifest, ...],
    template: Mapping[str, Any],
    has_template: bool,
    inventory: Inventory,
) -> ObservedWorkload:
    """The workload with its pods compared to what they would be if they were created now."""
    if not pods:
        return workload
    newest = _newest_replica_set(workload.ref, pods, inventory)
    checked = tuple(
        _checked(pod, running, workload, template if has_template else None, newest)
        for pod, running in zip(pods, workload.running, strict=True)
    )
    return replace(workload, running=checked, stale=tuple(pod.ref.name for pod in checked if not pod.current))


def _checked(
    pod: Manifest,
    running: RunningPod,
    workload: ObservedWorkload,
    template: Mapping[str, Any] | None,
    newest: Ref | None,
) -> RunningPod:
    if running.phase in ("Succeeded", "Failed"):
        return running
    differs = []
    if newest is not None and next(owners(pod), None) != newest:
        differs.append("made by an older ReplicaSet")
    if workload.in_mesh and not running.injected:
        differs.append("has no proxy")
    elif not workload.in_mesh and running.injected:
        differs.append("has a proxy that a new pod would not get")
    elif workload.in_mesh:
        differs += _settings(running, workload)
    if template is not None and workload.ref.kind != "Pod":
        differs += _annotations(pod, template)
    return replace(running, current=not differs, differs=tuple(dict.fromkeys(differs)))


def _settings(running: RunningPod, workload: ObservedWorkload) -> list[str]:
    differs = []
    after = workload.proxy_version_after
    if running.version.known and after.known and running.version.numbers != after.numbers:
        differs.append(f"proxy {running.version} instead of {after}")
    if running.secure_port != workload.secure_port:
        differs.append(
            f"secure port {running.secure_port or 'off'} instead of {workload.secure_port or 'off'}"
        )
    if running.secure_envoy_port != workload.secure_envoy_port:
        differs.append(
            f"secure Envoy port {running.secure_envoy_port or 'off'} instead of "
            f"{workload.secure_envoy_port or 'off'}"
        )
    if running.hardened != workload.hardened:
        differs.append("plaintext ports are closed" if running.hardened else "plaintext ports are open")
    return differs


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
    if ref.kind != "Deployment":
        return None
    revisions: dict[Ref, int] = {}
    for pod in pods:
        owner = next(owners(pod), None)
        known = inventory.get(owner) if owner else None
        revision = objects.annotations(known.data).get(_REVISION, "") if known else ""
        if owner is None or not revision.isdigit():
            return None
        revisions[owner] = int(revision)
    return max(revisions, key=lambda each: revisions[each])
