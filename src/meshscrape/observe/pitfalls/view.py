"""What a trap is looked for in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from meshscrape.kube.objects import Ref
from meshscrape.observe.cluster import Cluster
from meshscrape.observe.control import Control
from meshscrape.observe.jobs import Job, Unreadable
from meshscrape.observe.model import Pitfall, ScrapedBy, Scraper
from meshscrape.observe.workloads import Found


@dataclass(frozen=True, slots=True)
class View:
    """Everything that was found, before pitfalls."""

    cluster: Cluster
    control: Control
    found: tuple[Found, ...]
    jobs: tuple[Job, ...]
    unreadable: tuple[Unreadable, ...]
    scrapers: tuple[Scraper, ...]
    consumers: tuple[ScrapedBy, ...]

    def scraper_of(self, ref: Ref | None) -> Scraper | None:
        """The scraper of this reference."""
        return next((each for each in self.scrapers if each.ref == ref), None)

    def workload_of(self, ref: Ref) -> Found | None:
        """The workload of this reference."""
        return next((each for each in self.found if each.workload.ref == ref), None)


Trap = Callable[[View], Iterator[Pitfall]]
