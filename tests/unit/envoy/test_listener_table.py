"""The table of listeners, from documents as Envoy's `/config_dump` gives them."""

from __future__ import annotations

from typing import Any

from meshscrape.envoy.bootstrap import bootstrap
from meshscrape.envoy.listener_table import ListenerRow, listeners_table
from support.options import VARIANTS


def _dump(listeners: list[Any], kind: str = "static_listeners") -> dict[str, Any]:
    wrapped = [
        {"listener": each} if kind == "static_listeners" else {"active_state": {"listener": each}}
        for each in listeners
    ]
    return {
        "configs": [
            {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump"},
            {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", kind: wrapped},
        ]
    }


def _tcp(address: dict[str, Any], match: dict[str, Any]) -> dict[str, Any]:
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "cluster": "c",
    }
    return {
        "address": address,
        "filter_chains": [{"filter_chain_match": match, "filters": [{"typed_config": proxy}]}],
    }


def _rows(name: str) -> list[ListenerRow]:
    config: Any = bootstrap(VARIANTS[name])
    return listeners_table(_dump(config["static_resources"]["listeners"]))


def test_rows_are_sorted_by_port_then_address() -> None:
    """Both families of a port stand together."""
    rows = _rows("dual stack")
    assert [(row.port, row.address) for row in rows] == sorted((row.port, row.address) for row in rows)
    assert {row.address for row in rows if row.port == 15091} == {"10.0.0.7", "fd00::7"}


def test_tls_is_shown_with_and_without_a_match() -> None:
    """A port that speaks TLS only says so, like one that tells TLS from plaintext."""
    by_port = {(row.port, row.match): row.destination for row in _rows("sidecar")}
    assert by_port[15091, "Trans: tls"] == "Inline Route: /stats/prometheus"
    assert by_port[9081, "Trans: tls"] == by_port[9081, "Trans: raw_buffer"] == "Cluster: inbound|9081||"
    assert by_port[9082, "ALL"] == "Cluster: inbound|9082||"


def test_a_gateways_prefixes_are_starred() -> None:
    """Routes by prefix are told from exact paths."""
    (row,) = [row for row in _rows("gateway") if row.port == 8080]
    assert row.destination == "Inline Route: /status*, /*"


def test_dynamic_listeners_sockets_and_other_filters() -> None:
    """Listeners of a control plane are shown; Unix sockets are not; every match of Istio's has its word."""
    address = {"socket_address": {"address": "0.0.0.0", "port_value": 443}}
    match = {"server_names": ["a", "b"], "transport_protocol": "tls", "application_protocols": ["h2"]}
    table = listeners_table(
        _dump([_tcp(address, match), _tcp({"pipe": {"path": "x"}}, {})], "dynamic_listeners")
    )
    assert table == [ListenerRow("0.0.0.0", 443, "SNI: a,b; Trans: tls; App: h2", "Cluster: c")]


def test_an_empty_document_is_an_empty_table() -> None:
    """An Envoy without listeners has none to show."""
    assert listeners_table({}) == []
