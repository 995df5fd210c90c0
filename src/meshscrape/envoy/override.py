"""Build meshscrape's secure listeners as a bootstrap override for the proxies of a stock Istio.

Istio's agent passes the override to Envoy as `--config-yaml`. Envoy merges it into Istio's bootstrap as
protobuf merges messages: repeated fields are appended. So no name here may be one of Istio's bootstrap (a
second cluster of a name stops Envoy, a second listener of a name is ignored). Istio's clusters are only
referred to: `prometheus_stats` (Envoy's admin), `agent` (15020), `sds-grpc` (the agent's secrets).
The names were read in istio/istio `tools/packaging/common/envoy_bootstrap.json`, 1.14 to 1.31.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshscrape.envoy import bounds
from meshscrape.envoy.metrics_listeners import DENIAL_LOG, MERGED_PATHS, SERVER, STATS_PATHS, STATS_QUERIES
from meshscrape.envoy.resources import authorization, client_keys, http, listeners, logs, routes, tls
from meshscrape.envoy.resources.values import Resource, typed
from meshscrape.istio.allow_list import Scraper

DIRECTORY = "/etc/istio/custom-bootstrap"
BOOTSTRAP_FILE = "custom_bootstrap.json"
SCRAPERS_FILE = "scrapers.json"
PREFIX = "meshscrape"
# Linux allows 131,071 bytes in one argument of a program. Some of them are left to the user's own override.
LIMIT_BYTES = 100_000

_STATS_CLUSTER = "prometheus_stats"
_AGENT_CLUSTER = "agent"
_SDS_CLUSTER = "sds-grpc"
_CERTIFICATE = "default"
_ROOTS = "ROOTCA"
_SCRAPERS_FILTER = f"{PREFIX}_scrapers"
_REFUSED = (
    "403 refused: the client certificate names URI %DOWNSTREAM_PEER_URI_SAN%, DNS %DOWNSTREAM_PEER_DNS_SAN%, "
    "and {list} does not list it, or its chain has a short key (%RESPONSE_CODE_DETAILS%). A certificate must "
    "have exactly one such name, an RSA key at least 2048 bits.\n"
)


@dataclass(frozen=True, slots=True)
class OverrideOptions:
    """The options of the listeners; a port of 0 is off.

    `addresses` are wildcards: `0.0.0.0`, `::`, or both on dual stack. `directory` is where the proxy sees the
    ConfigMap, and `list_name` is how refusals name the allow list.
    """

    merged_port: int
    envoy_port: int = 0
    addresses: tuple[str, ...] = ("0.0.0.0",)  # noqa: S104 - as Istio's own: mutual TLS decides who gets in
    directory: str = DIRECTORY
    list_name: str = "the allow list of this workload"


def override(options: OverrideOptions) -> Resource:
    """Return the override (a part of config.bootstrap.v3.Bootstrap) as data for `json.dumps`.

    The allow list is in the file SCRAPERS_FILE beside it, which Envoy follows while it runs.
    """
    resources = _listeners(options)
    limits = dict(
        listeners.connection_limit(str(listener["name"]), bounds.SECURE_CONNECTIONS) for listener in resources
    )
    layer = {"name": PREFIX, "static_layer": limits}
    return {"static_resources": {"listeners": resources}, "layered_runtime": {"layers": [layer]}}


def allow_list(scrapers: tuple[Scraper, ...]) -> Resource:
    """Return the content of SCRAPERS_FILE. An empty list refuses every client."""
    config = _fails_closed(authorization.scrapers_filter(scrapers))
    extension = typed("envoy.config.core.v3.TypedExtensionConfig", name=_SCRAPERS_FILTER, typed_config=config)
    return {"resources": [extension]}


def is_ours(name: str) -> bool:
    """Return whether a listener or layer of this name comes from `override`."""
    return name == PREFIX or name.startswith(f"{PREFIX}_")


def _listeners(options: OverrideOptions) -> list[Resource]:
    ports = (
        ("secure_metrics", options.envoy_port, STATS_PATHS, STATS_QUERIES, _STATS_CLUSTER),
        ("secure_merged_metrics", options.merged_port, MERGED_PATHS, (), _AGENT_CLUSTER),
    )
    return [
        _listener(options, f"{PREFIX}_{name}_{port}", port, paths, queries, cluster)
        for name, port, paths, queries, cluster in ports
        if port
    ]


def _listener(
    options: OverrideOptions,
    name: str,
    port: int,
    paths: tuple[str, ...],
    queries: tuple[str, ...],
    cluster: str,
) -> Resource:
    table: list[Resource] = []
    for path in paths:
        table.append(routes.get_route(path, cluster, bounds.SCRAPE_TIMEOUT, queries))
        table.append(routes.other_methods(path))
    # Not every Envoy of Istio has zstd, and Envoy does not start with an unknown extension.
    gzip = [compressor for compressor in http.compressors() if str(compressor["name"]).endswith("gzip")]
    manager = http.Manager(
        name=name,
        routes=routes.route_configuration(name, table, hidden=[client_keys.CLIENT_HEADER]),
        limits=bounds.METRICS,
        filters=(_scrapers_filter(options.directory), client_keys.strong_chains_only(), *gzip),
        replies=_replies(options, paths),
        access_log=(logs.error_log(400, DENIAL_LOG),),
        server=SERVER,
        client_certificate="chain",
    )
    secrets = _secrets()
    socket = tls.mutual_tls_server(
        {"name": _CERTIFICATE, "sds_config": secrets},
        {"name": _ROOTS, "sds_config": secrets},
    )
    chain = listeners.filter_chain(http.connection_manager(manager), transport_socket=socket)
    resource = listeners.listener(name, options.addresses, port, [chain])
    # Each listener has a limit of its own: the proxy's traffic must not keep the scraper out, and vice versa.
    return {**resource, "ignore_global_conn_limit": True}


def _scrapers_filter(directory: str) -> Resource:
    """Return the filter that follows the ConfigMap's allow list; without a list it refuses every client."""
    default = _fails_closed(authorization.scrapers_filter(()))
    source = {"path": f"{directory}/{SCRAPERS_FILE}", "watched_directory": {"path": directory}}
    discovery: Resource = {
        "config_source": {"path_config_source": source, "resource_api_version": "V3"},
        "default_config": default,
        "apply_default_config_without_warming": False,
        "type_urls": [str(default["@type"])],
    }
    return {"name": _SCRAPERS_FILTER, "config_discovery": discovery}


def _fails_closed(rbac: Resource) -> Resource:
    """Return the filter with rules that refuse every client, for an Envoy that does not know matchers.

    Istio's agent lets Envoy ignore unknown fields. Without any rules the filter would admit every client.
    """
    return {**rbac, "rules": {"action": "ALLOW", "policies": {}}}


def _secrets() -> Resource:
    """Return where the pod's agent serves certificates and roots (config.core.v3.ConfigSource)."""
    api: Resource = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": _SDS_CLUSTER}}],
    }
    return {"api_config_source": api, "resource_api_version": "V3"}


def _replies(options: OverrideOptions, paths: tuple[str, ...]) -> tuple[Resource, ...]:
    served = " and ".join(paths)
    listed = options.list_name.replace("%", "%%")
    return (
        http.reply(403, _REFUSED.format(list=listed)),
        http.reply(404, f"404 nothing here: this port serves {served} only.\n"),
        http.reply(405, "405 refused: this port answers GET and HEAD only.\n"),
        http.reply(503, "503 unavailable: %RESPONSE_CODE_DETAILS%\n"),
    )
