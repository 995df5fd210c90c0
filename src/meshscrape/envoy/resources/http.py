"""Build HTTP connection managers and their filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from meshscrape.envoy.resources import logs
from meshscrape.envoy.resources.routes import WatchedRoutes
from meshscrape.envoy.resources.values import Resource, file_source, seconds, typed

_FILTERS = "envoy.extensions.filters.http"
_COMPRESSION = "envoy.extensions.compression"
# RFC 9110 names of what the metrics ports serve; parameters are ignored by the comparison.
METRICS_TYPES = ("text/plain", "application/openmetrics-text", "application/vnd.google.protobuf")


# Envoy obeys the x-envoy-* headers of "internal" clients: timeouts, retries, names of statistics. An empty
# list would mean every private and loopback address. No client has this address.
_NOBODY = {"address_prefix": "0.0.0.0", "prefix_len": 32}  # noqa: S104


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of one client. Times are in seconds; None means no limit."""

    headers_kb: int
    headers_count: int
    streams: int
    headers_timeout: float
    request_timeout: float | None
    stream_idle_timeout: float
    idle_timeout: float
    stream_duration: float | None
    connection_duration: float | None
    drain_timeout: float


@dataclass(frozen=True, slots=True)
class Manager:
    """One HTTP connection manager: what differs between ports.

    `client_certificate` sets `x-forwarded-client-cert` anew: with the client's "names", or with its "chain".
    Otherwise the header is removed. `upgrades`
    names protocols such as `websocket`. `server` is the `server` header; None passes the application's on.
    `absolute_form` accepts requests that spell the target as a whole URI, as proxies do. `routes` is a route
    configuration, or a `routes.WatchedRoutes`. `codec` is AUTO, or HTTP1 for a port that never speaks HTTP/2.
    """

    name: str
    routes: Resource | WatchedRoutes
    limits: HttpLimits
    filters: tuple[Resource, ...] = ()
    replies: tuple[Resource, ...] = ()
    access_log: tuple[Resource, ...] = ()
    server: str | None = None
    client_certificate: Literal["", "names", "chain"] = ""
    upgrades: tuple[str, ...] = ()
    absolute_form: bool = False
    request_ids: bool = False
    codec: str = "AUTO"


def connection_manager(manager: Manager) -> Resource:
    """Return an HttpConnectionManager that normalises paths before it routes, and trusts no client header."""
    return typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=manager.name,
        codec_type=manager.codec,
        http_filters=[*manager.filters, router()],
        local_reply_config={"mappers": list(manager.replies)},
        access_log=list(manager.access_log),
        upgrade_configs=[{"upgrade_type": name} for name in manager.upgrades],
        **_routes(manager.routes),
        **_identity(manager),
        **_paths(),
        **_limits(manager),
    )


def _routes(routes: Resource | WatchedRoutes) -> Resource:
    if isinstance(routes, WatchedRoutes):
        return {"rds": {"route_config_name": routes.name, "config_source": file_source(routes.path)}}
    return {"route_config": routes}


def _identity(manager: Manager) -> Resource:
    """Return the settings of headers about the client: Envoy makes them from the connection alone."""
    fields: Resource = {
        "use_remote_address": True,
        "internal_address_config": {"unix_sockets": False, "cidr_ranges": [_NOBODY]},
        "generate_request_id": manager.request_ids,
        "forward_client_cert_details": "SANITIZE_SET" if manager.client_certificate else "SANITIZE",
        "server_header_transformation": "OVERWRITE" if manager.server else "PASS_THROUGH",
    }
    if manager.server:
        fields["server_name"] = manager.server
    match manager.client_certificate:
        case "names":
            fields["set_current_client_cert_details"] = {"uri": True, "dns": True}
        case "chain":
            fields["set_current_client_cert_details"] = {"chain": True}
    return fields


def _paths() -> Resource:
    return {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
    }


def _limits(manager: Manager) -> Resource:
    limits = manager.limits
    common: Resource = {
        "idle_timeout": seconds(limits.idle_timeout),
        "max_headers_count": limits.headers_count,
        # Many servers treat `x_forwarded_client_cert` and `x-forwarded-client-cert` as the same header.
        "headers_with_underscores_action": "DROP_HEADER",
    }
    if limits.connection_duration is not None:
        common["max_connection_duration"] = seconds(limits.connection_duration)
    if limits.stream_duration is not None:
        common["max_stream_duration"] = seconds(limits.stream_duration)
    return {
        "common_http_protocol_options": common,
        "http_protocol_options": {"allow_absolute_url": manager.absolute_form},
        "http2_protocol_options": {
            "max_concurrent_streams": limits.streams,
            "initial_stream_window_size": 65536,
            "initial_connection_window_size": 1 << 20,
        },
        "max_request_headers_kb": limits.headers_kb,
        "request_headers_timeout": seconds(limits.headers_timeout),
        "request_timeout": seconds(limits.request_timeout or 0),
        "stream_idle_timeout": seconds(limits.stream_idle_timeout),
        "drain_timeout": seconds(limits.drain_timeout),
    }


