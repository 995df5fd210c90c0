"""Listeners and their filter chains."""

from __future__ import annotations

from collections.abc import Sequence

from meshscrape.envoy.resources.values import Resource, seconds, socket_address, typed

BUFFER_BYTES = 1 << 20
HANDSHAKE_TIMEOUT = 5.0
_HCM = "envoy.filters.network.http_connection_manager"


def listener(
    name: str,
    addresses: Sequence[str],
    port: int,
    chains: Sequence[Resource],
    *,
    inspect_tls: bool = False,
    access_log: Sequence[Resource] = (),
) -> Resource:
    """A listener on the same `port` of one or several addresses, which nobody can share.

    With `inspect_tls` the first bytes of a connection decide which of the `chains` it matches.
    `access_log` is written when a connection ends.
    """
    first, *others = addresses
    resource: Resource = {
        "name": name,
        "stat_prefix": name,
        "address": socket_address(first, port),
        "filter_chains": list(chains),
        # Two processes that share a port by SO_REUSEPORT each get some of the connections, silently.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "access_log": list(access_log),
    }
    if others:
        resource["additional_addresses"] = [{"address": socket_address(each, port)} for each in others]
    if inspect_tls:
        inspector = typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector")
        resource["listener_filters"] = [
            {"name": "envoy.filters.listener.tls_inspector", "typed_config": inspector}
        ]
        resource["listener_filters_timeout"] = seconds(HANDSHAKE_TIMEOUT)
    return resource


def connection_limit(name: str, limit: int) -> tuple[str, int]:
    """The runtime value that bounds the open connections of the listener `name`."""
    return f"envoy.resource_limits.listener.{name}.connection_limit", limit


def filter_chain(
    manager: Resource, *, transport_socket: Resource | None = None, protocol: str | None = None
) -> Resource:
    """HTTP, over `transport_socket` or in the clear; `protocol` ("tls", "raw_buffer") for inspected ones."""
    chain: Resource = {"filters": [{"name": _HCM, "typed_config": manager}]}
    if transport_socket is not None:
        chain["transport_socket"] = transport_socket
        chain["transport_socket_connect_timeout"] = seconds(HANDSHAKE_TIMEOUT)
    if protocol is not None:
        chain["filter_chain_match"] = {"transport_protocol": protocol}
        chain["name"] = protocol
    return chain
