"""Build clusters: where a listener's requests go."""

from __future__ import annotations

from dataclasses import dataclass

from meshscrape.envoy.resources.values import Resource, seconds, typed

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class Breaker:
    """How much one cluster may carry at once: connections, requests waiting for one, requests, retries."""

    connections: int
    pending: int
    requests: int
    retries: int = 0


def static_cluster(
    name: str,
    address: Resource,
    breaker: Breaker,
    *,
    connect_timeout: float,
    transport_socket: Resource | None = None,
    http2: bool = False,
    idle_timeout: float | None = None,
) -> Resource:
    """Return a cluster of one endpoint at a fixed `address`.

    Times are in seconds. `connect_timeout` includes TLS. Idle connections are closed after `idle_timeout`,
    by default after Envoy's own hour.
    """
    endpoint = {"endpoint": {"address": address}}
    protocol: Resource = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    options = typed(_OPTIONS, explicit_http_config=protocol)
    if idle_timeout is not None:
        options["common_http_protocol_options"] = {"idle_timeout": seconds(idle_timeout)}
    cluster: Resource = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": seconds(connect_timeout),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [_thresholds(breaker)]},
        "per_connection_buffer_limit_bytes": 1 << 20,
        "typed_extension_protocol_options": {_OPTIONS: options},
    }
    if transport_socket is not None:
        cluster["transport_socket"] = transport_socket
    return cluster


def addressed_cluster(
    name: str,
    transport_socket: Resource,
    breaker: Breaker,
    *,
    connect_timeout: float,
    idle_timeout: float,
    connection_duration: float,
    requests_per_connection: int = 0,
) -> Resource:
    """Return a cluster that connects to the address (`IP:port`) in the request's `:authority`.

    It connects to any address, so only routes that match an exact authority may lead to it. Connections are
    kept for `idle_timeout` seconds and used for at most `connection_duration` seconds, and
    `requests_per_connection` requests if that is not 0. `connect_timeout` includes TLS. A request is tried a
    second time after a broken connection: it may have met the end of an idle one.
    """
    common: Resource = {
        "idle_timeout": seconds(idle_timeout),
        "max_connection_duration": seconds(connection_duration),
    }
    if requests_per_connection:
        common["max_requests_per_connection"] = requests_per_connection
    options = typed(
        _OPTIONS,
        common_http_protocol_options=common,
        retry_policy={"retry_on": "reset", "num_retries": 1},
        explicit_http_config={"http_protocol_options": {}},
    )
    return typed(
        "envoy.config.cluster.v3.Cluster",
        name=name,
        type="ORIGINAL_DST",
        lb_policy="CLUSTER_PROVIDED",
        original_dst_lb_config={"use_http_header": True, "http_header_name": ":authority"},
        # An address is remembered after its last request for longer than its connections are kept.
        cleanup_interval=seconds(2 * idle_timeout),
        connect_timeout=seconds(connect_timeout),
        circuit_breakers={"thresholds": [_thresholds(breaker)]},
        per_connection_buffer_limit_bytes=1 << 20,
        transport_socket=transport_socket,
        typed_extension_protocol_options={_OPTIONS: options},
    )


def _thresholds(breaker: Breaker) -> Resource:
    return {
        "max_connections": breaker.connections,
        "max_pending_requests": breaker.pending,
        "max_requests": breaker.requests,
        "max_retries": breaker.retries,
    }
