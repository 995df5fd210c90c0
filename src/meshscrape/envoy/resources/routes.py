"""Build routes, and the answers to requests that match none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from meshscrape.envoy.resources.values import Resource, seconds, typed


@dataclass(frozen=True, slots=True)
class WatchedRoutes:
    """The route configuration `name` in the RDS file at `path`, followed while Envoy runs."""

    name: str
    path: str


def get_route(path: str, cluster: str, timeout: float, queries: Sequence[str] = ()) -> Resource:
    """Return the route of GET and HEAD of exactly `path`, without a query or with exactly one of `queries`.

    The whole `:path` header is compared, so that no other query reaches a server that would interpret it.
    """
    return {
        "match": {
            "path": path,
            "headers": [
                {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}},
                {"name": ":path", "string_match": {"safe_regex": {"regex": _targets(path, queries)}}},
            ],
        },
        "route": {"cluster": cluster, "timeout": seconds(timeout)},
    }


def proxied_host(name: str, authorities: Sequence[str], routes: Sequence[Resource]) -> Resource:
    """Return the virtual host of requests for exactly one of `authorities` (`IP:port`)."""
    return {"name": name, "domains": list(authorities), "routes": list(routes)}


def proxied_route(path: str, cluster: str, timeout: float) -> Resource:
    """Return the route of exactly `path` to `cluster`.

    `authorization.only_plain_gets` checks method and query once for all routes. There may be many thousands
    of these routes, so settings of the cluster are not repeated here.
    """
    return {"match": {"path": path}, "route": {"cluster": cluster, "timeout": seconds(timeout)}}


def proxied_routes(
    name: str,
    hosts: Sequence[Resource],
    *,
    hidden: Sequence[str],
    unanswerable: Sequence[str],
    added: Sequence[Resource] = (),
) -> Resource:
    """Return the RDS resource of a forward proxy that leads to `hosts` only; all else is 404 ("unknown").

    `hidden` request headers are kept from the servers, `unanswerable` response headers from the client;
    `added` response headers are written into the servers' answers.
    """
    nowhere = {"name": "unknown", "match": {"prefix": "/"}, "direct_response": {"status": 404}}
    rest = {"name": "unknown", "domains": ["*"], "routes": [nowhere]}
    return typed(
        "envoy.config.route.v3.RouteConfiguration",
        name=name,
        virtual_hosts=[*hosts, rest],
        request_headers_to_remove=list(hidden),
        response_headers_to_remove=list(unanswerable),
        response_headers_to_add=list(added),
    )


def other_methods(path: str) -> Resource:
    """Return the route that answers 405 to methods of `path` that `get_route` does not match."""
    wanted = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}, "invert_match": True}
    return {
        "match": {"path": path, "headers": [wanted]},
        "direct_response": {"status": 405},
        "response_headers_to_add": [{"header": {"key": "allow", "value": "GET, HEAD"}}],
    }


def prefix_route(prefix: str, cluster: str) -> Resource:
    """Return the route of everything below `prefix`: all methods, and answers without a time limit."""
    return {"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": seconds(0)}}


def route_configuration(
    name: str, routes: Sequence[Resource], *, hidden: Sequence[str] = (), added: Sequence[Resource] = ()
) -> Resource:
    """Return one virtual host for every `Host`. The first of the `routes` that matches is used.

    `hidden` request headers are kept from the servers, `added` response headers are written into answers.
    """
    host = {"name": name, "domains": ["*"], "routes": list(routes)}
    headers = {"request_headers_to_remove": list(hidden), "response_headers_to_add": list(added)}
    configuration: Resource = {"name": name, "virtual_hosts": [host], "validate_clusters": True}
    return configuration | {key: value for key, value in headers.items() if value}


def _targets(path: str, queries: Sequence[str]) -> str:
    if not queries:
        return re.escape(path)
    return f"{re.escape(path)}(\\?({'|'.join(re.escape(query) for query in queries)}))?"
