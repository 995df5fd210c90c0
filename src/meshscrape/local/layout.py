"""Derive from a parsed manifest everything that is needed to run each workload. Nothing is started here."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from meshscrape.errors import InputError, MissingBinaryError
from meshscrape.istio import names
from meshscrape.istio.settings import AgentSettings, parse_settings
from meshscrape.kube.mesh_spec import MeshSpec, Workload, agent_environment
from meshscrape.local.addresses import AddressPair
from meshscrape.local.environment import command, substitute
from meshscrape.local.prometheus import ScrapeProxyPlace
from meshscrape.prometheus.config import CaMetrics
from meshscrape.prometheus.targets import ScrapedWorkload

PROMETHEUS = "prometheus"
SCRAPERS_FILE = "scrapers"
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Site:
    """The mesh's directories, its CA, the programs, and the environment of its children.

    With `direct`, Prometheus scrapes without a scrape proxy.
    """

    run: Path
    ca_address: str
    ca_metrics: CaMetrics
    ca_root: Path
    environment: Mapping[str, str]
    prometheus: Path | None = None
    envoy: str = ""
    direct: bool = False
    requests_per_connection: str = ""

    @property
    def prometheus_directory(self) -> Path:
        """Return the directory of Prometheus's configuration, targets and data."""
        return self.run / "prometheus"

    def workload(self, key: Key) -> Path:
        """Return a workload's own directory."""
        return self.run / "workloads" / key[0] / key[1]


@dataclass(frozen=True, slots=True)
class ApplicationPlan:
    """One container's command: its words, its environment, and its listening addresses."""

    name: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    listens: tuple[tuple[str, int], ...]
    prometheus: bool = False
    scrape_proxy: ScrapeProxyPlace | None = None


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """One workload, ready to run."""

    key: Key
    kind: str
    pod: str
    addresses: AddressPair
    directory: Path
    agent_environment: tuple[tuple[str, str], ...]
    settings: AgentSettings
    applications: tuple[ApplicationPlan, ...]
    routes: str
    scraped: ScrapedWorkload
    where: str

    @property
    def title(self) -> str:
        """Return NAMESPACE/NAME."""
        return f"{self.key[0]}/{self.key[1]}"

    @property
    def prometheus(self) -> ApplicationPlan | None:
        """Return the application that is Prometheus, if this workload has one."""
        return next((application for application in self.applications if application.prometheus), None)

    @property
    def scrapers_file(self) -> Path:
        """Return the path of the allow list that the agent follows."""
        return self.directory / SCRAPERS_FILE

    @property
    def scrapers_text(self) -> str:
        """Return the text of `scrapers_file`."""
        return "".join(f"{scraper}\n" for scraper in self.settings.scrapers)

    def runs_as(self, other: WorkloadPlan) -> bool:
        """Return whether processes of `other` can continue under this plan (only the allow list differs)."""
        same = replace(self.settings, scrapers=other.settings.scrapers)
        return replace(self, settings=same) == other

    @property
    def scrape_proxy(self) -> ScrapeProxyPlace | None:
        """Return the addresses of Prometheus's scrape proxy, if it has one."""
        return next(
            (application.scrape_proxy for application in self.applications if application.scrape_proxy), None
        )

    @property
    def scraper_credentials(self) -> Path:
        """Return the directory with this workload's certificate for scraping."""
        return scraper_credentials(self.settings)

    @property
    def token(self) -> Path:
        """Return the path of the workload's token for the CA."""
        return self.directory / "token"

    @property
    def routes_file(self) -> Path:
        """Return the path of a gateway's routes."""
        return self.directory / "routes.json"


