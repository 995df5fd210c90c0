"""Negotiate the exposition format: what a scraper accepts, what a source is asked for, what it declares.

A scraper gets text unless it prefers protobuf to text; Prometheus does when it is configured to ingest native
histograms. OpenMetrics is never requested and never written, because its only gain over text is exemplars,
which protobuf carries too. When a source sends it anyway, it is converted to text. The media types:
https://prometheus.io/docs/instrumenting/content_negotiation/.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache


class Format(enum.Enum):
    """The formats that this package reads and writes; the value is the exact `Content-Type`."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

    @property
    def label(self) -> str:
        """Return the format's name as the value of a metric label."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Declared:
    """What a source's `Content-Type` declares about its body, and how to read it.

    `certain`: the type is one of expositions, not a generic one. `openmetrics`: convert the body to text.
    """

    format: Format
    certain: bool = True
    openmetrics: bool = False


_PROTOBUF = "application/vnd.google.protobuf"
_FAMILIES = {"proto": "io.prometheus.client.metricfamily", "encoding": "delimited"}
_TEXT_VERSIONS = ("", "0.0.4", "1.0.0")
_OPENMETRICS_VERSIONS = ("", "0.0.1", "1.0.0")
# Java's servlet containers declare ISO-8859-1 for everything they send. Prometheus ignores the charset too.
_CHARSETS = ("", "utf-8", "utf8", "us-ascii", "iso-8859-1")
# Types that some frameworks declare by default for text; Prometheus 2 accepts them.
_CARELESS_TYPES = ("text/html", "application/json", "application/octet-stream")


@lru_cache(maxsize=16)
def choose(accept: str | None) -> Format:
    """Return the format for this `Accept` header: protobuf if it is listed with at least the weight of text.

    Everything else gets text, also a malformed header: a scrape is never refused because of its header.
    """
    best = dict.fromkeys(Format, 0.0)
    for entry in accept.split(",") if accept else ():
        media, parameters = _media_type(entry)
        quality = _quality(parameters.get("q", "1"))
        if media == _PROTOBUF and _FAMILIES.items() <= parameters.items():
            best[Format.PROTOBUF] = max(best[Format.PROTOBUF], quality)
        elif media in ("text/plain", "text/*", "*/*"):
            best[Format.TEXT] = max(best[Format.TEXT], quality)
    preferred = best[Format.PROTOBUF] > 0 and best[Format.PROTOBUF] >= best[Format.TEXT]
    return Format.PROTOBUF if preferred else Format.TEXT


def content_type(chosen: Format) -> str:
    """Return the exact `Content-Type` of an answer; Prometheus 3 refuses a scrape without a valid one."""
    return chosen.value


def accept_header(chosen: Format) -> str:
    """Return the `Accept` header for a source: text alone, or protobuf before text."""
    text = "text/plain;version=0.0.4"
    if chosen is Format.TEXT:
        return text
    return f"{_PROTOBUF};proto=io.prometheus.client.MetricFamily;encoding=delimited,{text};q=0.5"


def declared_format(content_type: str) -> Declared | None:
    """Return what a source's `Content-Type` declares; None if the body is not an exposition.

    A body without the header counts as text, as in Prometheus 2; so does `text/plain` without a version.
    """
    if not content_type.strip():
        return Declared(Format.TEXT)
    media, parameters = _media_type(content_type)
    if media == _PROTOBUF:
        return Declared(Format.PROTOBUF) if _FAMILIES.items() <= parameters.items() else None
    if parameters.get("charset", "") not in _CHARSETS:
        return None
    if media == "application/openmetrics-text":
        known = parameters.get("version", "") in _OPENMETRICS_VERSIONS
        return Declared(Format.TEXT, openmetrics=True) if known else None
    if media == "text/plain":
        return Declared(Format.TEXT) if parameters.get("version", "") in _TEXT_VERSIONS else None
    return Declared(Format.TEXT, certain=False) if media in _CARELESS_TYPES else None


def _media_type(text: str) -> tuple[str, dict[str, str]]:
    media, *rest = text.split(";")
    pairs = (part.partition("=") for part in rest)
    return media.strip().lower(), {
        key.strip().lower(): value.strip().strip('"').lower() for key, _, value in pairs
    }


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0
