"""Pitfalls of injection: refused pods, missing injection, and pods that run an older configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshscrape.istio.names import (
    INJECT,
    NAMESPACE_INJECTION,
    REVISION,
    SECURE_ENVOY_PORT,
    SECURE_PORT,
)
from meshscrape.kube.objects import Ref
from meshscrape.observe.model import Pitfall
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.workload import ObservedWorkload

_MANY = 5


def injection_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of injection and of running pods."""
    for namespace, labels in sorted(facts.cluster.namespaces.items()):
        yield from _namespace(namespace, labels)
    for workload in facts.workloads:
        yield from _refused(workload)
        yield from _injection(workload, facts)
        yield from _pods(workload)


def _refused(workload: ObservedWorkload) -> Iterator[Pitfall]:
    for refusal in workload.refusals if workload.in_mesh else ():
        yield Pitfall(refusal.code, "error", workload.ref, refusal.text, refusal.remedy)


def _namespace(namespace: str, labels: Mapping[str, str]) -> Iterator[Pitfall]:
    if NAMESPACE_INJECTION in labels and REVISION in labels:
        yield Pitfall(
            "injection-labels-conflict",
            "warning",
            Ref("", "Namespace", "", namespace),
            f"It has both {NAMESPACE_INJECTION}={labels[NAMESPACE_INJECTION]} and {REVISION}="
            f"{labels[REVISION]}: the former wins, so that revision does not inject.",
            f"Remove one of the two (kubectl label namespace {namespace} {NAMESPACE_INJECTION}-).",
        )


def _injection(workload: ObservedWorkload, facts: Facts) -> Iterator[Pitfall]:
    annotated = str(workload.annotations.get(INJECT, "")).lower()
    if not workload.in_mesh and annotated == "true" and INJECT not in workload.labels:
        yield Pitfall(
            "inject-annotation-only",
            "error",
            workload.ref,
            f"{INJECT} is an annotation; in a namespace without a label for injection only the pod *label* "
            "reaches the webhook, so no proxy is injected.",
            f'Add the label {INJECT}: "true" to the pod template.',
        )
    wanted = workload.injection.revision
    by_revision = workload.injection.by in ("namespace-revision", "pod-revision")
    if by_revision and facts.control.webhooks_seen and wanted not in facts.control.names:
        yield Pitfall(
            "revision-without-webhook",
            "error",
            workload.ref,
            f"{workload.injection.reason} names the revision {wanted}, which has no webhook: pods "
            "start without a proxy, silently.",
            f"Use one of: {', '.join(sorted(facts.control.names)) or 'none is installed'}.",
        )
    if (
        workload.injection.by == "manual"
        and workload.manifest is not None
        and workload.ref.kind not in ("Pod", "Job")
    ):
        yield Pitfall(
            "manually-injected",
            "info",
            workload.ref,
            "The pod template contains the proxy (istioctl kube-inject): changed annotations do nothing, "
            "and an upgrade of the control plane neither, until it is injected again.",
            "Remove the proxy from the template and let the webhook inject it, or run kube-inject again.",
        )


def _pods(workload: ObservedWorkload) -> Iterator[Pitfall]:
    if workload.stale:
        reasons = sorted({reason for pod in workload.running for reason in pod.differs})
        shown = ", ".join(workload.stale[:_MANY]) + (", …" if len(workload.stale) > _MANY else "")
        yield Pitfall(
            "pods-stale",
            "warning",
            workload.ref,
            f"{len(workload.stale)} of {len(workload.running)} pods run with an older configuration "
            f"({shown}): {'; '.join(reasons)}. A changed annotation does nothing until pods are recreated.",
            f"kubectl -n {workload.namespace} rollout restart {workload.ref.kind.lower()}/{workload.name}"
            if workload.ref.kind in ("Deployment", "StatefulSet", "DaemonSet")
            else "Recreate the pods.",
        )
    if workload.standalone and workload.in_mesh:
        yield Pitfall(
            "standalone",
            "info",
            workload.ref,
            f"A {workload.ref.kind.lower()} without a controller: nothing creates its pods anew with new "
            "settings.",
            "Create it again by hand; meshscrape deletes nothing.",
        )
    written = [
        name
        for name in (SECURE_PORT, SECURE_ENVOY_PORT)
        if workload.manifest is not None
        and workload.ref.kind != "Pod"
        and name not in workload.annotations
        and any(_by_hand(pod.annotations.get(name), pod.secure_port) for pod in workload.running)
    ]
    if written:
        yield Pitfall(
            "annotation-only-on-pods",
            "warning",
            workload.ref,
            f"{', '.join(written)} is on pods, but not in the pod template: the next restart loses it, and "
            "the targets with it.",
            "Write it into spec.template.metadata.annotations.",
        )


def _by_hand(value: str | None, injected: int | None) -> bool:
    return value is not None and value != str(injected)
