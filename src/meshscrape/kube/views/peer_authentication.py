"""PeerAuthentication: which ports take plain text, mutual TLS, or both.

Precedence is Istio's (`ComposePeerAuthentication`): the port's mode, then the policy that selects the
workload, then the namespace's, then the mesh's (root namespace, no selector), then PERMISSIVE. UNSET inherits
from the next. Of several policies at one level the oldest counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast, get_args

from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.istio.ports import shorten
from meshscrape.istio.settings import InboundMode
from meshscrape.kube.objects import Manifest, Ref, age
from meshscrape.kube.selectors import LabelIndex
from meshscrape.kube.views.reading import Fault, Reading

DEFAULT_MODE: InboundMode = "PERMISSIVE"
_UNSET = "UNSET"
_MODES = (*get_args(InboundMode), _UNSET)


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """One policy. A mode of None inherits; an empty selector means the whole namespace (or mesh)."""

    manifest: Manifest
    selector: Mapping[str, str]
    mode: InboundMode | None
    port_modes: Mapping[int, InboundMode | None]
    faults: tuple[Fault, ...] = ()

    @property
    def ref(self) -> Ref:
        """Return the reference of the policy's object."""
        return self.manifest.ref


@dataclass(frozen=True, slots=True)
class Mtls:
    """The effective mode of a workload, the modes of single ports, and the policy that sets them."""

    default: InboundMode = DEFAULT_MODE
    ports: Mapping[int, InboundMode] = field(default_factory=dict)
    source: Ref | None = None

    def of(self, port: int) -> InboundMode:
        """Return the mode of a port."""
        return self.ports.get(port, self.default)


def peer_authentication(manifest: Manifest) -> PeerAuthentication:
    """Return the view of a PeerAuthentication object."""
    spec = Reading.of(manifest.data).mapping("spec")
    spec.only("selector", "mtls", "portLevelMtls")
    spec.mapping("selector").only("matchLabels")
    selector = spec.strings("selector", "matchLabels")
    port_modes: dict[int, InboundMode | None] = {}
    ports = spec.mapping("portLevelMtls")
    for text in ports.value:
        place = ports.at(text)
        if not selector:
            place.fault("port-without-selector", "a port needs a selector", "add spec.selector.matchLabels")
        port = Reading(text, place.path, place.faults).port_number()
        mode = _mode(ports.mapping(text))
        if port is not None:
            port_modes[port] = mode
    mode = _mode(spec.mapping("mtls"))
    return PeerAuthentication(manifest, selector, mode, port_modes, tuple(spec.faults))


def _mode(mtls: Reading) -> InboundMode | None:
    mtls.only("mode")
    mode = mtls.text("mode", _UNSET)
    if mode not in _MODES:
        mtls.at("mode").fault(
            "not-a-mode", f"{shorten(mode)} is not a mode", f"write one of {', '.join(_MODES)}"
        )
        return None
    return None if mode == _UNSET else cast(InboundMode, mode)


class PeerAuthentications:
    """All policies of a mesh, indexed by what they select."""

    def __init__(self, policies: Iterable[PeerAuthentication], root_namespace: str = ROOT_NAMESPACE) -> None:
        self._root = root_namespace
        self._selecting: LabelIndex[PeerAuthentication] = LabelIndex()
        wide: dict[str, list[PeerAuthentication]] = {}
        for policy in policies:
            if not policy.selector:
                wide.setdefault(policy.ref.namespace, []).append(policy)
            elif policy.ref.namespace != root_namespace:
                # Istio ignores policies of the root namespace that select workloads.
                self._selecting.add(policy.ref.namespace, {"matchLabels": policy.selector}, policy)
        self._wide = {namespace: _oldest(policies) for namespace, policies in wide.items()}

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> PeerAuthentication | None:
        """Return the policy that selects a workload by its labels; of several the oldest."""
        return _oldest(self._selecting.matching(namespace, labels))

    def of(self, namespace: str, labels: Mapping[str, str]) -> Mtls:
        """Return the mode of a workload with these labels, and of its single ports."""
        policy = self.selecting(namespace, labels)
        default, source = DEFAULT_MODE, None
        for candidate in (policy, self._wide.get(namespace), self._wide.get(self._root)):
            if candidate is not None and candidate.mode is not None:
                default, source = candidate.mode, candidate.ref
                break
        if policy is None:
            return Mtls(default, {}, source)
        ports = {port: mode for port, mode in policy.port_modes.items() if mode is not None}
        return Mtls(default, ports, policy.ref if ports else source)


def _oldest(policies: Iterable[PeerAuthentication]) -> PeerAuthentication | None:
    return min(policies, key=lambda policy: age(policy.manifest), default=None)
