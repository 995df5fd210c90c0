"""Pitfalls of injection, of pods that are there already, of networks, and of what is out of scope."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.istio import ports
from meshscrape.istio.names import (
    ASM_GROUP,
    INJECT,
    NAMESPACE_INJECTION,
    NAMESPACE_NAME,
    REVISION,
    SECURE_ENVOY_PORT,
    SECURE_PORT,
)
from meshscrape.istio.versions import parse_version
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.selectors import LabelIndex
from meshscrape.observe.model import Pitfall, Scraper
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.workload import ObservedWorkload

_ARMS_CHART = "ack-arms-prometheus"
_ARMS_NEEDED = (1, 1, 20)
_MANY = 5


def cluster_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of injection, staleness, networks and of the platform."""
    for namespace, labels in sorted(facts.cluster.namespaces.items()):
        yield from _namespace(namespace, labels)
    for workload in facts.workloads:
        yield from _injection(workload, facts)
        yield from _pods(workload)
    yield from _blocked(facts)
    yield from _planes(facts)
    yield from _ambient(facts)
    yield from _asm(facts)


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
            f"{workload.injection.reason} names the revision {wanted}, for which there is no webhook: pods "
            "start without a proxy, and nothing says so.",
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
            "The pod template holds the proxy itself (istioctl kube-inject): changed annotations do nothing, "
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
            f"A {workload.ref.kind.lower()} of its own: nothing recreates its pods with new settings.",
            "Recreate it by hand when it suits; it is reported, and never deleted.",
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


# Networks


def _blocked(facts: Facts) -> Iterator[Pitfall]:
    policies: LabelIndex[Manifest] = LabelIndex()
    for policy in facts.cluster.inventory.of_kind("NetworkPolicy"):
        types = objects.as_list(objects.dig(policy.data, "spec", "policyTypes"))
        if "Ingress" in types or not types:
            selector = objects.as_mapping(objects.dig(policy.data, "spec", "podSelector"))
            policies.add(policy.ref.namespace, selector, policy)
    for workload in facts.workloads:
        mine = policies.matching(workload.namespace, workload.labels) if workload.in_mesh else []
        wanted = workload.metrics.listening or (ports.SECURE_STATS, ports.SECURE_MERGED)
        shut = [port for port in wanted if mine and not _admitted(port, mine, facts)]
        if shut:
            names = ", ".join(sorted(each.ref.name for each in mine))
            yield Pitfall(
                "network-policy-blocks",
                "error" if workload.metrics.listening else "info",
                workload.ref,
                f"NetworkPolicy {names} selects its pods and does not admit {', '.join(map(str, shut))} from "
                "the scraper: connections time out. (The policies of Istio's gateway chart are so.)",
                "Add a NetworkPolicy that admits these ports from the scraper; policies add up.",
            )


def _admitted(port: int, policies: list[Manifest], facts: Facts) -> bool:
    return any(
        _has_port(rule, port) and _has_peer(rule, policy.ref.namespace, facts)
        for policy in policies
        for rule in objects.as_list(objects.dig(policy.data, "spec", "ingress"))
    )


def _has_port(rule: Any, port: int) -> bool:
    listed = objects.as_list(objects.dig(rule, "ports"))
    for each in listed:
        number = objects.dig(each, "port")
        if objects.dig(each, "protocol", default="TCP") != "TCP":
            continue
        if number is None or (
            isinstance(number, int) and number <= port <= objects.dig(each, "endPort", default=number)
        ):
            return True
    return not listed


def _has_peer(rule: Any, namespace: str, facts: Facts) -> bool:
    listed = objects.as_list(objects.dig(rule, "from"))
    if not listed or not facts.scrapers:
        return True
    return any(_is_peer(peer, scraper, namespace, facts) for peer in listed for scraper in facts.scrapers)


def _is_peer(peer: Any, scraper: Scraper, namespace: str, facts: Facts) -> bool:
    if objects.dig(peer, "ipBlock") is not None:
        # Whether the scraper's address is in there cannot be told from objects.
        return True
    space, pods = objects.dig(peer, "namespaceSelector"), objects.dig(peer, "podSelector")
    if space is None and scraper.namespace != namespace:
        return False
    if space is not None:
        labels = {NAMESPACE_NAME: scraper.namespace}
        if not objects.selects(space, {**labels, **facts.cluster.namespace_labels(scraper.namespace)}):
            return False
    workload = facts.workload_of(scraper.ref)
    # The Operator's pods have labels that are not in the object.
    return pods is None or workload is None or objects.selects(pods, workload.labels)


# The platform


