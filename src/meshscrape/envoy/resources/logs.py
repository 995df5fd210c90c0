"""Build access logs of JSON lines. JSON is escaped, so no name in a request can forge a line."""

from __future__ import annotations

from collections.abc import Mapping

from meshscrape.envoy.resources.values import Resource, typed

DENIED = "response.code_details.startsWith('rbac_access_denied')"
"""A CEL condition: an RBAC filter refused the request."""


def error_log(lowest_status: int, fields: Mapping[str, str]) -> Resource:
    """Return the log with a line for each answer with `lowest_status` or above; `fields` are formats."""
    comparison = {"op": "GE", "value": {"default_value": lowest_status, "runtime_key": "error_log"}}
    return _standard_error({"status_code_filter": {"comparison": comparison}}, fields)


def denial_log(fields: Mapping[str, str]) -> Resource:
    """Return the log with a line for each request that an RBAC filter refused."""
    return _standard_error(condition(DENIED), fields)


def handshake_log(fields: Mapping[str, str]) -> Resource:
    """Return the log with a line for each connection whose TLS handshake failed."""
    return _standard_error(condition("connection.transport_failure_reason != ''"), fields)


def connection_denial_log(fields: Mapping[str, str]) -> Resource:
    """Return the log with a line for each connection that a network RBAC filter closed."""
    return _standard_error(condition("connection.termination_details.startsWith('rbac_')"), fields)


def standard_output_log(fields: Mapping[str, str]) -> Resource:
    """Return the log with a line for each answer, on Envoy's standard output as it was inherited."""
    log = typed(
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": dict(fields)}
    )
    return {"name": "envoy.access_loggers.stdout", "typed_config": log}


def file_log(path: str, fields: Mapping[str, str]) -> Resource:
    """Return the log with a line for each answer, in the file or named pipe at `path`."""
    log = typed(
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=path,
        log_format={"json_format": dict(fields)},
    )
    return {"name": "envoy.access_loggers.file", "typed_config": log}


def condition(expression: str) -> Resource:
    """Return the access log filter that passes when the CEL `expression` is true."""
    config = typed("envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", expression=expression)
    name = "envoy.access_loggers.extension_filters.cel"
    return {"extension_filter": {"name": name, "typed_config": config}}


def _standard_error(when: Resource, fields: Mapping[str, str]) -> Resource:
    return {
        "name": "envoy.access_loggers.stderr",
        "filter": when,
        "typed_config": typed(
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
            log_format={"json_format": dict(fields)},
        ),
    }
