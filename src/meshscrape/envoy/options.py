"""The options of a whole Envoy configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meshscrape.istio.settings import InboundPort

# Files of the credentials directory. SCRAPERS_BUNDLE is there when scrapers from outside the mesh are
# allowed: the mesh's roots and the scrapers' own.
SCRAPERS_BUNDLE = "scrapers-root-cert.pem"


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """Where the credentials are: a directory whose files stand behind a link that one rename switches.

    `scrapers_bundle` is the name of a file in that directory with every root that may sign scrapers'
    certificates (normally SCRAPERS_BUNDLE); None when only the mesh's roots may. A listener has one list of
    roots, so a CA of that bundle could also issue the mesh's SPIFFE IDs: use a CA whose names are
    constrained.
    """

    credentials_dir: str
    scrapers_bundle: str | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A workload's port that a gateway reaches over mutual TLS; the server there must have `spiffe_id`."""

    name: str
    address: str
    port: int
    spiffe_id: str


@dataclass(frozen=True, slots=True)
class GatewayRoute:
    """Requests whose path starts with `prefix` go to `upstream`."""

    prefix: str
    upstream: Upstream


@dataclass(frozen=True, slots=True)
class SidecarOptions:
    """One sidecar's or gateway's Envoy.

    `pod_addresses` is what the network sees (the first one is the main one), `inside_address` the workload's
    localhost. `admin_socket` is relative to Envoy's working directory; `files_dir` (absolute) holds
    `dynamic_files`. A port of 0 is off. `inbound` belongs to sidecars, `routes` and `gateway_port` to
    gateways.
    """

    node_id: str
    cluster: str
    role: Literal["sidecar", "router"]
    pod_addresses: tuple[str, ...]
    inside_address: str
    secrets: SecretFiles
    admin_socket: str
    stats_port: int
    merged_port: int
    health_port: int
    secure_stats_port: int
    secure_merged_port: int
    localhost_only: bool
    inbound: tuple[InboundPort, ...]
    trust_domain: str
    files_dir: str
    routes: tuple[GatewayRoute, ...] = ()
    gateway_port: int | None = None

    @property
    def everywhere(self) -> tuple[str, ...]:
        """Return the pod's addresses and the inside address, each once."""
        return tuple(dict.fromkeys((*self.pod_addresses, self.inside_address)))
