"""Pitfalls of bootstrap overrides: the ConfigMap, on which every pod's start depends, and its contents."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meshscrape.envoy.override import SCRAPERS_FILE
from meshscrape.istio import names
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.observe.bootstrap import KEY
from meshscrape.observe.injection_template import TEMPLATE
from meshscrape.observe.model import Pitfall, Severity
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.references import counted, references
from meshscrape.observe.workload import ObservedWorkload

# Names and ports of Istio's own static listeners, and clusters of its bootstrap.
_OWN_LISTENER = re.compile(r"(0\.0\.0\.0|::|127\.0\.0\.1|::1)_[0-9]+")
_OWN_PORTS = frozenset({15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090})
_OWN_CLUSTERS = frozenset({"agent", "prometheus_stats", "sds-grpc", "xds-grpc", "zipkin"})
# Linux allows 131,071 bytes in one argument, and the override is one.
_MAX_OVERRIDE = 100_000
# `dns:` entries of the allow list become this matcher of a certificate's DNS name.
_DNS_MATCHER = "DnsSanInput"


def bootstrap_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of bootstrap overrides."""
    for workload in facts.workloads:
        if workload.in_mesh:
            yield from _override(workload)
            yield from _foreign_ca(workload, facts)
    yield from _missing(facts)
    yield from _left_over(facts)


def _left_over(facts: Facts) -> Iterator[Pitfall]:
    """Report overrides of meshscrape that no workload's template names any more."""
    current = {workload.override.config_map for workload in facts.workloads if workload.override}
    for manifest in facts.cluster.inventory.of_kind("ConfigMap", ""):
        keys = objects.as_mapping(manifest.data.get("data"))
        if manifest.ref in current or not {KEY, SCRAPERS_FILE} <= keys.keys():
            continue
        if users := references(facts.cluster.inventory, manifest.ref):
            yield Pitfall(
                "override-in-use",
                "warning",
                manifest.ref,
                f"No workload's template names this override, but {counted(users)} do: none of their "
                "pods starts without it, nor after a rollback to them.",
                "Keep it until they are gone.",
            )
        else:
            yield Pitfall(
                "override-unused",
                "info",
                manifest.ref,
                "Nothing among these objects names this bootstrap override.",
                "Delete it if the dump has the ReplicaSets, ControllerRevisions and Jobs too.",
            )


def _missing(facts: Facts) -> Iterator[Pitfall]:
    """Report a missing ConfigMap; Istio mounts it without `optional`, so every pod that names it waits."""
    inventory = facts.cluster.inventory
    # A dump without any ConfigMap does not tell which ones exist.
    severity: Severity = "critical" if inventory.of_kind("ConfigMap", "") else "warning"
    current = {workload.ref for workload in facts.workloads}
    for workload in facts.workloads:
        override = workload.override
        if not workload.in_mesh or override is None or override.problem != "missing":
            continue
        if workload.template_checksum:
            yield _without_ports(workload.ref, override.config_map)
        else:
            yield _waits(workload.ref, override.config_map, severity)
    for kind in ("Pod", "ReplicaSet", "ControllerRevision", "Job"):
        for manifest in inventory.of_kind(kind):
            config_map = _named_by(manifest)
            if manifest.ref not in current and config_map is not None and config_map not in inventory:
                old = kind in ("ReplicaSet", "ControllerRevision")
                yield _waits(manifest.ref, config_map, "warning" if old else severity)


def _named_by(manifest: Manifest) -> Ref | None:
    """Return the ConfigMap that a pod, or a pod template that a rollback may use again, names."""
    template = objects.pod_template(manifest.data) or objects.dig(manifest.data, "data", "spec", "template")
    name = objects.annotations(template).get(names.BOOTSTRAP_OVERRIDE)
    return Ref("", "ConfigMap", manifest.ref.namespace, name) if name else None


def _waits(ref: Ref, config_map: Ref, severity: Severity) -> Pitfall:
    return Pitfall(
        "bootstrap-configmap-missing",
        severity,
        ref,
        f"{config_map} is not among these objects. If the cluster does not have it either, pods of this "
        "template hang in ContainerCreating: no restart, no scaling and no rollback succeeds.",
        "Create the ConfigMap in the pod's namespace, and keep it as long as any pod, ReplicaSet, "
        "ControllerRevision or Job names it.",
    )


