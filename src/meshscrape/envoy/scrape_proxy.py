"""Build the scraper's Envoy: a forward proxy to known targets, over mutual TLS, that checks each identity.

A request needs the bearer token, a known address, its exact path and the method GET.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from meshscrape.envoy import bounds
from meshscrape.envoy.refusals import CATALOGUE, REASON_HEADER
from meshscrape.envoy.resources import (
    authorization,
    clusters,
    http,
    listeners,
    logs,
    routes,
    rsa_keys,
    secrets,
    server,
    server_keys,
    tls,
    wire,
)
from meshscrape.envoy.resources.values import Resource, discovery_response, file_source
from meshscrape.envoy.shared_targets import LISTENER as SHARED
from meshscrape.envoy.shared_targets import SharedTargets, shared_cluster, shared_listener
from meshscrape.errors import InputError
from meshscrape.istio.layouts import Layout
from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import SpiffeId

CLUSTERS_FILE = "cds.json"
# In binary form: Envoy reads it in half of the time that JSON takes.
ROUTES_FILE = "rds.pb"
TOKEN_FILE = "ecds-token.json"  # noqa: S105
# How long Prometheus waits for the answer to a scrape.
SCRAPE_TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"
LISTENER = "scrape_proxy"
ROUTES = "targets"
TOKEN = "token"  # noqa: S105

# One line per request. Authority and path, which the client wrote, are only looked up among known targets.
LOG_FIELDS = {
    "authority": "%REQ(:AUTHORITY):256%",
    "path": "%REQ(:PATH):1024%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "refusal": f"%RESP({REASON_HEADER})%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "tls": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "peer": "%UPSTREAM_PEER_URI_SAN%",
    "not_after": "%UPSTREAM_PEER_CERT_V_END%",
    "connection": "%UPSTREAM_CONNECTION_ID%",
}


# The identity and the paths at an address.
Expected: TypeAlias = tuple[SpiffeId, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ScrapeProxyOptions:
    """One scrape proxy's Envoy.

    It listens on `address`:`port`. `admin_socket` is relative to its working directory; `files_dir`
    (absolute) holds the files that Envoy watches; `access_log` is the named pipe for the lines of its log, or
    empty for standard output. With `shared`, Envoy shares the targets with other scrape proxies. `sharing` is
    the number of the trust domain, in sorted order, whose certificate Envoy presents there.
    """

    node_id: str
    address: str
    port: int
    admin_socket: str
    files_dir: str
    access_log: str
    shared: SharedTargets | None = None
    sharing: int = 0


def bootstrap(options: ScrapeProxyOptions) -> Resource:
    """Return Envoy's bootstrap (config.bootstrap.v3.Bootstrap) as data for `json.dumps`, without secrets."""
    limit = dict([listeners.connection_limit(LISTENER, bounds.PROXY_CONNECTIONS)])
    static = {"listeners": [_listener(options)]}
    if shared := options.shared:
        name, most = listeners.connection_limit(SHARED, bounds.SECURE_CONNECTIONS)
        limit[name] = most
        secret = partial(_secret, options.files_dir, options.sharing)
        static["listeners"].append(shared_listener(shared, secret("certificate"), secret("roots")))
        static["clusters"] = [shared_cluster(shared)]
    return {
        "node": {"id": options.node_id, "cluster": LISTENER},
        "admin": server.admin(options.admin_socket),
        "static_resources": static,
        "dynamic_resources": {"cds_config": file_source(f"{options.files_dir}/{CLUSTERS_FILE}")},
        "overload_manager": server.overload_manager(sum(limit.values())),
        "layered_runtime": server.static_runtime({**limit, **rsa_keys.RUNTIME}),
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _STATS}}},
    }


def token_resource(tokens: Sequence[str]) -> Resource:
    """Return the content of `TOKEN_FILE`: requests need one of these bearer tokens."""
    return authorization.filter_resource(TOKEN, authorization.bearer_filter(tokens))


