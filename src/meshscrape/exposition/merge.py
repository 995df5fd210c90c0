"""The merge: several sources' expositions become one that is always valid. Sans-I/O: bytes in, bytes out.

Sources are fed one after the other (agent, Envoy, applications as declared). A family belongs to the first
source that has it; a later source's family of the same name, or with a series name that is already owned, is
left out whole and counted. Only family names are remembered across sources, never series.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshscrape.exposition.families import OPENMETRICS_SUFFIXES, TEXT_SUFFIXES, FamilyTable
from meshscrape.exposition.negotiate import Format
from meshscrape.exposition.openmetrics_merge import OpenMetricsMerge
from meshscrape.exposition.scan import Scanner
from meshscrape.exposition.source import MergeLimits, SourceMerge
from meshscrape.exposition.text import TextMerge


class Merger:
    """One merged exposition in the making; sources are fed one after the other."""

    def __init__(self, chosen: Format = Format.TEXT, limits: MergeLimits | None = None) -> None:
        self.format = chosen
        self.limits = limits or MergeLimits()
        self.families = FamilyTable(TEXT_SUFFIXES if chosen is Format.TEXT else OPENMETRICS_SUFFIXES)
        self._sources = 0

    def reserve(self, families: Iterable[tuple[bytes, bytes]]) -> None:
        """Own these (name, type) before any source: they are going to be rendered at the end."""
        for name, kind in families:
            # In OpenMetrics a counter's family is named without the suffix of its samples.
            counter = kind == b"counter" and self.format is Format.OPENMETRICS
            self.families.add(name.removesuffix(b"_total") if counter else name, kind, -1)

    def source(
        self,
        name: str,
        max_bytes: int | None = None,
        max_families: int | None = None,
        *,
        dialect: Format = Format.TEXT,
        scanner: Scanner | None = None,
    ) -> SourceMerge:
        """The next source, which speaks `dialect`; finish the one before first.

        `scanner` is what earlier scrapes taught about its lines. OpenMetrics cannot become text (its samples
        mean other families there): ask such a source for text.
        """
        limits = MergeLimits(
            max_bytes or self.limits.max_bytes,
            max_families or self.limits.max_families,
            self.limits.max_name_bytes,
            self.limits.max_line,
        )
        self._sources += 1
        if self.format is Format.OPENMETRICS:
            return OpenMetricsMerge(name, self.families, self._sources, limits, dialect)
        return TextMerge(name, self.families, self._sources, limits, scanner or Scanner())

    def end(self) -> bytes:
        """What ends the whole exposition."""
        return b"# EOF\n" if self.format is Format.OPENMETRICS else b""
