"""Families of the agent's own making, rendered in either format; among them each source's health.

No name here is one that applications use: an agent never exposes a bare `process_*` or `python_*`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meshscrape.exposition.negotiate import Format


@dataclass(frozen=True, slots=True)
class Family:
    """A family to render: `kind` is counter or gauge, a counter's name ends in `_total`; labels → value.

    Labels may be given as `label_text` made it: for thousands of series that text is worth keeping.
    """

    name: str
    kind: str
    help: str
    samples: Sequence[tuple[Mapping[str, str] | str, float]]


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """What one scrape saw of one source (`name` like `application:9080`), and the totals since the start."""

    name: str
    up: bool
    seconds: float
    bytes: int
    dropped_families_total: int
    malformed_lines_total: int
    truncations_total: int


_HEALTH: tuple[tuple[str, str, str, str], ...] = (
    ("meshscrape_source_up", "gauge", "up", "Whether the source answered in time with a whole exposition."),
    ("meshscrape_source_scrape_duration_seconds", "gauge", "seconds", "How long the source took."),
    ("meshscrape_source_bytes", "gauge", "bytes", "Bytes that the source sent in this scrape, decoded."),
    (
        "meshscrape_source_dropped_families_total",
        "counter",
        "dropped_families_total",
        "Families left out because an earlier source has them, or there were too many.",
    ),
    (
        "meshscrape_source_malformed_lines_total",
        "counter",
        "malformed_lines_total",
        "Lines left out because they are malformed, too long or unfinished.",
    ),
    (
        "meshscrape_source_truncations_total",
        "counter",
        "truncations_total",
        "Expositions cut by the connection, the deadline or the limit on bytes.",
    ),
)


def health_names() -> list[tuple[bytes, bytes]]:
    """(name, type) of every family of `health_families`, to reserve in a merge."""
    return [(name.encode(), kind.encode()) for name, kind, _, _ in _HEALTH]


def health_families(sources: Iterable[SourceHealth]) -> list[Family]:
    """The families that tell how each source did, in the order of the sources."""
    seen = list(sources)
    return [
        Family(name, kind, text, [({"source": one.name}, float(getattr(one, field))) for one in seen])
        for name, kind, field, text in _HEALTH
    ]


def render_families(families: Iterable[Family], chosen: Format = Format.TEXT) -> bytes:
    """`families` in the text format or in OpenMetrics (without its end); those without samples left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        title = family.name
        if chosen is Format.OPENMETRICS and family.kind == "counter":
            title = title.removesuffix("_total")
        quoted = _escaped(family.help, quotes=chosen is Format.OPENMETRICS)
        lines += [f"# HELP {title} {quoted}\n", f"# TYPE {title} {family.kind}\n"]
        lines += [
            f"{family.name}{labels if isinstance(labels, str) else label_text(labels)} {_number(value)}\n"
            for labels, value in family.samples
        ]
    return "".join(lines).encode()


def label_text(labels: Mapping[str, str]) -> str:
    """The labels as they stand behind a sample's name, braces included; empty for none."""
    pairs = ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(text: str, *, quotes: bool) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quotes else escaped


def _number(value: float) -> str:
    value = float(value)
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
