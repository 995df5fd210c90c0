"""Sidecar (the Istio object): which one is in force for a workload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.kube.objects import Manifest, Ref, age
from meshscrape.kube.selectors import LabelIndex
from meshscrape.kube.views.reading import Fault, Reading


@dataclass(frozen=True, slots=True)
class Sidecar:
    """One Sidecar; an empty selector means every workload of its namespace (root namespace: of the mesh)."""

    manifest: Manifest
    selector: Mapping[str, str]
    ingress: tuple[Mapping[str, object], ...]
    faults: tuple[Fault, ...] = ()

    @property
    def ref(self) -> Ref:
        """Return the reference of its object."""
        return self.manifest.ref


def sidecar(manifest: Manifest) -> Sidecar:
    """Return the view of a Sidecar object."""
    spec = Reading.of(manifest.data).mapping("spec")
    selector = spec.strings("workloadSelector", "labels")
    ingress = tuple(item.value for item in spec.items("ingress"))
    return Sidecar(manifest, selector, ingress, tuple(spec.faults))


class Sidecars:
    """All Sidecars of a mesh, indexed by what they select."""

    def __init__(self, sidecars: Iterable[Sidecar], root_namespace: str = ROOT_NAMESPACE) -> None:
        self._root = root_namespace
        self._selecting: LabelIndex[Sidecar] = LabelIndex()
        self._wide: dict[str, list[Sidecar]] = {}
        for sidecar in sidecars:
            if sidecar.selector:
                self._selecting.add(sidecar.ref.namespace, {"matchLabels": sidecar.selector}, sidecar)
            else:
                self._wide.setdefault(sidecar.ref.namespace, []).append(sidecar)

    def of(self, namespace: str, labels: Mapping[str, str]) -> tuple[Sidecar, ...]:
        """Return the Sidecars for a workload, the one in force first.

        More than one at the same level is a mistake: Istio does not define what the second does.

        A Sidecar that selects the workload comes first, then those of its namespace, then those of the root
        namespace.
        """
        candidates = self._selecting.matching(namespace, labels)
        candidates = candidates or self._wide.get(namespace) or self._wide.get(self._root, [])
        return tuple(sorted(candidates, key=lambda item: age(item.manifest)))
