"""Routes and what is said to requests that match none."""

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
    """GET and HEAD of exactly `path`, without a query or with exactly one of `queries`.

    The `:path` header is compared as a whole, so that no query reaches a server that gives it a meaning.
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


def proxied_host(authority: str, routes: Sequence[Resource]) -> Resource:
    """The virtual host of requests for exactly `authority` (`IP:port`)."""
    return {"name": authority, "domains": [authority], "routes": list(routes)}


def proxied_route(path: str, cluster: str, timeout: float) -> Resource:
    """Exactly `path` to `cluster`.

    Method and query are not looked at: `authorization.only_plain_gets` does that, once for all routes.
    There may be many thousands of these: what the cluster can say, the route does not repeat.
    """
    return {"match": {"path": path}, "route": {"cluster": cluster, "timeout": seconds(timeout)}}


def proxied_routes(
    name: str, hosts: Sequence[Resource], *, hidden: Sequence[str], unanswerable: Sequence[str]
) -> Resource:
    """The RDS resource of a forward proxy that leads to `hosts` alone; anything else is 404 ("unknown").

    `hidden` request headers are kept from the servers, `unanswerable` response headers from the client.
    """
    nowhere = {"name": "unknown", "match": {"prefix": "/"}, "direct_response": {"status": 404}}
    rest = {"name": "unknown", "domains": ["*"], "routes": [nowhere]}
    return typed(
        "envoy.config.route.v3.RouteConfiguration",
        name=name,
        virtual_hosts=[*hosts, rest],
        request_headers_to_remove=list(hidden),
        response_headers_to_remove=list(unanswerable),
    )


def other_methods(path: str) -> Resource:
    """405 for what `get_route` does not take of `path` because of its method."""
    wanted = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}, "invert_match": True}
    return {
        "match": {"path": path, "headers": [wanted]},
        "direct_response": {"status": 405},
        "response_headers_to_add": [{"header": {"key": "allow", "value": "GET, HEAD"}}],
    }


def prefix_route(prefix: str, cluster: str) -> Resource:
    """Everything below `prefix`, all methods, answers of any length in time."""
    return {"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": seconds(0)}}


def route_configuration(name: str, routes: Sequence[Resource]) -> Resource:
    """One virtual host for every `Host`; the first of the `routes` that matches is taken."""
    host = {"name": name, "domains": ["*"], "routes": list(routes)}
    return {"name": name, "virtual_hosts": [host], "validate_clusters": True}


def _targets(path: str, queries: Sequence[str]) -> str:
    if not queries:
        return re.escape(path)
    return f"{re.escape(path)}(\\?({'|'.join(re.escape(query) for query in queries)}))?"
