"""PeerAuthentication: which ports take plain text, mutual TLS, or both.

Precedence as Istio's: the port's mode, then the policy that selects the workload, then the namespace's, then
the mesh's (root namespace, no selector), then PERMISSIVE. UNSET inherits from the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from meshscrape.istio.fields import Field
from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.istio.ports import parse_port, shorten
from meshscrape.istio.settings import InboundMode
from meshscrape.kube.declarations import Named, matches

DEFAULT_MODE: InboundMode = "PERMISSIVE"
_MODES = ("STRICT", "PERMISSIVE", "DISABLE", "UNSET")


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """One policy; a mode of None inherits. `selector` is None for the whole namespace (or mesh)."""

    named: Named
    selector: Mapping[str, str] | None
    mode: InboundMode | None
    port_modes: Mapping[int, InboundMode | None]
    port_fields: Mapping[int, Field]

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether this policy is about exactly the workloads that its selector names, and this is one."""
        return (
            self.selector is not None and self.named.namespace == namespace and matches(self.selector, labels)
        )


def parse_peer_authentication(named: Named) -> PeerAuthentication:
    """The policy that the object declares. Raises InputError with the place of the field that is wrong."""
    spec = named.root.mapping("spec")
    spec.only("selector", "mtls", "portLevelMtls")
    selector_field = spec.mapping("selector")
    selector_field.only("matchLabels")
    # An empty selector selects all workloads, as none does.
    selector = selector_field.strings("matchLabels") or None
    port_modes: dict[int, InboundMode | None] = {}
    port_fields: dict[int, Field] = {}
    ports = spec.mapping("portLevelMtls")
    assert isinstance(ports.value, Mapping)  # noqa: S101 - mapping() just checked it
    for text in ports.value:
        place = ports.at(text)
        if selector is None:
            place.refuse("a port needs a selector", "add spec.selector.matchLabels")
        port = parse_port(text, place.where)
        port_modes[port] = _mode(ports.mapping(text))
        port_fields[port] = place
    return PeerAuthentication(named, selector, _mode(spec.mapping("mtls")), port_modes, port_fields)


def _mode(mtls: Field) -> InboundMode | None:
    mtls.only("mode")
    mode = mtls.text("mode", "UNSET")
    if mode not in _MODES:
        mtls.at("mode").refuse(f"{shorten(mode)} is not a mode", f"write one of {', '.join(_MODES)}")
    return None if mode == "UNSET" else cast(InboundMode, mode)


class Policies:
    """All policies of a mesh, answering for one port at a time."""

    def __init__(self, policies: Iterable[PeerAuthentication]) -> None:
        self._selecting = []
        self._wide: dict[str, PeerAuthentication] = {}
        for policy in policies:
            if policy.selector is not None:
                self._selecting.append(policy)
                continue
            other = self._wide.setdefault(policy.named.namespace, policy)
            if other is not policy:
                policy.named.root.refuse(
                    f"{other.named.where} is for the whole namespace too", "keep one, or add a selector"
                )

    def mode(self, namespace: str, labels: Mapping[str, str], port: int) -> InboundMode:
        """How connections to a workload's `port` must come in.

        Raises InputError when two policies select the same workload: Istio takes the older one, which files
        do not tell.
        """
        policy = self._selected(namespace, labels)
        if policy is not None and (mode := policy.port_modes.get(port)):
            return mode
        for candidate in (policy, self._wide.get(namespace), self._wide.get(ROOT_NAMESPACE)):
            if candidate is not None and candidate.mode is not None:
                return candidate.mode
        return DEFAULT_MODE

    def _selected(self, namespace: str, labels: Mapping[str, str]) -> PeerAuthentication | None:
        found = [policy for policy in self._selecting if policy.selects(namespace, labels)]
        if len(found) > 1:
            found[1].named.root.refuse(
                f"{found[0].named.where} selects the same workload", "change one of the selectors"
            )
        return found[0] if found else None

    def check_ports(self, workloads: Iterable[tuple[str, Mapping[str, str], set[int]]]) -> None:
        """Raise InputError for a policy that selects nothing, or a port that no selected workload declares.

        `workloads` are namespace, labels and ports. Such a policy protects nothing, and nothing else says so.
        """
        known = list(workloads)
        for policy in self._selecting:
            selected = [ports for namespace, labels, ports in known if policy.selects(namespace, labels)]
            if not selected:
                policy.named.root.at("spec").at("selector").refuse(
                    "no workload of the namespace has these labels", "write the labels of a pod template"
                )
            for port, place in policy.port_fields.items():
                if not any(port in ports for ports in selected):
                    place.refuse(
                        f"no selected workload declares port {port}", "write a containerPort of the workload"
                    )
