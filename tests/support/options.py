"""Options of proxies for tests that look at rendered configuration only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from meshscrape.envoy.options import SCRAPERS_BUNDLE, GatewayRoute, SecretFiles, SidecarOptions, Upstream
from meshscrape.istio.settings import InboundPort

BASE = SidecarOptions(
    node_id="sidecar~httpbin-0.default",
    cluster="httpbin.default",
    role="sidecar",
    pod_addresses=("10.0.0.7",),
    inside_address="127.0.0.1",
    secrets=SecretFiles("/state/credentials"),
    admin_socket="admin.sock",
    stats_port=15090,
    merged_port=15020,
    health_port=15021,
    secure_stats_port=15091,
    secure_merged_port=15092,
    localhost_only=False,
    inbound=(
        InboundPort(9080, "STRICT", "http"),
        InboundPort(9081, "PERMISSIVE", "http"),
        InboundPort(9082, "DISABLE", "grpc-api"),
    ),
    trust_domain="cluster.local",
    files_dir="/state/files",
)
_UPSTREAM = Upstream("httpbin.default", "10.0.0.8", 9080, "spiffe://cluster.local/ns/default/sa/httpbin")

VARIANTS: dict[str, SidecarOptions] = {
    "sidecar": BASE,
    "hardened": replace(BASE, localhost_only=True),
    "dual stack": replace(BASE, pod_addresses=("10.0.0.7", "fd00::7")),
    "secure ports off": replace(BASE, secure_stats_port=0, secure_merged_port=0),
    "scrapers from outside": replace(BASE, secrets=SecretFiles("/state/credentials", SCRAPERS_BUNDLE)),
    "pod is localhost": replace(BASE, pod_addresses=("127.0.0.1",), inbound=()),
    "gateway": replace(
        BASE,
        role="router",
        inbound=(),
        gateway_port=8080,
        routes=(GatewayRoute("/", _UPSTREAM), GatewayRoute("/status", _UPSTREAM)),
    ),
}


def walk(value: Any) -> Any:
    """Every dictionary in a rendered configuration, at any depth."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from walk(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from walk(each)


def of_type(value: Any, message: str) -> list[dict[str, Any]]:
    """Every protobuf message of this name (its last part) in a rendered configuration."""
    return [each for each in walk(value) if str(each.get("@type", "")).endswith(f".{message}")]
