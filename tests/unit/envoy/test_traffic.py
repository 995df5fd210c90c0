"""Application ports and gateway routes as rendered data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshscrape.envoy.options import GatewayRoute, Upstream
from meshscrape.envoy.traffic import (
    gateway_listener,
    inbound_cluster,
    inbound_listener,
    upstream_cluster,
    upstreams,
)
from meshscrape.istio.settings import InboundMode, InboundPort
from support.options import BASE, of_type, walk


@pytest.mark.parametrize(
    ("mode", "chains"),
    [
        ("STRICT", [("", True)]),
        ("PERMISSIVE", [("tls", True), ("raw_buffer", False)]),
        ("DISABLE", [("", False)]),
    ],
)
def test_each_mode_has_its_filter_chains(mode: InboundMode, chains: list[tuple[str, bool]]) -> None:
    """STRICT takes TLS alone, PERMISSIVE decides by the first bytes, DISABLE takes no TLS."""
    listener: Any = inbound_listener(BASE, InboundPort(9080, mode))
    seen = [
        (chain.get("filter_chain_match", {}).get("transport_protocol", ""), "transport_socket" in chain)
        for chain in listener["filter_chains"]
    ]
    assert seen == chains
    assert ("listener_filters" in listener) == (mode == "PERMISSIVE")


@pytest.mark.parametrize(
    ("name", "http2"),
    [
        ("http", False),
        ("", False),
        ("http-metrics", False),
        ("grpc", True),
        ("grpc-api", True),
        ("http2", True),
    ],
)
def test_the_ports_name_chooses_the_protocol(name: str, http2: bool) -> None:
    """Names of ports mean what they mean in Istio."""
    cluster = inbound_cluster(BASE, InboundPort(9080, "STRICT", name))
    assert any("http2_protocol_options" in each for each in walk(cluster)) == http2


def test_the_longest_prefix_comes_first() -> None:
    """A route for everything, declared first, does not hide a narrower one."""
    upstream = Upstream("a", "10.0.0.8", 80, "spiffe://cluster.local/ns/a/sa/a")
    routes = tuple(GatewayRoute(prefix, upstream) for prefix in ("/", "/a/b", "/a"))
    listener = gateway_listener(replace(BASE, routes=routes), 8080)
    order = [
        each["match"]["prefix"] for host in walk(listener) if "domains" in host for each in host["routes"]
    ]
    assert order == ["/a/b", "/a", "/"]


def test_an_upstream_is_known_by_its_exact_id() -> None:
    """The one accepted name is the whole SPIFFE ID, and sessions are not kept."""
    upstream = Upstream("a.b", "10.0.0.8", 80, "spiffe://cluster.local/ns/b/sa/a")
    (context,) = of_type(upstream_cluster(BASE, upstream), "UpstreamTlsContext")
    validation = context["common_tls_context"]["combined_validation_context"]
    assert validation["default_validation_context"]["match_typed_subject_alt_names"] == [
        {"san_type": "URI", "matcher": {"exact": "spiffe://cluster.local/ns/b/sa/a"}}
    ]
    assert validation["validation_context_sds_secret_config"]["name"] == "roots"
    assert context["max_session_keys"] == 0


def test_an_upstream_of_several_routes_is_one_cluster() -> None:
    """Envoy refuses two clusters of one name."""
    upstream = Upstream("a", "10.0.0.8", 80, "spiffe://cluster.local/ns/a/sa/a")
    assert upstreams((GatewayRoute("/", upstream), GatewayRoute("/a", upstream))) == (upstream,)