def plan_mesh(mesh: MeshSpec, pairs: Mapping[Key, AddressPair], site: Site) -> dict[Key, WorkloadPlan]:
    """Return the plan of every workload; `pairs` has their addresses. An InputError names the place."""
    plans = {_key(workload): _plan(workload, mesh, pairs, site) for workload in mesh.workloads}
    scrapers = [plan for plan in plans.values() if plan.prometheus]
    if len(scrapers) > 1:
        raise InputError(
            f"{scrapers[0].title} runs Prometheus already",
            where=scrapers[1].where,
            remedy="run one Prometheus per mesh",
        )
    return plans


def keys_of(mesh: MeshSpec) -> list[Key]:
    """Return (namespace, name) of every workload, in the manifest's order."""
    return [_key(workload) for workload in mesh.workloads]


def _key(workload: Workload) -> Key:
    return workload.namespace, workload.name


def _plan(workload: Workload, mesh: MeshSpec, pairs: Mapping[Key, AddressPair], site: Site) -> WorkloadPlan:
    key = _key(workload)
    pair, directory, pod = pairs[key], site.workload(key), f"{workload.name}-0"
    routes = _routes(workload, mesh, pairs)
    environment = {
        **agent_environment(workload, mesh.trust_domain),
        **_local_environment(pod, pair, directory, site, bool(routes)),
    }
    if workload.pod_env.get(names.OUTPUT_CERTS):
        # In a pod this is a mounted volume; here it is a directory next to the agent's own.
        environment[names.OUTPUT_CERTS] = str(directory / "output-certs")
    settings = parse_settings(environment, workload.role)
    if settings.envoy and settings.scrapers_file is None:
        # The agent follows this file, so an edit of the allow list restarts nothing.
        environment.pop(names.MESHSCRAPE_SCRAPERS, None)
        environment[names.MESHSCRAPE_SCRAPERS_FILE] = str(directory / SCRAPERS_FILE)
    scraped = ScrapedWorkload(
        namespace=workload.namespace,
        pod=pod,
        workload=workload.name,
        spiffe_id=workload.spiffe_id(mesh.trust_domain),
        address=pair.pod,
        secure_merged_port=settings.secure_merged_port if settings.envoy else 0,
        secure_envoy_port=settings.secure_stats_port if settings.envoy else 0,
        sources=workload.annotations.endpoints,
        mtls_ports=frozenset(p.port for p in settings.inbound if p.mode != "DISABLE" and settings.envoy),
    )
    return WorkloadPlan(
        key=key,
        kind=workload.kind,
        pod=pod,
        addresses=pair,
        directory=directory,
        agent_environment=tuple(sorted({**site.environment, **environment}.items())),
        settings=settings,
        applications=_applications(workload, pod, pair, settings, site),
        routes=routes,
        scraped=scraped,
        where=workload.manifest_where,
    )


def _local_environment(
    pod: str, pair: AddressPair, directory: Path, site: Site, routed: bool
) -> dict[str, str]:
    """Return variables for names and addresses, and a cluster's mounts as paths of this machine."""
    environment = {
        names.POD_NAME: pod,
        names.INSTANCE_IP: pair.pod,
        names.MESHSCRAPE_INSIDE_ADDRESS: pair.inside,
        names.CA_ADDR: site.ca_address,
        names.CA_ROOT_CA: str(site.ca_root),
        names.MESHSCRAPE_TOKEN_PATH: str(directory / "token"),
        names.MESHSCRAPE_AGENT_DIR: str(directory / "agent"),
    }
    if site.envoy:
        environment[names.MESHSCRAPE_ENVOY] = site.envoy
    if routed:
        environment[names.MESHSCRAPE_ROUTES] = str(directory / "routes.json")
    return environment


def _routes(workload: Workload, mesh: MeshSpec, pairs: Mapping[Key, AddressPair]) -> str:
    """Return a gateway's routes in the agent's format; empty for other workloads."""
    routes = []
    for route in mesh.routes_of(workload):
        destination = mesh.workload(route.destination_namespace, route.destination_name)
        if destination is None:
            raise InputError(
                f"a route leads to {route.destination_name}, which is not a workload",
                where=workload.manifest_where,
            )
        key = _key(destination)
        upstream = {
            "name": f"{key[1]}.{key[0]}:{route.port}",
            "address": pairs[key].pod,
            "port": route.port,
            "spiffeId": str(destination.spiffe_id(mesh.trust_domain)),
        }
        routes.append({"prefix": route.prefix, "upstream": upstream})
    return json.dumps(routes, indent=1) + "\n" if routes else ""


