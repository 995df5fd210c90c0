"""List the listeners of a running Envoy, in the style of `istioctl proxy-config listeners` (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DUMP = "ListenersConfigDump"
_HTTP = "HttpConnectionManager"
_TCP = "TcpProxy"
_TLS = "DownstreamTlsContext"


@dataclass(frozen=True, slots=True)
class ListenerRow:
    """One filter chain on one address: which connections it takes (`match`) and where they lead."""

    address: str
    port: int
    match: str
    destination: str


def listeners_table(config_dump: Mapping[str, Any]) -> list[ListenerRow]:
    """Return the rows for Envoy's `/config_dump` document, by port and address.

    `match` is `Trans: tls` for chains that speak TLS and `ALL` for those that take anything; `destination`
    is a cluster or the paths that are served, a prefix with a star. Listeners on Unix sockets are left out.
    """
    rows = [row for listener in _listeners(config_dump) for row in _rows(listener)]
    return sorted(rows, key=lambda row: (row.port, row.address, row.match))


def _listeners(config_dump: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for section in config_dump.get("configs", ()):
        if not str(section.get("@type", "")).endswith(_DUMP):
            continue
        for entry in section.get("static_listeners", ()):
            yield entry["listener"]
        for entry in section.get("dynamic_listeners", ()):
            if "active_state" in entry:
                yield entry["active_state"]["listener"]


def _rows(listener: Mapping[str, Any]) -> Iterator[ListenerRow]:
    others = (additional["address"] for additional in listener.get("additional_addresses", ()))
    for address in (listener["address"], *others):
        if "socket_address" not in address:
            continue
        where = address["socket_address"]
        for chain in listener.get("filter_chains", ()):
            yield ListenerRow(where["address"], where["port_value"], _match(chain), _destination(chain))


def _match(chain: Mapping[str, Any]) -> str:
    match = chain.get("filter_chain_match", {})
    parts = []
    if names := match.get("server_names"):
        parts.append(f"SNI: {','.join(names)}")
    if transport := match.get("transport_protocol") or _transport(chain):
        parts.append(f"Trans: {transport}")
    if protocols := match.get("application_protocols"):
        parts.append(f"App: {','.join(protocols)}")
    return "; ".join(parts) or "ALL"


def _transport(chain: Mapping[str, Any]) -> str:
    config = chain.get("transport_socket", {}).get("typed_config", {})
    return "tls" if str(config.get("@type", "")).endswith(_TLS) else ""


def _destination(chain: Mapping[str, Any]) -> str:
    for network_filter in chain.get("filters", ()):
        config = network_filter.get("typed_config", {})
        kind = str(config.get("@type", ""))
        if kind.endswith(_HTTP):
            return _http_destination(config)
        if kind.endswith(_TCP):
            return f"Cluster: {config.get('cluster', '')}"
    return "Non-HTTP/Non-TCP"


def _http_destination(manager: Mapping[str, Any]) -> str:
    if "rds" in manager:
        return f"Route: {manager['rds'].get('route_config_name', '')}"
    hosts = manager.get("route_config", {}).get("virtual_hosts", ())
    routes = [route for host in hosts for route in host.get("routes", ()) if "route" in route]
    if len(routes) == 1 and routes[0]["match"].get("prefix") == "/":
        return f"Cluster: {routes[0]['route'].get('cluster', '')}"
    return f"Inline Route: {', '.join(_paths(routes))}" if routes else "Inline Route: none"


def _paths(routes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for route in routes:
        match = route["match"]
        if "path" in match:
            yield match["path"]
        elif "prefix" in match:
            yield f"{match['prefix']}*"
        else:
            yield "(other match)"