def _planes(facts: Facts) -> Iterator[Pitfall]:
    given = facts.control.given
    for plane in facts.control.planes:
        if plane.custom_templates:
            yield Pitfall(
                "custom-templates",
                "info",
                None,
                f"The injector of revision {plane.revision} has templates of its own "
                f"({', '.join(plane.custom_templates)}): pods that use them may ignore the annotations here.",
                "Compare an injected pod before and after.",
            )
        if plane.version.prerelease:
            yield Pitfall(
                "pre-release",
                "info",
                None,
                f"Revision {plane.revision} is {plane.version}, a pre-release: it counts as its release.",
                "Verify after the change.",
            )
        if given.known and plane.version.known and plane.version.numbers != given.numbers:
            yield Pitfall(
                "version-contradicts",
                "info",
                None,
                f"--istio-version says {given}, but {plane.version_source} says {plane.version}: the objects "
                "win.",
                "Leave the option out, or give a dump of the cluster that you mean.",
            )
    mixed = sorted(
        {str(each) for workload in facts.workloads for each in workload.versions.running if each.known}
    )
    if len(mixed) > 1:
        yield Pitfall(
            "versions-mixed",
            "info",
            None,
            f"Proxies of several versions run: {', '.join(mixed)}. What a workload can do is decided by the "
            "version of its own.",
            "Restart what is old after an upgrade; see the versions of each workload.",
        )


def _ambient(facts: Facts) -> Iterator[Pitfall]:
    for daemon_set in facts.cluster.inventory.of_kind("DaemonSet"):
        if objects.labels(objects.pod_template(daemon_set.data)).get("app") == "ztunnel":
            yield Pitfall(
                "ztunnel",
                "info",
                daemon_set.ref,
                "ztunnel serves its metrics in plain text on 15020; it is no Envoy and has no secure port.",
                "Out of scope; restrict it with a NetworkPolicy.",
            )
    members = [workload for workload in facts.workloads if workload.kind == "ambient"]
    for namespace in sorted({each.namespace for each in members}):
        count = sum(1 for each in members if each.namespace == namespace)
        yield Pitfall(
            "ambient",
            "info",
            Ref("", "Namespace", "", namespace),
            f"{count} workloads are in ambient mode: they have no sidecar, and their prometheus.io "
            "annotations are their application's own. Waypoints are managed gateways, and planned as such.",
            "Out of scope without a sidecar.",
        )


def _asm(facts: Facts) -> Iterator[Pitfall]:
    if facts.control.flavour == "asm":
        yield Pitfall(
            "asm",
            "info",
            None,
            "This is a data plane of Alibaba Cloud Service Mesh: the control plane is outside the cluster, "
            "and Istio's objects go to ASM's own API server, unless access through the cluster's is on. "
            "What is planned for ASM could not be run here.",
            "Apply Istio's objects with ASM's kubeconfig and the rest with the cluster's; try one workload "
            "first.",
        )
    for gateway in facts.cluster.inventory.of_kind("IstioGateway", ASM_GROUP):
        yield Pitfall(
            "asm-gateway-owned",
            "info",
            gateway.ref,
            f"ASM makes the Deployment istio-{gateway.ref.name} from it: changes to the Deployment are lost.",
            "Use spec.env, spec.podAnnotations and spec.configVolumes of the IstioGateway.",
        )
    for scraper in facts.scrapers:
        if scraper.kind == "arms":
            yield _arms(scraper, facts)


def _arms(scraper: Scraper, facts: Facts) -> Pitfall:
    version = _arms_version(scraper, facts)
    if version is None:
        text = (
            "Its version is that of the Helm chart ack-arms-prometheus, which these objects do not tell (the "
            "image's tag is another number)"
        )
    elif version >= _ARMS_NEEDED:
        text = f"Its chart is {'.'.join(map(str, version))}, which can scrape over mTLS (from 1.1.20 on)"
    else:
        text = f"Its chart is {'.'.join(map(str, version))}: scraping over mTLS needs 1.1.20"
    old = version is not None and version < _ARMS_NEEDED
    return Pitfall(
        "arms-agent",
        "warning" if old else "info",
        scraper.ref,
        f"The ARMS agent scrapes here. {text}. What it scrapes is configured in the console and not visible.",
        "Upgrade ack-arms-prometheus to 1.1.20 or later in the console."
        if old or version is None
        else "Nothing, unless it still scrapes plaintext ports.",
    )


def _arms_version(scraper: Scraper, facts: Facts) -> tuple[int, int, int] | None:
    workload = facts.workload_of(scraper.ref)
    labels = dict(objects.labels(workload.manifest.data)) if workload and workload.manifest else {}
    for name in ("helm.sh/chart", "chart"):
        chart = str(labels.get(name, ""))
        version = parse_version(chart.removeprefix(f"{_ARMS_CHART}-"))
        if chart.startswith(f"{_ARMS_CHART}-") and version.numbers is not None:
            return version.numbers
    return None
