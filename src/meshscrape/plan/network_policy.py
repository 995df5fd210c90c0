"""Plan NetworkPolicies that let only the scraper's pods reach the secure ports."""

from __future__ import annotations

from typing import Any

from meshscrape.istio.names import MANAGED_BY, NAMESPACE_NAME, NETWORKING_GROUP
from meshscrape.istio.ports import HIGHEST
from meshscrape.kube.objects import Ref, as_list, dig, labels, selects
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan import native
from meshscrape.plan.model import LEGACY_PORT, MANAGER
from meshscrape.plan.scrapers import scraper_pods
from meshscrape.plan.workloads import Context, PlannedWorkload, selector_of


def plan_network_policies(context: Context, *, only_blocked: bool) -> None:
    """Plan one policy per target; with `only_blocked`, only where other policies block the scraper.

    A policy denies its pods all traffic that no policy allows, so the first one must keep other ports open.
    """
    targets = [target for target in context.targets if not only_blocked or _blocked(context, target)]
    if not targets:
        return
    peers = [
        {
            "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: namespace}},
            "podSelector": {"matchLabels": own},
        }
        for namespace, own in scraper_pods(context)
    ]
    if not peers:
        context.draft.note(
            None,
            "scraper-pods-unknown",
            "no NetworkPolicy is planned: the pods of the scraper are not known",
            "give the scraper's objects too",
        )
        return
    for target in targets:
        _plan(context, target, peers)


def _blocked(context: Context, target: PlannedWorkload) -> bool:
    """Return whether policies select the target's pods and none of them allows the secure ports."""
    return any(
        pitfall.code == "network-policy-blocks" and pitfall.ref == target.ref
        for pitfall in context.observation.pitfalls
    ) or _own(context, target.workload)


def _own(context: Context, workload: ObservedWorkload) -> bool:
    """Return whether an earlier plan made the policy. Such a policy is kept and updated."""
    ref = Ref(NETWORKING_GROUP, "NetworkPolicy", workload.namespace, f"meshscrape-{workload.name}")
    return labels(context.object_of(ref)).get(MANAGED_BY) == MANAGER


def _plan(context: Context, target: PlannedWorkload, peers: list[dict[str, Any]]) -> None:
    workload = target.workload
    opened = native.secure_ports(context.intent, workload)
    ports = (LEGACY_PORT,) if target.mode == "legacy" else opened
    ingress: list[dict[str, Any]] = [
        {"from": peers, "ports": [{"port": port, "protocol": "TCP"} for port in sorted(ports)]}
    ]
    others = _other_policies(context, workload)
    if not others:
        ingress.append({"ports": _everything_but(sorted(ports))})
        reason = "only the scraper's pods can reach the secure ports; other ports stay open as before"
    else:
        # Policies are additive: opening all other ports here would undo restrictions of the other policies.
        reason = f"lets the scraper's pods reach the secure ports in addition to {', '.join(others)}"
    policy = {
        "apiVersion": f"{NETWORKING_GROUP}/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"meshscrape-{workload.name}",
            "namespace": workload.namespace,
            "labels": {MANAGED_BY: MANAGER},
        },
        "spec": {
            "podSelector": {"matchLabels": selector_of(context, workload)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }
    context.draft.ensure(policy, reason)


def _other_policies(context: Context, workload: ObservedWorkload) -> list[str]:
    """Return policies for incoming traffic that select the workload's pods and are not ours."""
    return [
        str(policy.ref)
        for policy in context.inventory.in_namespace(workload.namespace, "NetworkPolicy", NETWORKING_GROUP)
        if labels(policy.data).get(MANAGED_BY) != MANAGER
        and selects(dig(policy.data, "spec", "podSelector", default={}), workload.labels)
        and "Ingress" in (as_list(dig(policy.data, "spec", "policyTypes")) or ["Ingress"])
    ]


def _everything_but(ports: list[int]) -> list[dict[str, Any]]:
    """Return all ports of all protocols except these TCP ports."""
    ranges = []
    low = 1
    for port in [*ports, HIGHEST + 1]:
        if low < port - 1:
            ranges.append({"port": low, "endPort": port - 1, "protocol": "TCP"})
        elif low == port - 1:
            ranges.append({"port": low, "protocol": "TCP"})
        low = port + 1
    return [*ranges, *({"port": 1, "endPort": HIGHEST, "protocol": protocol} for protocol in ("UDP", "SCTP"))]
