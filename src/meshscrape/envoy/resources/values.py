"""Build the small values of Envoy resources (protobuf's JSON form)."""

from __future__ import annotations

from collections.abc import Iterable

Resource = dict[str, object]

_TYPE_PREFIX = "type.googleapis.com/"


def typed(message: str, **fields: object) -> Resource:
    """Return a `google.protobuf.Any` with the protobuf `message` (its full name) and its `fields`."""
    return {"@type": type_url(message), **fields}


def type_url(message: str) -> str:
    """Return the type URL of the protobuf `message` (its full name)."""
    return _TYPE_PREFIX + message


def seconds(amount: float) -> str:
    """Return a `google.protobuf.Duration` of `amount` seconds. Zero turns most of Envoy's timeouts off."""
    return f"{amount:.9f}".rstrip("0").rstrip(".") + "s"


def socket_address(address: str, port: int) -> Resource:
    """Return a TCP address (config.core.v3.Address). `address` is IPv4, or IPv6 without brackets."""
    return {"socket_address": {"address": address, "port_value": port}}


def pipe_address(path: str, mode: int | None = None) -> Resource:
    """Return a Unix socket (config.core.v3.Pipe). Envoy sets `mode` on a socket that it creates.

    The kernel accepts 107 bytes: pass a path relative to Envoy's working directory.
    """
    pipe: Resource = {"path": path}
    if mode is not None:
        pipe["mode"] = mode
    return {"pipe": pipe}


def file_source(path: str) -> Resource:
    """Return a config.core.v3.ConfigSource: the file at `path`, read again when a rename replaces it."""
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def discovery_response(version: str, resources: Iterable[Resource]) -> Resource:
    """Return the content of a file that Envoy watches (service.discovery.v3.DiscoveryResponse)."""
    return {"version_info": version, "resources": list(resources)}
