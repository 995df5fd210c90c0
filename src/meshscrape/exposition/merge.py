"""The merge: several sources' expositions become one that is always valid. Sans-I/O: bytes in, bytes out.

Sources are fed one after the other (agent, Envoy, applications as declared). A family belongs to the first
source that has it; a later source's family of the same name, or with a series name that is already owned, is
left out whole and counted. Only family names are remembered across sources, never series.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshscrape.exposition.families import AGENT, PROMETHEUS, FamilyTable
from meshscrape.exposition.grammar import GAUGE
from meshscrape.exposition.protobuf import ProtobufMerge
from meshscrape.exposition.source import MergeLimits
from meshscrape.exposition.text import TextMerge

# The series that Prometheus and vmagent add to every scrape. An application that writes them forges them, or
# silences them: one sample of `up` with a timestamp ahead of now hides the true one until then.
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
    """One merged exposition in the making; sources are fed one after the other."""

    def __init__(self, limits: MergeLimits | None = None, *, allow_scrape_series: bool = False) -> None:
        """With `allow_scrape_series`, sources may write SCRAPE_SERIES: for one that federates Prometheus."""
        self.limits = limits or MergeLimits()
        self.families = FamilyTable()
        self._names = {AGENT: "agent", PROMETHEUS: "prometheus"}
        self._sources = 0
        if not allow_scrape_series:
            for name in SCRAPE_SERIES:
                self.families.add(name.encode(), GAUGE, PROMETHEUS)

    def reserve(self, families: Iterable[tuple[bytes, bytes]]) -> None:
        """Own these (name, type) before any source: they are going to be rendered at the end."""
        for name, kind in families:
            self.families.add(name, kind, AGENT)

    def source(
        self, name: str, *, trusted: bool = False, doubtful: bool = False, openmetrics: bool = False
    ) -> TextMerge:
        """Return the next source; finish the one before first.

        A `trusted` source writes valid lines. A `doubtful` one may not be an exposition at all. What an
        `openmetrics` one sends is made text first.
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
        """Return the next source of a merge in which every source speaks protobuf."""
        return ProtobufMerge(self.families, self._next(name), self.limits, self._owner_name, trusted=trusted)

    def _next(self, name: str) -> int:
        self._sources += 1
        self._names[self._sources] = name
        return self._sources

    def _owner_name(self, owner: int) -> str:
        return self._names[owner]
