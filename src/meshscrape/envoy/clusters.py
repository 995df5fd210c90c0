"""Clusters: where a listener's requests go."""

from __future__ import annotations

from dataclasses import dataclass

from meshscrape.envoy.values import Resource, seconds, typed

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class Breaker:
    """How much one cluster may carry at once: connections, requests waiting for one, requests."""

    connections: int
    pending: int
    requests: int


def static_cluster(
    name: str,
    address: Resource,
    breaker: Breaker,
    *,
    connect_timeout: float,
    transport_socket: Resource | None = None,
    http2: bool = False,
) -> Resource:
    """A cluster of one endpoint at a fixed `address`; `connect_timeout` in seconds includes TLS."""
    endpoint = {"endpoint": {"address": address}}
    protocol: Resource = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    cluster: Resource = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": seconds(connect_timeout),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [_thresholds(breaker)]},
        "per_connection_buffer_limit_bytes": 1 << 20,
        "typed_extension_protocol_options": {_OPTIONS: typed(_OPTIONS, explicit_http_config=protocol)},
    }
    if transport_socket is not None:
        cluster["transport_socket"] = transport_socket
    return cluster


def _thresholds(breaker: Breaker) -> Resource:
    return {
        "max_connections": breaker.connections,
        "max_pending_requests": breaker.pending,
        "max_requests": breaker.requests,
        "max_retries": 0,
    }
