"""Build the port where other scrape proxies ask for the targets of this one, over mutual TLS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshscrape.envoy import bounds
from meshscrape.envoy.metrics_listeners import CONNECTION_LOGS, DENIAL_LOG, SERVER
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
from meshscrape.envoy.resources.values import Resource, pipe_address
from meshscrape.istio.allow_list import SpiffeScraper
from meshscrape.spiffe.ids import SpiffeId

LISTENER = "shared_targets"
_REFUSED = (
    "403 refused: the client certificate names URI %DOWNSTREAM_PEER_URI_SAN%, which is not this proxy's own "
    "SPIFFE ID, and --share-with does not name it.\n"
)


@dataclass(frozen=True, slots=True)
class SharedTargets:
    """How a scrape proxy shares its targets with other scrape proxies, its followers.

    Envoy listens on `address`:`port` and lets the SPIFFE IDs `followers` read `paths`. It asks the process
    behind the Unix socket `socket`, which has the targets.
    """

    address: str
    port: int
    followers: tuple[SpiffeId, ...]
    paths: tuple[str, ...]
    socket: str


def shared_listener(shared: SharedTargets, certificate: Resource, roots: Resource) -> Resource:
    """Return the listener, which answers GET and HEAD of `shared.paths` to `shared.followers` only.

    `certificate` and `roots` are the references of the proxy's own secrets.
    """
    allowed = authorization.scrapers_filter([SpiffeScraper(follower) for follower in shared.followers])
    manager = http.Manager(
        name=LISTENER,
        routes=_routes(shared.paths),
        limits=bounds.METRICS,
        filters=(
            {"name": "envoy.filters.http.rbac", "typed_config": allowed},
            client_keys.strong_chains_only(),
        ),
        replies=(
            http.reply(403, _REFUSED),
            http.reply(404, "404 nothing here: this port serves targets only.\n"),
            http.reply(503, "503 unavailable: %RESPONSE_CODE_DETAILS%\n"),
        ),
        access_log=(logs.error_log(400, DENIAL_LOG),),
        server=SERVER,
        client_certificate="chain",
    )
    socket = tls.mutual_tls_server(certificate, roots)
    chain = listeners.filter_chain(http.connection_manager(manager), transport_socket=socket)
    return listeners.listener(LISTENER, [shared.address], shared.port, [chain], access_log=CONNECTION_LOGS)


def shared_cluster(shared: SharedTargets) -> Resource:
    """Return the cluster of the process that has the targets."""
    return clusters.static_cluster(
        LISTENER,
        pipe_address(shared.socket),
        bounds.SECURE_BREAKER,
        connect_timeout=bounds.LOCAL_CONNECT_TIMEOUT,
    )


def _routes(paths: Sequence[str]) -> Resource:
    table: list[Resource] = []
    for path in paths:
        table += [routes.get_route(path, LISTENER, bounds.SCRAPE_TIMEOUT), routes.other_methods(path)]
    return routes.route_configuration(LISTENER, table, hidden=[client_keys.CLIENT_HEADER])
