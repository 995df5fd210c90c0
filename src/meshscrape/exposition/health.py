"""Metric families that the agent itself exposes, rendered as text; among them the health of each source.

Applications do not use these names: an agent never exposes a bare `process_*` or `python_*`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Family:
    """A family to render. `kind` is counter or gauge, and a counter's name ends in `_total`.

    A sample is its labels and its value. Labels may be text from `label_text`: with thousands
    of series it is worth rendering them once.
    """

    name: str
    kind: str
    help: str
    samples: Sequence[tuple[Mapping[str, str] | str, float]]


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """The health of one source in one scrape, and its totals since the start; `name`: `application:9080`."""

    name: str
    up: bool
    seconds: float
    bytes: int
    series: int
    dropped_families_total: int
    malformed_lines_total: int
    truncations_total: int
    format: str = "text"
    # Families left out of this scrape, counted per owner of their names; the first few also by name.
    hidden: Mapping[str, int] = field(default_factory=dict)
    hidden_names: Sequence[tuple[str, str]] = ()
    # Why the source is not up; empty if it is.
    problem: str = ""


_HEALTH: tuple[tuple[str, str, str, str], ...] = (
    ("meshscrape_source_up", "gauge", "up", "Whether the source answered in time with a whole exposition."),
    ("meshscrape_source_scrape_duration_seconds", "gauge", "seconds", "How long the source took."),
    ("meshscrape_source_bytes", "gauge", "bytes", "Bytes that the source sent in this scrape, decoded."),
    ("meshscrape_source_series", "gauge", "series", "Series of the source in this scrape."),
    (
        "meshscrape_source_dropped_families_total",
        "counter",
        "dropped_families_total",
        "Families left out because another source has their names, or there were too many.",
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
        "Expositions cut by the connection, the deadline or a limit.",
    ),
)
_FORMAT = (
    "meshscrape_source_format",
    "Always 1; the format that the source answers when it is offered protobuf (text: it was not).",
)
_HIDDEN = (
    "meshscrape_source_hidden_families",
    "Families of the source left out of this scrape because of `by`: prometheus (names that Prometheus adds "
    "itself), agent, an earlier source, or limit.",
)
_HIDDEN_INFO = (
    "meshscrape_source_hidden_family_info",
    "Always 1; the first families that are left out, by name.",
)
_PROBLEM = ("meshscrape_source_problem_info", "Always 1; why a source is down.")
MAX_PROBLEM = 120


def health_names() -> list[tuple[bytes, bytes]]:
    """Return (name, type) of every family of `health_families`, to reserve in a merge."""
    labelled = [(name.encode(), b"gauge") for name, _ in (_FORMAT, _HIDDEN, _HIDDEN_INFO, _PROBLEM)]
    return [(name.encode(), kind.encode()) for name, kind, _, _ in _HEALTH] + labelled


def health_families(sources: Iterable[SourceHealth]) -> list[Family]:
    """Return the families that describe the health of each source, in the order of the sources."""
    healths = list(sources)
    labelled = [({"source": one.name}, one) for one in healths]
    families = [
        Family(name, kind, text, [(labels, float(getattr(one, field))) for labels, one in labelled])
        for name, kind, field, text in _HEALTH
    ]
    return [
        *families,
        Family(
            _FORMAT[0], "gauge", _FORMAT[1], [({"source": h.name, "format": h.format}, 1) for h in healths]
        ),
        Family(
            _HIDDEN[0],
            "gauge",
            _HIDDEN[1],
            [
                ({"source": h.name, "by": by}, count)
                for h in healths
                for by, count in sorted(h.hidden.items())
            ],
        ),
        Family(
            _HIDDEN_INFO[0],
            "gauge",
            _HIDDEN_INFO[1],
            [
                ({"source": h.name, "family": family, "by": by}, 1)
                for h in healths
                for family, by in h.hidden_names
            ],
        ),
        Family(
            _PROBLEM[0],
            "gauge",
            _PROBLEM[1],
            [({"source": h.name, "problem": h.problem[:MAX_PROBLEM]}, 1) for h in healths if h.problem],
        ),
    ]


def render_families(families: Iterable[Family]) -> bytes:
    """Return `families` in the text format, without the families that have no samples."""
    lines: list[str] = []
    last: Mapping[str, str] | str | None = None
    text = ""
    for family in families:
        if not family.samples:
            continue
        lines.append(_metadata_text(family.name, family.kind, family.help))
        for labels, value in family.samples:
            if labels is not last:  # the families of one source's health share its labels
                last, text = labels, labels if isinstance(labels, str) else label_text(labels)
            lines.append(f"{family.name}{text} {_number(value)}\n")
    return "".join(lines).encode()


@lru_cache(maxsize=128)
def _metadata_text(name: str, kind: str, text: str) -> str:
    """Return the HELP and TYPE lines of a family. They are the same in every scrape."""
    return f"# HELP {name} {_escaped(text, quotes=False)}\n# TYPE {name} {kind}\n"


def label_text(labels: Mapping[str, str]) -> str:
    """Return the labels as they follow a sample's name, with braces; empty without labels."""
    pairs = ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(text: str, *, quotes: bool) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quotes else escaped


def _number(value: float) -> str:
    value = float(value)
    if -1e15 < value < 1e15:
        return str(int(value)) if value.is_integer() else repr(value)
    if value != value:
        return "NaN"
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value) or repr(value)
