"""Which exposition format: what a scraper accepts, what is asked of a source, what an answer says it is.

The formats and their media types: https://prometheus.io/docs/instrumenting/exposition_formats/ and the
OpenMetrics specification, version 1.0.
"""

from __future__ import annotations

import enum


class Format(enum.Enum):
    """The formats that are written and read here; the value is the exact `Content-Type`."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


_OPENMETRICS_VERSIONS = ("", "0.0.1", "1.0.0")
_TEXT_VERSIONS = ("", "0.0.4", "1.0.0")
_CHARSETS = ("", "utf-8", "utf8", "us-ascii")


def choose(accept: str | None, allow_openmetrics: bool) -> Format:
    """The format to answer `accept` with: OpenMetrics only when allowed and preferred to plain text.

    Text is the answer to everything else, also to what cannot be read: a scrape is never refused for it.
    """
    if not allow_openmetrics or not accept:
        return Format.TEXT
    best = {"openmetrics": 0.0, "text": 0.0}
    for entry in accept.split(","):
        media, parameters = _media_type(entry)
        quality = _quality(parameters.get("q", "1"))
        if media == "application/openmetrics-text" and parameters.get("version", "") in _OPENMETRICS_VERSIONS:
            best["openmetrics"] = max(best["openmetrics"], quality)
        elif media in ("text/plain", "text/*", "*/*") and parameters.get("version", "") in _TEXT_VERSIONS:
            best["text"] = max(best["text"], quality)
    preferred = best["openmetrics"] > 0 and best["openmetrics"] >= best["text"]
    return Format.OPENMETRICS if preferred else Format.TEXT


def content_type(chosen: Format) -> str:
    """The exact `Content-Type` of an answer; Prometheus 3 refuses a scrape without a valid one."""
    return chosen.value


def accept_header(chosen: Format) -> str:
    """What to send to an application: only what can be merged into `chosen`, never protobuf."""
    if chosen is Format.OPENMETRICS:
        return "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    return "text/plain;version=0.0.4"


def source_format(declared: str) -> Format | None:
    """What a source's `Content-Type` says that its body is; None for what is no exposition.

    A source without the header is taken for text, as Prometheus 2 does; so is `text/plain` of no version.
    """
    if not declared.strip():
        return Format.TEXT
    media, parameters = _media_type(declared)
    version = parameters.get("version", "")
    if parameters.get("charset", "") not in _CHARSETS:
        return None
    if media == "application/openmetrics-text":
        return Format.OPENMETRICS if version in _OPENMETRICS_VERSIONS else None
    if media == "text/plain":
        return Format.TEXT if version in _TEXT_VERSIONS else None
    return None


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
