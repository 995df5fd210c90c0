"""Build the proxy's own ports: statistics, merged metrics and health, in plaintext and over mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshscrape.envoy import bounds, names
from meshscrape.envoy.options import SidecarOptions
from meshscrape.envoy.resources import (
    authorization,
    client_keys,
    clusters,
    http,
    listeners,
    logs,
    routes,
    tls,
)
from meshscrape.envoy.resources.values import Resource, pipe_address, socket_address
from meshscrape.istio.names import MERGED_PATH

SERVER = "meshscrape"
STATS_PATHS = (MERGED_PATH,)
MERGED_PATHS = (MERGED_PATH, "/metrics")
HEALTH_PATHS = ("/healthz/ready",)
# Envoy's statistics take options in the query; this one (series that were ever used) is Istio's and harmless.
STATS_QUERIES = ("usedonly",)

_REFUSED = (
    "403 refused: the client certificate names URI %DOWNSTREAM_PEER_URI_SAN%, DNS %DOWNSTREAM_PEER_DNS_SAN%, "
    "and MESHSCRAPE_SCRAPERS of {node} does not list it, or its chain has a short key "
    "(%RESPONSE_CODE_DETAILS%). A certificate must have exactly one such name, "
    "an RSA key at least 2048 bits.\n"
)
DENIAL_LOG = {
    "time": "%START_TIME%",
    "event": "refused",
    "port": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "uri_san": "%DOWNSTREAM_PEER_URI_SAN%",
    "dns_san": "%DOWNSTREAM_PEER_DNS_SAN%",
    "serial": "%DOWNSTREAM_PEER_SERIAL%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH):256%",
    "status": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
}
_CONNECTION = {
    "time": "%START_TIME%",
    "port": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "uri_san": "%DOWNSTREAM_PEER_URI_SAN%",
    "dns_san": "%DOWNSTREAM_PEER_DNS_SAN%",
}
CONNECTION_LOGS = (
    logs.handshake_log(
        {**_CONNECTION, "event": "handshake failed", "reason": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"}
    ),
    logs.connection_denial_log(
        {**_CONNECTION, "event": "refused", "reason": "the client's RSA key has fewer than 2048 bits"}
    ),
)
"""A line for each connection to a secure port that ended before its first request was read."""


@dataclass(frozen=True, slots=True)
class MetricsPort:
    """A port of the proxy itself. Each has a cluster of its own, so that no port can starve another."""

    name: str
    addresses: tuple[str, ...]
    port: int
    paths: tuple[str, ...]
    upstream: Resource
    secure: bool
    queries: tuple[str, ...] = ()


def metrics_ports(options: SidecarOptions) -> tuple[MetricsPort, ...]:
    """Return the ports that are on, with the addresses where they are open."""
    return tuple(port for port in _ports(options) if port.port and port.addresses)


def _ports(options: SidecarOptions) -> Iterator[MetricsPort]:
    pod = options.pod_addresses
    admin = pipe_address(options.admin_socket)
    agent = socket_address(options.inside_address, options.merged_port)
    closed = options.localhost_only
    stats = (options.inside_address,) if closed else options.everywhere
    # The agent itself has the merged port of the inside address.
    merged = () if closed else tuple(address for address in pod if address != options.inside_address)
    yield MetricsPort("metrics", stats, options.stats_port, STATS_PATHS, admin, False, STATS_QUERIES)
    yield MetricsPort("merged_metrics", merged, options.merged_port, MERGED_PATHS, agent, False)
    yield MetricsPort("health", pod, options.health_port, HEALTH_PATHS, agent, False)
    yield MetricsPort(
        "secure_metrics", pod, options.secure_stats_port, STATS_PATHS, admin, True, STATS_QUERIES
    )
    yield MetricsPort("secure_merged_metrics", pod, options.secure_merged_port, MERGED_PATHS, agent, True)


def metrics_listener(options: SidecarOptions, port: MetricsPort) -> Resource:
    """Return the listener of one port: exact paths, GET and HEAD, and bounds on what a client can hold."""
    name = f"{port.name}_{port.port}"
    manager = http.Manager(
        name=name,
        routes=_routes(name, port),
        limits=bounds.METRICS,
        filters=_filters(options, port),
        replies=_replies(options, port),
        access_log=(logs.error_log(400, DENIAL_LOG),) if port.secure else (),
        server=SERVER,
        client_certificate="chain" if port.secure else "",
    )
    socket = (
        tls.mutual_tls_server(names.certificate(options), names.scraper_roots(options))
        if port.secure
        else None
    )
    chain = listeners.filter_chain(
        http.connection_manager(manager),
        transport_socket=socket,
    )
    failures = CONNECTION_LOGS if port.secure else ()
    return listeners.listener(name, port.addresses, port.port, [chain], access_log=failures)


def metrics_cluster(port: MetricsPort) -> Resource:
    """Return the cluster behind one port."""
    return clusters.static_cluster(
        port.name,
        port.upstream,
        bounds.SECURE_BREAKER if port.secure else bounds.PLAINTEXT_BREAKER,
        connect_timeout=bounds.LOCAL_CONNECT_TIMEOUT,
    )


def _routes(name: str, port: MetricsPort) -> Resource:
    table: list[Resource] = []
    for path in port.paths:
        table.append(routes.get_route(path, port.name, bounds.SCRAPE_TIMEOUT, port.queries))
        table.append(routes.other_methods(path))
    return routes.route_configuration(name, table, hidden=[client_keys.CLIENT_HEADER])


def _filters(options: SidecarOptions, port: MetricsPort) -> tuple[Resource, ...]:
    scrapers = authorization.watched_filter(
        names.SCRAPERS_FILTER, f"{options.files_dir}/{names.SCRAPERS_FILE}"
    )
    secure = (scrapers, client_keys.strong_chains_only())
    return (secure if port.secure else ()) + http.compressors()


def _replies(options: SidecarOptions, port: MetricsPort) -> tuple[Resource, ...]:
    served = _listed(port.paths)
    replies = (
        http.reply(404, f"404 nothing here: this port serves {served} only.\n"),
        http.reply(405, "405 refused: this port answers GET and HEAD only.\n"),
        http.reply(503, "503 unavailable: %RESPONSE_CODE_DETAILS%\n"),
    )
    if not port.secure:
        return replies
    node = options.node_id.replace("%", "%%")
    return (*replies, http.reply(403, _REFUSED.format(node=node)))


def _listed(paths: Sequence[str]) -> str:
    return " and ".join(paths)
