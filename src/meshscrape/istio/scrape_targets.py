"""The application's own metrics endpoints, which the agent reads on the workload's inside address.

Two spellings exist. Pods carry annotations (`prometheus.istio.io/scrape-targets` since Istio 1.31, the older
`prometheus.io/*` in annotations.py); the injector hands them to the agent as JSON in the environment variable
ISTIO_PROMETHEUS_ANNOTATIONS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshscrape.errors import InputError, Place, Where
from meshscrape.istio.names import ISTIO_PROMETHEUS_ANNOTATIONS, SCRAPE_TARGETS
from meshscrape.istio.ports import parse_port, refuse_reserved, shorten

DEFAULT_PATH = "/metrics"
# pilot-agent uses this port when a pod asks to be scraped and names no port.
DEFAULT_PORT = "80"
MAX_SOURCES = 64

_ANNOTATION_PLACE = Place(annotation=SCRAPE_TARGETS)
_VARIABLE_PLACE = Place(variable=ISTIO_PROMETHEUS_ANNOTATIONS)
_FIELDS = frozenset({"scrape", "path", "port", "scheme"})
_SCHEMES = ("http", "https")
# The characters of RFC 3986 path and query; no fragment, no space, no control character.
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]-]*", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_PATH = 2048


@dataclass(frozen=True, slots=True)
class ScrapeSource:
    """One metrics endpoint of the application, on the workload's inside address."""

    port: int
    path: str = DEFAULT_PATH
    scheme: str = "http"


def parse_prometheus_annotations_env(
    json_text: str, where: Where = _VARIABLE_PLACE
) -> tuple[ScrapeSource, ...]:
    """Return the endpoints that ISTIO_PROMETHEUS_ANNOTATIONS declares, in their order.

    The format is pilot-agent's: an object of strings `scrape`, `path`, `port`, and a list `targets` of
    `port`/`path`, which wins over the single endpoint. `"scrape": "false"` means no endpoint. An empty path
    is /metrics, and an empty port is 80. `scheme` (http or https) is an addition of meshscrape. Empty text
    means no endpoint. Raises InputError at `where` for anything else, for reserved ports and for repeated
    endpoints.
    """
    if not json_text.strip():
        return ()
    declared = _object(_load_json(json_text, where), _FIELDS | {"targets"}, where)
    if _text(declared, "scrape", where) == "false":
        return ()
    targets = declared.get("targets")
    targets = [] if targets is None else targets
    if not isinstance(targets, list):
        raise InputError(
            "targets is not a list",
            where=where,
            remedy='write [{"port": "9090", "path": "/m"}]',
            code="not-a-list",
        )
    if targets:
        places = [Place.of(where).part(f"targets[{index}]") for index in range(len(targets))]
        pairs = list(zip(targets, places, strict=True))
        objects = [_object(item, _FIELDS - {"scrape"}, place) for item, place in pairs]
        sources = [_source(item, place, None) for item, place in zip(objects, places, strict=True)]
    else:
        sources = [_source(declared, where, DEFAULT_PORT)]
    return _distinct(sources, where)


def parse_scrape_targets(text: str, where: Where = _ANNOTATION_PLACE) -> tuple[ScrapeSource, ...]:
    """Return the endpoints of a list `port:path,port:path`, in their order; a missing path is /metrics.

    As in Istio 1.31, spaces around entries and empty entries are ignored. Raises InputError at `where` for
    malformed or reserved ports, malformed paths and repeated endpoints, and for an empty list.
    """
    sources = []
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        port, _, path = (part.strip() for part in entry.partition(":"))
        sources.append(_source({"port": port, "path": path}, where, None))
    if not sources:
        raise InputError(
            "no scrape target is listed",
            where=where,
            remedy="write port:path,port:path or remove it",
            code="no-target",
        )
    return _distinct(sources, where)


def sources_to_env(sources: Iterable[ScrapeSource]) -> str:
    """Return the value of ISTIO_PROMETHEUS_ANNOTATIONS that declares `sources`; empty for none.

    One source is written as Istio before 1.31 understands it, several as `targets`; a scheme is written only
    when it is not http, because Istio's own agent does not know it.
    """
    fields = [_fields(source) for source in sources]
    if not fields:
        return ""
    if len(fields) == 1:
        return json.dumps({"scrape": "true", **fields[0]})
    return json.dumps({"scrape": "true", "path": "", "port": "", "targets": fields})


def make_source(port: str, path: str, scheme: str, where: Where) -> ScrapeSource:
    """Return a source from its texts; an empty path or scheme is the default. Raise InputError at `where`."""
    number = parse_port(port, where)
    refuse_reserved(number, where)
    if scheme not in ("", *_SCHEMES):
        raise InputError(
            f"{shorten(scheme)} is not a scheme",
            where=where,
            remedy="write http or https",
            code="not-a-scheme",
        )
    return ScrapeSource(number, check_path(path or DEFAULT_PATH, where), scheme or "http")


def check_path(path: str, where: Where) -> str:
    """Return `path` if it can be the path (and query) of a URL; else raise InputError at `where`."""
    if len(path) > _MAX_PATH or _PATH.fullmatch(path) is None or _BAD_ESCAPE.search(path):
        raise InputError(
            f"{shorten(path)} is not a path of a URL",
            where=where,
            remedy="begin it with / and leave out spaces, control characters and fragments",
            code="not-a-path",
        )
    return path


def _source(fields: Mapping[str, object], where: Where, default_port: str | None) -> ScrapeSource:
    port = _text(fields, "port", where) or default_port
    if port is None:
        raise InputError("a scrape target has no port", where=where, remedy="write port:path", code="no-port")
    return make_source(port, _text(fields, "path", where), _text(fields, "scheme", where), where)


def _fields(source: ScrapeSource) -> dict[str, str]:
    fields = {"path": source.path, "port": str(source.port)}
    return fields if source.scheme == "http" else {**fields, "scheme": source.scheme}


def _distinct(sources: list[ScrapeSource], where: Where) -> tuple[ScrapeSource, ...]:
    listed: set[tuple[int, str]] = set()
    for source in sources:
        if (source.port, source.path) in listed:
            raise InputError(
                f"{source.port}:{source.path} is listed twice",
                where=where,
                remedy="list each endpoint once",
                code="listed-twice",
            )
        listed.add((source.port, source.path))
    if len(sources) > MAX_SOURCES:
        raise InputError(
            f"{len(sources)} scrape targets are too many",
            where=where,
            remedy=f"list at most {MAX_SOURCES}",
            code="too-many",
        )
    return tuple(sources)


def _load_json(text: str, where: Where) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"not JSON ({error})",
            where=where,
            remedy='write {"scrape": "true", "port": "9080", "path": "/metrics"}',
            code="not-json",
        ) from error


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _object(value: object, fields: frozenset[str], where: Where) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InputError(
            "not a JSON object",
            where=where,
            remedy='write {"port": "9080", "path": "/metrics"}',
            code="not-an-object",
        )
    for key in value:
        if key not in fields:
            raise InputError(
                f"unknown key {shorten(key)}",
                where=where,
                remedy=f"known are {', '.join(sorted(fields))}",
                code="unknown-key",
            )
    return value


def _text(fields: Mapping[str, object], name: str, where: Where) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise InputError(
            f"{name} is not a string", where=where, remedy=f'quote it: "{name}": "…"', code="not-a-string"
        )
    return value