def secret_files(directories: Mapping[str, tuple[str, Layout]]) -> dict[str, Resource]:
    """Return the SDS files, by name, for each trust domain's directory of credentials with its file names.

    Certificate and key are presented to targets, the roots verify them.
    """
    files: dict[str, Resource] = {}
    for number, (directory, layout) in enumerate(_ordered(directories).values()):
        files[_file("certificate", number)] = secrets.certificate_secret(
            f"certificate-{number}", directory, layout.chain, layout.key
        )
        files[_file("roots", number)] = secrets.roots_secret(f"roots-{number}", directory, layout.roots)
    return files


def clusters_resource(
    identities: Iterable[SpiffeId],
    trust_domains: Iterable[str],
    files_dir: str,
    version: str,
    requests_per_connection: int = 0,
    aliases: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Resource:
    """Return the content of `CLUSTERS_FILE`: one cluster for each SPIFFE ID that is expected somewhere.

    `aliases` are other names of a trust domain: the same path below one of them is accepted as well. A
    connection serves `requests_per_connection` scrapes, or any number (0). Raises InputError for an ID of a
    trust domain without a directory of credentials.
    """
    numbers = {name: number for number, name in enumerate(sorted(trust_domains))}
    wanted, resources = sorted(identities), []
    check_credentials(wanted, numbers)
    for identity in wanted:
        number = numbers[identity.trust_domain]
        socket = tls.mutual_tls_client(
            _secret(files_dir, number, "certificate"),
            _secret(files_dir, number, "roots"),
            *(str(spelling) for spelling in accepted(identity, aliases)),
        )
        resources.append(
            clusters.addressed_cluster(
                str(identity),
                socket,
                bounds.PROXY_BREAKER,
                connect_timeout=bounds.PROXY_CONNECT_TIMEOUT,
                idle_timeout=bounds.PROXY_IDLE_TIMEOUT,
                connection_duration=bounds.PROXY_CONNECTION_DURATION,
                requests_per_connection=requests_per_connection,
            )
        )
    return discovery_response(version, resources)


def accepted(identity: SpiffeId, aliases: Mapping[str, Sequence[str]]) -> tuple[SpiffeId, ...]:
    """Return the identities of which one must answer where `identity` is expected."""
    others = aliases.get(identity.trust_domain, ())
    return (identity, *(SpiffeId(name, identity.path) for name in others))


def check_credentials(identities: Iterable[SpiffeId], trust_domains: Container[str]) -> None:
    """Raise InputError if an ID belongs to none of the `trust_domains`."""
    for identity in identities:
        if identity.trust_domain not in trust_domains:
            raise InputError(
                f"there are no credentials for the trust domain {identity.trust_domain} of {identity}",
                remedy=f"give them: --credentials {identity.trust_domain}=DIR",
            )


def by_authority(targets: Iterable[Target]) -> dict[str, Expected]:
    """Return the expected identity at each address (`IP:port`) and the paths there, in a stable order.

    Raises InputError when two different SPIFFE IDs are expected at one address.
    """
    # There may be twenty thousand targets, and most addresses have one path.
    expectations: dict[str, Expected] = {}
    for target in targets:
        authority = target.authority
        known = expectations.get(authority)
        if known is None:
            expectations[authority] = target.spiffe_id, (target.path,)
            continue
        expected, paths = known
        if expected != target.spiffe_id:
            raise InputError(
                f"{authority} is expected to be both {expected} and {target.spiffe_id}",
                remedy="announce each address with one identity",
            )
        if target.path not in paths:
            expectations[authority] = expected, tuple(sorted((*paths, target.path)))
    return dict(sorted(expectations.items()))


def host_of(expected: Expected, authorities: Sequence[str]) -> Resource:
    """Return the virtual host of `authorities` (`IP:port`), where the same identity and paths are expected.

    A host for each address would take most of Envoy's memory, and most of its time for a new file.
    """
    identity, paths = expected
    own = [routes.proxied_route(path, str(identity), bounds.SCRAPE_TIMEOUT) for path in paths]
    return routes.proxied_host(" ".join((str(identity), *paths)), authorities, own)


def routes_table(hosts: Sequence[Resource] = ()) -> Resource:
    """Return the route configuration with these virtual hosts, which refuses every other request."""
    return routes.proxied_routes(
        ROUTES,
        hosts,
        hidden=_HIDDEN,
        unanswerable=(REASON_HEADER,),
        added=[server_keys.shown_certificate()],
    )


def encoded_authority(authority: str) -> bytes:
    """Return an address (`IP:port`) in the binary form that `encoded_host` takes."""
    return wire.domain(authority)


def encoded_host(expected: Expected, authorities: Iterable[bytes]) -> bytes:
    """Return the virtual host of `host_of` in the binary form that `routes_file` takes."""
    return wire.virtual_host(host_of(expected, ()), authorities)


def routes_file(hosts: Iterable[bytes], version: str) -> bytes:
    """Return the content of `ROUTES_FILE` with these virtual hosts (see `encoded_host`).

    Their order does not matter, because each is for exact addresses.
    """
    table = routes_table()
    rest = wire.encode("RouteConfiguration", table)
    return wire.discovery_response(str(table["@type"]), version, [rest, *hosts])


def route_name(target: Target) -> str:
    """Return the target's name in the log: `address:port/path`."""
    return f"{target.authority}{target.path}"


def _listener(options: ScrapeProxyOptions) -> Resource:
    token = authorization.watched_filter(TOKEN, f"{options.files_dir}/{TOKEN_FILE}")
    deadline = http.client_deadline(SCRAPE_TIMEOUT_HEADER, bounds.SCRAPE_TIMEOUT)
    manager = http.Manager(
        name=LISTENER,
        routes=routes.WatchedRoutes(ROUTES, f"{options.files_dir}/{ROUTES_FILE}"),
        limits=bounds.PROXY,
        filters=(token, authorization.only_plain_gets(), deadline, *server_keys.strong_servers_only()),
        replies=tuple(
            http.refusal(
                refusal.status,
                refusal.reason,
                f"{refusal.reason}: {refusal.meaning}{refusal.detail}; {refusal.remedy}\n",
                logs.condition(refusal.when),
                REASON_HEADER,
            )
            for refusal in CATALOGUE
            if refusal.when
        ),
        access_log=(_access_log(options.access_log),),
        absolute_form=True,
        codec="HTTP1",
    )
    chain = listeners.filter_chain(http.connection_manager(manager))
    return listeners.listener(LISTENER, [options.address], options.port, [chain])


def _access_log(path: str) -> Resource:
    return logs.file_log(path, LOG_FIELDS) if path else logs.standard_output_log(LOG_FIELDS)


def _ordered(directories: Mapping[str, tuple[str, Layout]]) -> dict[str, tuple[str, Layout]]:
    return dict(sorted(directories.items()))


def _secret(files_dir: str, number: int, kind: str) -> Resource:
    return secrets.secret_reference(f"{kind}-{number}", f"{files_dir}/{_file(kind, number)}")


def _file(kind: str, number: int) -> str:
    return f"sds-{kind}-{number}.json"


# Targets do not see the token, nor the headers that Envoy adds about the client.
_HIDDEN = (
    "authorization", "proxy-authorization", "proxy-connection", "x-forwarded-for", "x-forwarded-proto",
    "x-envoy-internal", "x-envoy-external-address",
)  # fmt: skip

# Each cluster has a hundred statistics, which would be most of the memory with many identities. Only these
# are read.
_STATS = [
    {"prefix": "cluster_manager."},
    {"prefix": "http.scrape_proxy."},
    {"prefix": "listener."},
    {"prefix": "server."},
    {"prefix": "sds."},
    {"safe_regex": {"regex": r"cluster\..*\.upstream_cx_(total|active)"}},
]