def _applications(
    workload: Workload, pod: str, pair: AddressPair, settings: AgentSettings, site: Site
) -> tuple[ApplicationPlan, ...]:
    if workload.kind == "gateway":
        return ()
    plans = []
    for container in workload.containers:
        if container.command_line is None:
            raise InputError(
                f"container {container.name} of {workload.name} has no local command",
                where=workload.manifest_where,
                remedy="add the annotation meshscrape.io/local-command (of one of several containers: "
                "meshscrape.io/local-command.CONTAINER) to the pod template",
            )
        where = f"{workload.manifest_where}: meshscrape.io/local-command"
        variables = {
            "INSIDE_ADDRESS": pair.inside,
            "POD_IP": pair.pod,
            names.POD_NAME: pod,
            names.POD_NAMESPACE: workload.namespace,
            "PROMETHEUS_CONFIG": str(site.prometheus_directory / "prometheus.yml"),
            "PROMETHEUS_DATA": str(site.prometheus_directory / "data"),
        }
        if container.ports:
            variables["PORT"] = str(container.ports[0].port)
        if settings.output_certs is not None:
            variables[names.OUTPUT_CERTS] = str(settings.output_certs)
        for name, value in container.env:
            variables[name] = substitute(value, variables, where)
        argv = command(container.command_line, variables, where)
        prometheus = argv[0] == PROMETHEUS
        if not prometheus:
            _require_program(argv[0], site, where)
        elif site.prometheus is not None:
            argv = (str(site.prometheus), *argv[1:])
        # Users open Prometheus's pages, so it is at the pod address. Applications are at the inside address.
        host = pair.inside if settings.envoy else pair.pod
        plans.append(
            ApplicationPlan(
                name=container.name,
                argv=argv,
                environment=tuple(sorted({**site.environment, **variables}.items())),
                listens=tuple((host, port.port) for port in container.ports),
                prometheus=prometheus,
            )
        )
        if prometheus and not site.direct:
            plans.append(_scrape_proxy(pair, settings, site))
    return tuple(plans)


def scraper_credentials(settings: AgentSettings) -> Path:
    """Return the directory with a scraper's cert-chain.pem, key.pem and root-cert.pem."""
    return settings.output_certs or settings.state_dir / "credentials"


def _scrape_proxy(pair: AddressPair, settings: AgentSettings, site: Site) -> ApplicationPlan:
    """Return the scrape proxy's process, which runs next to Prometheus and verifies its targets."""
    place = ScrapeProxyPlace(
        inside=pair.inside,
        directory=site.prometheus_directory / "scrape-proxy",
        token_file=site.prometheus_directory / "token",
    )
    arguments = place.arguments(scraper_credentials(settings), site.prometheus_directory / "targets")
    environment = dict(site.environment)
    if site.envoy:
        environment[names.MESHSCRAPE_ENVOY] = site.envoy
    if site.requests_per_connection:
        environment[names.MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION] = site.requests_per_connection
    return ApplicationPlan(
        name="scrape-proxy",
        argv=(sys.executable, "-m", "meshscrape", "proxy", *arguments),
        environment=tuple(sorted(environment.items())),
        listens=place.listens,
        scrape_proxy=place,
    )


def _require_program(name: str, site: Site, where: str) -> None:
    if shutil.which(name, path=site.environment.get("PATH")) is None:
        raise MissingBinaryError(
            f"the program {name!r} was not found",
            where=where,
            remedy="install it (for the example: pip install '.[local]'), or give its full path",
        )
