"""Build listeners and their filter chains."""

from __future__ import annotations

from collections.abc import Sequence

from meshscrape.envoy.resources.values import Resource, seconds, socket_address, typed

BUFFER_BYTES = 1 << 20
HANDSHAKE_TIMEOUT = 5.0
_HCM = "envoy.filters.network.http_connection_manager"
_SHARE = "envoy.extensions.filters.network.connection_limit"


def listener(
    name: str,
    addresses: Sequence[str],
    port: int,
    chains: Sequence[Resource],
    *,
    inspect_tls: bool = False,
    access_log: Sequence[Resource] = (),
) -> Resource:
    """Return a listener on the same `port` of one or several addresses; no other process can share it.

    With `inspect_tls` the first bytes of a connection decide which of the `chains` it matches.
    Envoy writes the `access_log` when a connection ends.
    """
    first, *others = addresses
    resource: Resource = {
        "name": name,
        "stat_prefix": name,
        "address": socket_address(first, port),
        "filter_chains": list(chains),
        # With SO_REUSEPORT a second process could bind the port and would silently get some connections.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "access_log": list(access_log),
    }
    if others:
        resource["additional_addresses"] = [{"address": socket_address(other, port)} for other in others]
    if inspect_tls:
        inspector = typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector")
        resource["listener_filters"] = [
            {"name": "envoy.filters.listener.tls_inspector", "typed_config": inspector}
        ]
        resource["listener_filters_timeout"] = seconds(HANDSHAKE_TIMEOUT)
    return resource


def connection_limit(name: str, limit: int) -> tuple[str, int]:
    """Return the runtime key and value that bound the open connections of the listener `name`."""
    return f"envoy.resource_limits.listener.{name}.connection_limit", limit


def connection_share(name: str, limit: int) -> Resource:
    """Return the network filter that closes a connection when its filter chain already has `limit` of them.

    It counts from the first packet on, so it cannot tell which clients of a TLS chain will authenticate.
    """
    config = typed(f"{_SHARE}.v3.ConnectionLimit", stat_prefix=name, max_connections=limit)
    return {"name": "envoy.filters.network.connection_limit", "typed_config": config}


def filter_chain(
    manager: Resource,
    *,
    transport_socket: Resource | None = None,
    protocol: str | None = None,
    before: Sequence[Resource] = (),
) -> Resource:
    """Return a filter chain for HTTP, over `transport_socket` or in plaintext.

    `protocol` ("tls" or "raw_buffer") selects the connections where the listener inspects their first bytes.
    The network filters `before` see each connection first.
    """
    chain: Resource = {"filters": [*before, {"name": _HCM, "typed_config": manager}]}
    if transport_socket is not None:
        chain["transport_socket"] = transport_socket
        chain["transport_socket_connect_timeout"] = seconds(HANDSHAKE_TIMEOUT)
    if protocol is not None:
        chain["filter_chain_match"] = {"transport_protocol": protocol}
        chain["name"] = protocol
    return chain
