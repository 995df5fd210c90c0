"""The observation: everything that `observe` reports about a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshscrape.kube.objects import Ref
from meshscrape.observe.model import (
    ControlPlane,
    MeshSettings,
    ObservedJob,
    OperatorVersion,
    Pitfall,
    PlaintextComponent,
    Scraper,
)
from meshscrape.observe.workload import ObservedWorkload


@dataclass(frozen=True, slots=True)
class Observation:
    """What a cluster contains, and the pitfalls that apply.

    `unread_scrapers` are scrapers whose jobs are not all among the objects, so that they may read any
    plaintext port. `unknown_listers` are workloads that may list pods for an unknown purpose; this is only a
    hint. `operator_version` is the version of the Prometheus Operator, from its image.
    """

    control_planes: tuple[ControlPlane, ...] = ()
    mesh: MeshSettings = field(default_factory=MeshSettings)
    workloads: tuple[ObservedWorkload, ...] = ()
    scrape_jobs: tuple[ObservedJob, ...] = ()
    scrapers: tuple[Scraper, ...] = ()
    unread_scrapers: tuple[Scraper, ...] = ()
    unknown_listers: tuple[Ref, ...] = ()
    operator_version: OperatorVersion | None = None
    plaintext_components: tuple[PlaintextComponent, ...] = ()
    pitfalls: tuple[Pitfall, ...] = ()
    next_steps: Mapping[Ref, str] = field(default_factory=dict)
    _by_ref: Mapping[Ref, ObservedWorkload] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The first of several workloads with one reference counts.
        by_ref = {workload.ref: workload for workload in reversed(self.workloads)}
        object.__setattr__(self, "_by_ref", by_ref)

    def workload(self, ref: Ref) -> ObservedWorkload | None:
        """Return the workload of this reference, or None."""
        return self._by_ref.get(ref)