def _without_ports(ref: Ref, config_map: Ref) -> Pitfall:
    """Report what a missing ConfigMap does where the injection template mounts it with `optional`."""
    return Pitfall(
        "template-configmap-missing",
        "error",
        ref,
        f"The injection template {TEMPLATE} announces the secure ports of its new pods, and {config_map} is "
        "not among these objects. If the cluster does not have it either, these pods start without the "
        "ports, and no job reads them.",
        "Create the ConfigMap (plan with the same --scope), or take the namespace out of the template in "
        "the values of Istio's chart; then restart the pods.",
    )


def _foreign_ca(workload: ObservedWorkload, facts: Facts) -> Iterator[Pitfall]:
    override = workload.override
    config_map = facts.cluster.inventory.get(override.config_map) if override else None
    texts = objects.as_mapping(config_map.data.get("data")) if config_map else {}
    if not any(_DNS_MATCHER in str(text) for text in texts.values()):
        return
    plane = facts.control.plane(workload.revision)
    missing = []
    if plane is not None and not plane.mesh.ca_certificates:
        missing.append("meshConfig.caCertificates")
    if plane is not None and not plane.external and plane.env.get("ISTIO_MULTIROOT_MESH") != "true":
        missing.append("ISTIO_MULTIROOT_MESH=true on istiod")
    if workload.env.get("PROXY_CONFIG_XDS_AGENT") != "true":
        missing.append("PROXY_CONFIG_XDS_AGENT=true in proxyMetadata")
    yield Pitfall(
        "foreign-ca",
        "warning" if missing else "info",
        workload.ref,
        "The allow list admits a certificate by DNS name, so its CA is not the mesh's. "
        + (f"Istio does not trust such a CA without {', '.join(missing)}. " if missing else "")
        + "That CA can also sign the SPIFFE IDs of the allow list.",
        "Set meshConfig.caCertificates, ISTIO_MULTIROOT_MESH=true on istiod and PROXY_CONFIG_XDS_AGENT=true "
        "on the proxy, restart the pods, and constrain the names of that CA.",
    )


def _override(workload: ObservedWorkload) -> Iterator[Pitfall]:
    override = workload.override
    if override is None:
        if names.BOOTSTRAP_OVERRIDE in workload.annotations:
            yield Pitfall(
                "bootstrap-annotation-ignored",
                "error",
                workload.ref,
                f"The annotation {names.BOOTSTRAP_OVERRIDE} does nothing here: only the injector reads "
                f"it, for sidecars, and for injected gateways from 1.27 on.",
                "Mount the ConfigMap and set ISTIO_BOOTSTRAP_OVERRIDE on the container instead.",
            )
        return
    texts = {
        "key": (
            "bootstrap-key-missing",
            f"{override.config_map} has no key {override.key}: the agent logs it and starts Envoy without "
            "the override, so no secure port opens.",
            f"Name the key {KEY}.",
        ),
        "unreadable": (
            "bootstrap-unreadable",
            f"{override.key} in {override.config_map} is neither JSON nor YAML: the agent logs it and starts "
            "Envoy without the override.",
            "Correct it; `meshscrape render` writes a valid one.",
        ),
    }
    if override.problem in texts:
        code, text, remedy = texts[override.problem]
        yield Pitfall(code, "error", workload.ref, text, remedy)
    yield from _collisions(workload)


def _collisions(workload: ObservedWorkload) -> Iterator[Pitfall]:
    override = workload.override
    assert override is not None  # noqa: S101 - the caller has checked
    native = (
        {workload.metrics.merged, workload.metrics.envoy}
        if workload.metrics.mode in ("mixed", "native")
        else set()
    )
    problems = []
    for listener in override.listeners:
        if _OWN_LISTENER.fullmatch(listener.name):
            problems.append(
                f"listener {listener.name} has a name of Istio's: Envoy drops one of the two silently"
            )
        if listener.port in _OWN_PORTS or listener.port in native:
            problems.append(f"port {listener.port} is already Istio's: Envoy refuses to start")
    problems += [
        f"cluster {name} is already Istio's: Envoy refuses to start"
        for name in override.clusters
        if name in _OWN_CLUSTERS
    ]
    if override.size > _MAX_OVERRIDE:
        problems.append(f"it has {override.size} bytes, and it must fit into one argument of 131,071")
    if problems:
        yield Pitfall(
            "bootstrap-collision",
            "error",
            workload.ref,
            f"The override in {override.config_map} collides: {'; '.join(problems)}.",
            "Use names and ports of its own, switch the native port off, or make it smaller.",
        )
