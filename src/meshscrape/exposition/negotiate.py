"""Which exposition format: what a scraper accepts, what is asked of a source, what an answer says it is.

Text is the answer to every scraper but one that prefers protobuf to text: Prometheus does when it is told to
ingest native histograms. OpenMetrics is never asked for nor written, and made text where a source sends it:
its gain over text is exemplars, and protobuf carries those too. The media types:
https://prometheus.io/docs/instrumenting/content_negotiation/.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Format(enum.Enum):
    """The formats that are written and read here; the value is the exact `Content-Type`."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

    @property
    def label(self) -> str:
        """Return the format's name in labels of metrics."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Declared:
    """What a source's `Content-Type` says of its body, and how it is read.

    `certain`: it is a type of expositions, not one of anything at all. `openmetrics`: it is made text first.
    """

    format: Format
    certain: bool = True
    openmetrics: bool = False


_PROTOBUF = "application/vnd.google.protobuf"
_FAMILIES = {"proto": "io.prometheus.client.metricfamily", "encoding": "delimited"}
_TEXT_VERSIONS = ("", "0.0.4", "1.0.0")
_OPENMETRICS_VERSIONS = ("", "0.0.1", "1.0.0")
# Java's servlet containers declare ISO-8859-1 for whatever they send. Prometheus ignores the charset too.
_CHARSETS = ("", "utf-8", "utf8", "us-ascii", "iso-8859-1")
# Types under which frameworks send text without being told to; Prometheus 2 takes them.
_CARELESS_TYPES = ("text/html", "application/json", "application/octet-stream")


def choose(accept: str | None) -> Format:
    """Return the format to answer `accept` with: protobuf only if it is listed and not less wanted than text.

    Text is the answer to everything else, also to what cannot be read: a scrape is never refused for it.
    """
    best = dict.fromkeys(Format, 0.0)
    for entry in (accept or "").split(","):
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
    """Return what to ask a source for: text alone, or protobuf before text."""
    text = "text/plain;version=0.0.4"
    if chosen is Format.TEXT:
        return text
    return f"{_PROTOBUF};proto=io.prometheus.client.MetricFamily;encoding=delimited,{text};q=0.5"


def declared_format(content_type: str) -> Declared | None:
    """Return what a source's `Content-Type` says that its body is; None for what is no exposition.

    A source without the header is taken for text, as Prometheus 2 does; so is `text/plain` of no version.
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
