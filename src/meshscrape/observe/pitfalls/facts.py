"""The facts about a cluster from which pitfalls are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from meshscrape.kube.objects import Ref
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.control import Control
from meshscrape.observe.declared_jobs import DeclaredJob, Unreadable
from meshscrape.observe.model import ObservedJob, OperatorVersion, Pitfall, Scraper
from meshscrape.observe.workload import ObservedWorkload


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was observed about a cluster except pitfalls."""

    cluster: Cluster
    control: Control
    workloads: tuple[ObservedWorkload, ...]
    jobs: tuple[DeclaredJob, ...]
    unreadable: tuple[Unreadable, ...]
    scrapers: tuple[Scraper, ...]
    unread_scrapers: tuple[Scraper, ...]
    scrape_jobs: tuple[ObservedJob, ...]
    operator_version: OperatorVersion | None

    def workload_of(self, ref: Ref) -> ObservedWorkload | None:
        """Return the workload of this reference, or None."""
        return next((workload for workload in self.workloads if workload.ref == ref), None)


Check = Callable[[Facts], Iterator[Pitfall]]