def router() -> Resource:
    """Return the last filter, which adds no `x-envoy-*` headers to answers."""
    config = typed(f"{_FILTERS}.router.v3.Router", suppress_envoy_headers=True)
    return {"name": "envoy.filters.http.router", "typed_config": config}


def client_deadline(header: str, longest: float) -> Resource:
    """Return the HTTP filter that ends a request after the seconds in its `header`, if less than `longest`.

    Envoy takes a request's own time limit from `x-envoy-upstream-rq-timeout-ms`, which this filter writes.
    The connection manager has removed what a client wrote there. A header that is not a number of seconds
    between 0 and `longest` changes nothing. The filter is a script, because no formatter of Envoy can
    multiply.
    """
    script = f"""function envoy_on_request(handle)
  local text = handle:headers():get("{header}")
  local seconds = text and text:match("^%d+%.?%d*$") and tonumber(text)
  if seconds and seconds > 0 and seconds < {longest:g} then
    handle:headers():replace("x-envoy-upstream-rq-timeout-ms", string.format("%d", math.ceil(seconds * 1000)))
  end
end
"""
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": typed(f"{_FILTERS}.lua.v3.Lua", default_source_code={"inline_string": script}),
    }


def compressors(content_types: Sequence[str] = METRICS_TYPES) -> tuple[Resource, ...]:
    """Return gzip and zstd for answers of these `content_types`, as the client's `Accept-Encoding` prefers.

    Neither filter removes that header from the request: otherwise the second filter would never act.
    """
    zstd = typed(f"{_COMPRESSION}.zstd.compressor.v3.Zstd", compression_level=1)
    # The default, 4 kB, costs a quarter more CPU on megabytes of text.
    gzip = typed(f"{_COMPRESSION}.gzip.compressor.v3.Gzip", compression_level="BEST_SPEED", chunk_size=65536)
    return (_compressor("zstd", zstd, content_types), _compressor("gzip", gzip, content_types))


def _compressor(name: str, library: Resource, content_types: Sequence[str]) -> Resource:
    common = {
        "min_content_length": 1024,
        "content_type_matcher": [{"exact": content_type} for content_type in content_types],
    }
    config = typed(
        f"{_FILTERS}.compressor.v3.Compressor",
        response_direction_config={"common_config": common},
        compressor_library={"name": name, "typed_config": library},
    )
    return {"name": f"envoy.filters.http.compressor.{name}", "typed_config": config}


def reply(when: int, text: str, status: int | None = None) -> Resource:
    """Return the reply for Envoy's own answers with the status `when`: plain text, never taken for HTML.

    The client gets `status` if that is given. `text` may hold Envoy's command operators
    (`%RESPONSE_CODE_DETAILS%`); escape a literal `%` as `%%`.
    """
    nosniff = {"header": {"key": "x-content-type-options", "value": "nosniff"}}
    changed: Resource = {} if status is None else {"status_code": status}
    return changed | {
        "filter": {"status_code_filter": {"comparison": _equals(when, f"reply_{when}")}},
        "headers_to_add": [nosniff],
        "body_format_override": {
            "text_format_source": {"inline_string": text},
            "content_type": "text/plain; charset=utf-8",
        },
    }


def denial(status: int, text: str) -> Resource:
    """Return the reply (see `reply`) to requests that an RBAC filter refused with `status`."""
    return {**reply(status, text), "filter": logs.condition(logs.DENIED)}


def refusal(status: int, reason: str, text: str, condition: Resource, header: str) -> Resource:
    """Return the reply of `status` for Envoy's own answers that meet `condition` (an access log filter).

    `header` carries `reason`, so that programs need not read `text` (as in `reply`).
    """
    fields = {"x-content-type-options": "nosniff", header: reason}
    return {
        "filter": condition,
        "status_code": status,
        "headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in fields.items()
        ],
        "body_format_override": {
            "text_format_source": {"inline_string": text},
            "content_type": "text/plain; charset=utf-8",
        },
    }


def _equals(value: int, runtime_key: str) -> Resource:
    return {"op": "EQ", "value": {"default_value": value, "runtime_key": runtime_key}}
