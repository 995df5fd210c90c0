"""Build application traffic: a sidecar's inbound ports, a gateway's routes."""

from __future__ import annotations

from typing import Literal

from meshscrape.envoy import bounds, names
from meshscrape.envoy.metrics_listeners import CONNECTION_LOGS, DENIAL_LOG
from meshscrape.envoy.options import GatewayRoute, SidecarOptions, Upstream
from meshscrape.envoy.resources import (
    authorization,
    client_keys,
    clusters,
    http,
    listeners,
    logs,
    routes,
    server_keys,
    tls,
)
from meshscrape.envoy.resources.values import Resource, socket_address
from meshscrape.istio.settings import InboundPort

_UPGRADES = ("websocket",)
_REFUSED = (
    "403 refused: the client certificate names URI %DOWNSTREAM_PEER_URI_SAN%. {node} accepts certificates "
    "with exactly one SPIFFE ID, of the trust domain {domain} (%RESPONSE_CODE_DETAILS%).\n"
)
_SHORT_SERVER_KEY = (
    "503 %UPSTREAM_CLUSTER%: the server's RSA key has fewer than 2048 bits; renew its certificate.\n"
)
_FAILURE_LOG = {
    "time": "%START_TIME%",
    "event": "unavailable",
    "port": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH):256%",
    "status": "%RESPONSE_CODE%",
    "upstream": "%UPSTREAM_CLUSTER%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "transport": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}


def inbound_listener(options: SidecarOptions, inbound: InboundPort) -> Resource:
    """Return the listener of one application port, on the pod's addresses, in front of the inside address.

    STRICT accepts mutual TLS only, DISABLE plain HTTP only. PERMISSIVE accepts both and requires a
    certificate from every client that speaks TLS. A certificate must belong to a workload of the mesh.
    """
    name = f"inbound_{inbound.port}"
    secure = _secure_manager(name, options, inbound)
    plain = _inbound_manager(name, inbound_name(inbound), bounds.PLAIN_TRAFFIC)
    socket = tls.mutual_tls_server(names.certificate(options), names.mesh_roots(options))
    share = listeners.connection_share(f"{name}_plaintext", bounds.PLAIN_SHARE)
    keys = client_keys.strong_keys_only()
    match inbound.mode:
        case "STRICT":
            chains = [listeners.filter_chain(secure, transport_socket=socket, before=keys)]
        case "PERMISSIVE":
            chains = [
                listeners.filter_chain(secure, transport_socket=socket, protocol="tls", before=keys),
                listeners.filter_chain(plain, protocol="raw_buffer", before=[share]),
            ]
        case "DISABLE":
            chains = [listeners.filter_chain(plain)]
    return listeners.listener(
        name,
        options.pod_addresses,
        inbound.port,
        chains,
        inspect_tls=inbound.mode == "PERMISSIVE",
        access_log=() if inbound.mode == "DISABLE" else CONNECTION_LOGS,
    )


def inbound_name(inbound: InboundPort) -> str:
    """Return the name of an application port's cluster, spelled as Istio spells it."""
    return f"inbound|{inbound.port}||"


def inbound_cluster(options: SidecarOptions, inbound: InboundPort) -> Resource:
    """Return the application's cluster: HTTP/2 for ports named `http2`, `grpc` or `grpc-…`, as in Istio."""
    return clusters.static_cluster(
        inbound_name(inbound),
        socket_address(options.inside_address, inbound.port),
        bounds.TRAFFIC_BREAKER,
        connect_timeout=bounds.LOCAL_CONNECT_TIMEOUT,
        http2=inbound.name.partition("-")[0] in ("http2", "grpc"),
    )


def gateway_name(port: int) -> str:
    """Return the name of a gateway's listener."""
    return f"gateway_{port}"


def gateway_listener(options: SidecarOptions, port: int) -> Resource:
    """Return the mesh's entrance: plain HTTP from users, routed to workloads by the prefix of the path.

    The longest prefix wins. The order of declaration does not matter.
    """
    name = gateway_name(port)
    ordered = sorted(options.routes, key=lambda route: -len(route.prefix))
    table = [routes.prefix_route(route.prefix, upstream_name(route.upstream)) for route in ordered]
    manager = http.Manager(
        name=name,
        routes=routes.route_configuration(name, table, added=[server_keys.shown_certificate()]),
        limits=bounds.PLAIN_TRAFFIC,
        filters=server_keys.strong_servers_only(),
        replies=(
            http.reply(server_keys.STATUS, _SHORT_SERVER_KEY, status=503),
            http.reply(404, "404 no route of this gateway leads there.\n"),
            http.reply(
                503, "503 %UPSTREAM_CLUSTER%: %RESPONSE_CODE_DETAILS% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n"
            ),
        ),
        access_log=(logs.error_log(500, _FAILURE_LOG),),
        upgrades=_UPGRADES,
        absolute_form=True,
        request_ids=True,
    )
    chain = listeners.filter_chain(http.connection_manager(manager))
    return listeners.listener(name, options.pod_addresses, port, [chain])


def upstream_name(upstream: Upstream) -> str:
    """Return the name of a workload's cluster at a gateway, spelled as Istio spells it."""
    return f"outbound|{upstream.port}||{upstream.name}"


def upstream_cluster(options: SidecarOptions, upstream: Upstream) -> Resource:
    """Return the cluster of a workload behind a gateway: mutual TLS with exactly the expected SPIFFE ID."""
    socket = tls.mutual_tls_client(names.certificate(options), names.mesh_roots(options), upstream.spiffe_id)
    return clusters.static_cluster(
        upstream_name(upstream),
        socket_address(upstream.address, upstream.port),
        bounds.TRAFFIC_BREAKER,
        connect_timeout=bounds.MESH_CONNECT_TIMEOUT,
        idle_timeout=bounds.MESH_IDLE_TIMEOUT,
        transport_socket=socket,
    )


def upstreams(gateway_routes: tuple[GatewayRoute, ...]) -> tuple[Upstream, ...]:
    """Return the workloads that the routes lead to, each once."""
    return tuple(dict.fromkeys(route.upstream for route in gateway_routes))


def _secure_manager(name: str, options: SidecarOptions, inbound: InboundPort) -> Resource:
    node, domain = options.node_id.replace("%", "%%"), options.trust_domain.replace("%", "%%")
    refused = http.denial(403, _REFUSED.format(node=node, domain=domain))
    return _inbound_manager(
        name,
        inbound_name(inbound),
        bounds.TRAFFIC,
        filters=(authorization.members_filter(options.trust_domain),),
        replies=(refused,),
        access_log=(logs.denial_log(DENIAL_LOG),),
        client_certificate="names",
    )


def _inbound_manager(
    name: str,
    cluster: str,
    limits: http.HttpLimits,
    *,
    filters: tuple[Resource, ...] = (),
    replies: tuple[Resource, ...] = (),
    access_log: tuple[Resource, ...] = (),
    client_certificate: Literal["", "names"] = "",
) -> Resource:
    dead = http.reply(503, "503 the application does not answer: %RESPONSE_CODE_DETAILS%\n")
    manager = http.Manager(
        name=name,
        routes=routes.route_configuration(name, [routes.prefix_route("/", cluster)]),
        limits=limits,
        filters=filters,
        replies=(*replies, dead),
        access_log=access_log,
        client_certificate=client_certificate,
        upgrades=_UPGRADES,
        absolute_form=True,
        request_ids=True,
    )
    return http.connection_manager(manager)
