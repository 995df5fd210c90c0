"""The PeerAuthentication policies of a local mesh. A policy that is unclear or has no effect is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.istio.settings import InboundMode
from meshscrape.kube.declarations import Named
from meshscrape.kube.objects import Manifest, manifest_of
from meshscrape.kube.selectors import matches
from meshscrape.kube.views.peer_authentication import (
    PeerAuthentication,
    PeerAuthentications,
    peer_authentication,
)
from meshscrape.kube.views.reading import refuse_faults


class Policies:
    """All policies of a mesh.

    Of several policies at one level, Istio uses the oldest. Files do not tell the age, so two policies at one
    level are refused.
    """

    def __init__(self, declared: Iterable[Named]) -> None:
        self._policies = [(named, _policy(named)) for named in declared]
        self._effective = PeerAuthentications(policy for _, policy in self._policies)
        wide: dict[str, Named] = {}
        for named, policy in self._policies:
            if policy.selector:
                continue
            other = wide.setdefault(named.namespace, named)
            if other is not named:
                named.root.refuse(
                    "second-policy",
                    f"{other.where} is for the whole namespace too",
                    "keep one, or add a selector",
                )

    def mode(self, namespace: str, labels: Mapping[str, str], port: int) -> InboundMode:
        """Return how connections to a workload's `port` must come in.

        Raises InputError when two policies select the same workload.
        """
        selecting = [
            named
            for named, policy in self._policies
            if policy.selector and named.namespace == namespace and matches(policy.selector, labels)
        ]
        if len(selecting) > 1:
            selecting[1].root.refuse(
                "second-policy",
                f"{selecting[0].where} selects the same workload",
                "change one of the selectors",
            )
        return self._effective.of(namespace, labels).of(port)

    def check_ports(self, workloads: Iterable[tuple[str, Mapping[str, str], set[int]]]) -> None:
        """Raise InputError for a policy that selects nothing, or a port that no selected workload declares.

        `workloads` are namespace, labels and ports. Istio does not report such a policy, which has no effect.
        """
        known = list(workloads)
        for named, policy in self._policies:
            if not policy.selector:
                continue
            selected = [
                ports
                for namespace, labels, ports in known
                if named.namespace == namespace and matches(policy.selector, labels)
            ]
            spec = named.root.at("spec")
            if not selected:
                spec.at("selector").refuse(
                    "selects-nothing",
                    "no workload of the namespace has these labels",
                    "write the labels of a pod template",
                )
            for port in policy.port_modes:
                if not any(port in ports for ports in selected):
                    spec.at("portLevelMtls").at(str(port)).refuse(
                        "port-not-declared",
                        f"no selected workload declares port {port}",
                        "write a containerPort of the workload",
                    )


def _policy(named: Named) -> PeerAuthentication:
    """Return the policy of an object. Raises InputError with the place of the field that is wrong."""
    policy = peer_authentication(_manifest(named))
    refuse_faults(named.root, policy.faults)
    if policy.selector and named.namespace == ROOT_NAMESPACE:
        named.root.at("spec").at("selector").refuse(
            "root-selector",
            f"Istio ignores policies of {ROOT_NAMESPACE} that select workloads",
            "move it to another namespace, or remove the selector to set the mode of the whole mesh",
        )
    return policy


def _manifest(named: Named) -> Manifest:
    return manifest_of(named.root.document.data, named.where)
