"""Parse the JSON file with a gateway's routes that MESHSCRAPE_ROUTES names (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from meshscrape.envoy.options import GatewayRoute, Upstream
from meshscrape.errors import InputError
from meshscrape.istio.environment import parse_address
from meshscrape.istio.ports import parse_port
from meshscrape.spiffe.ids import SpiffeId

_REMEDY = (
    'write [{"prefix": "/", "upstream": {"name": "web", "address": "10.0.0.1", "port": 9080, '
    '"spiffeId": "spiffe://…"}}]'
)


def parse_routes(text: bytes, where: str) -> tuple[GatewayRoute, ...]:
    """Return the routes in a JSON list of `{"prefix", "upstream": {"name", "address", "port", "spiffeId"}}`.

    Raises InputError naming `where` and the route for anything else, unknown keys included.
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})", where=where, remedy=_REMEDY) from error
    if not isinstance(items, list):
        raise InputError("not a list of routes", where=where, remedy=_REMEDY)
    return tuple(_route(entry, f"{where}: [{index}]") for index, entry in enumerate(items))


def _route(entry: object, where: str) -> GatewayRoute:
    route = _fields(entry, {"prefix": str, "upstream": dict}, where)
    prefix = route["prefix"]
    if not prefix.startswith("/"):
        raise InputError("the prefix does not begin with /", where=where, remedy=_REMEDY)
    kinds = {"name": str, "address": str, "port": int, "spiffeId": str}
    upstream = _fields(route["upstream"], kinds, f"{where}.upstream")
    return GatewayRoute(
        prefix,
        Upstream(
            upstream["name"],
            parse_address(upstream["address"], f"{where}.upstream.address"),
            parse_port(str(upstream["port"]), f"{where}.upstream.port"),
            str(SpiffeId.parse(upstream["spiffeId"])),
        ),
    )


def _fields(entry: object, kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    """Return `entry` if it is an object with exactly the keys and types of `kinds`, else raise InputError."""
    if not isinstance(entry, dict) or entry.keys() != kinds.keys():
        raise InputError(f"not an object with {', '.join(kinds)}", where=where, remedy=_REMEDY)
    for key, kind in kinds.items():
        if type(entry[key]) is not kind:
            raise InputError(f"{key} is not of type {kind.__name__}", where=where, remedy=_REMEDY)
    return entry
