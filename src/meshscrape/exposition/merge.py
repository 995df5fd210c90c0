"""Merge the expositions of several sources into one that is always valid. Sans-I/O: bytes in, bytes out.

Sources are fed one after the other (agent, Envoy, then applications in the declared order). A family belongs
to the first source that sends it. If a later source sends a family of the same name, or with a series name
that already has an owner, the whole family is left out and counted. The merge remembers family names across
sources, but no series.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshscrape.exposition.families import AGENT, PROMETHEUS, FamilyTable
from meshscrape.exposition.grammar import GAUGE
from meshscrape.exposition.protobuf import ProtobufMerge
from meshscrape.exposition.source import MergeLimits
from meshscrape.exposition.text import TextMerge

# The series that Prometheus and vmagent add to every scrape. An application that exposes one of them forges
# it or hides it: a sample of `up` with a timestamp in the future hides the true one until that time.
SCRAPE_SERIES = (
    "up",
    "scrape_body_size_bytes",
    "scrape_duration_seconds",
    "scrape_response_size_bytes",
    "scrape_sample_limit",
    "scrape_samples_limit",
    "scrape_samples_post_metric_relabeling",
    "scrape_samples_scraped",
    "scrape_series_added",
    "scrape_series_current",
    "scrape_series_limit",
    "scrape_series_limit_samples_dropped",
    "scrape_timeout_seconds",
)


class Merger:
    """The state of one merge while its sources are fed one after the other."""

    def __init__(self, limits: MergeLimits | None = None, *, allow_scrape_series: bool = False) -> None:
        """Prepare an empty merge.

        With `allow_scrape_series`, sources may expose SCRAPE_SERIES. A source that federates Prometheus
        needs it.
        """
        self.limits = limits or MergeLimits()
        self.families = FamilyTable()
        self._names = {AGENT: "agent", PROMETHEUS: "prometheus"}
        self._sources = 0
        if not allow_scrape_series:
            for name in SCRAPE_SERIES:
                self.families.add(name.encode(), GAUGE, PROMETHEUS)

    def reserve(self, families: Iterable[tuple[bytes, bytes]]) -> None:
        """Reserve these (name, type) for the agent before the first source; it renders them at the end."""
        for name, kind in families:
            self.families.add(name, kind, AGENT)

    def source(
        self, name: str, *, trusted: bool = False, doubtful: bool = False, openmetrics: bool = False
    ) -> TextMerge:
        """Return the next source. The caller must finish the previous source first.

        A `trusted` source writes valid lines. A `doubtful` source may send something other than an
        exposition. The lines of an `openmetrics` source are converted to text first.
        """
        return TextMerge(
            self.families,
            self._next(name),
            self.limits,
            self._owner_name,
            trusted=trusted,
            doubtful=doubtful,
            openmetrics=openmetrics,
        )

    def protobuf_source(self, name: str, *, trusted: bool = False) -> ProtobufMerge:
        """Return the next source of a merge in which every source sends protobuf."""
        return ProtobufMerge(self.families, self._next(name), self.limits, self._owner_name, trusted=trusted)

    def _next(self, name: str) -> int:
        self._sources += 1
        self._names[self._sources] = name
        return self._sources

    def _owner_name(self, owner: int) -> str:
        return self._names[owner]
