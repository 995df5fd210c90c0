"""Build the configuration of one Envoy: its bootstrap, the files that it watches, its command line."""

from __future__ import annotations

from meshscrape.envoy import bounds, names, traffic
from meshscrape.envoy import metrics_listeners as metrics
from meshscrape.envoy.options import SidecarOptions
from meshscrape.envoy.resources import authorization, listeners, rsa_keys, secrets, server
from meshscrape.envoy.resources.values import Resource
from meshscrape.errors import InputError
from meshscrape.istio.allow_list import Scraper
from meshscrape.istio.names import (
    CERTIFICATE_CHAIN_FILE,
    INSTANCE_IP,
    MESHSCRAPE_INSIDE_ADDRESS,
    PRIVATE_KEY_FILE,
    ROOTS_FILE,
    TRUST_DOMAIN,
)
from meshscrape.istio.settings import InboundPort

REVOCATION_BOUND = bounds.REVOCATION_BOUND
WORKERS = 2


def bootstrap(options: SidecarOptions) -> Resource:
    """Return Envoy's bootstrap (config.bootstrap.v3.Bootstrap) as data for `json.dumps`, without secrets.

    Raises InputError when no pod address is known, or the application's ports would lead to themselves.
    """
    _check(options)
    limits = _connection_limits(options)
    runtime = dict(listeners.connection_limit(name, limit) for name, limit in limits.items())
    return {
        "node": _node(options),
        "admin": server.admin(options.admin_socket),
        "static_resources": {"listeners": _listeners(options), "clusters": _clusters(options)},
        "overload_manager": server.overload_manager(sum(limits.values())),
        "layered_runtime": server.static_runtime({**runtime, **rsa_keys.RUNTIME}),
    }


def dynamic_files(options: SidecarOptions, scrapers: tuple[Scraper, ...]) -> dict[str, Resource]:
    """Return the files of `options.files_dir`, by name. They must exist before Envoy starts.

    To change the allow list while Envoy runs, replace SCRAPERS_FILE by a rename. The other files stay:
    Envoy follows the credentials directory by itself.
    """
    directory = options.secrets.credentials_dir
    files = {
        names.CERTIFICATE_FILE: secrets.certificate_secret(
            names.CERTIFICATE, directory, CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE
        ),
        names.ROOTS_FILE: secrets.roots_secret(names.ROOTS, directory, ROOTS_FILE),
        names.SCRAPERS_FILE: authorization.scrapers_resource(names.SCRAPERS_FILTER, scrapers),
    }
    if options.secrets.scrapers_bundle is not None:
        files[names.SCRAPER_ROOTS_FILE] = secrets.roots_secret(
            names.SCRAPER_ROOTS, directory, options.secrets.scrapers_bundle
        )
    return files


def envoy_arguments(
    bootstrap_path: str, workers: int = WORKERS, *, drain_seconds: int = 5, flush_milliseconds: int = 1000
) -> list[str]:
    """Return Envoy's arguments. Its working directory must be the one of the admin socket.

    Hot restart is off, because it opens shared memory and an abstract socket, through which any process of
    the pod could take over the listeners or stop Envoy. Unknown fields in watched files are refused: Envoy
    would otherwise ignore a misspelled part of a rule. Log lines are flushed after `flush_milliseconds`.
    """
    return [
        "--config-path", bootstrap_path,
        "--disable-hot-restart",
        "--reject-unknown-dynamic-fields",
        "--concurrency", str(workers),
        "--log-level", "warning",
        "--log-format-escaped",
        "--drain-time-s", str(drain_seconds),
        "--file-flush-interval-msec", str(flush_milliseconds),
    ]  # fmt: skip


def _check(options: SidecarOptions) -> None:
    if not options.pod_addresses:
        raise InputError("the workload has no address", where=INSTANCE_IP, remedy="set it to the pod's IP")
    if _inbound(options) and options.inside_address in options.pod_addresses:
        raise InputError(
            f"{options.inside_address} is both a pod's address and the inside address",
            where=MESHSCRAPE_INSIDE_ADDRESS,
            remedy="give the application a loopback address of its own",
        )


def _node(options: SidecarOptions) -> Resource:
    metadata = {TRUST_DOMAIN: options.trust_domain, "ROLE": options.role}
    return {"id": options.node_id, "cluster": options.cluster, "metadata": metadata}


def _listeners(options: SidecarOptions) -> list[Resource]:
    resources = [metrics.metrics_listener(options, port) for port in metrics.metrics_ports(options)]
    resources += [traffic.inbound_listener(options, inbound) for inbound in _inbound(options)]
    if options.gateway_port is not None:
        resources.append(traffic.gateway_listener(options, options.gateway_port))
    return resources


def _clusters(options: SidecarOptions) -> list[Resource]:
    resources = [metrics.metrics_cluster(port) for port in metrics.metrics_ports(options)]
    resources += [traffic.inbound_cluster(options, inbound) for inbound in _inbound(options)]
    resources += [
        traffic.upstream_cluster(options, upstream) for upstream in traffic.upstreams(options.routes)
    ]
    return resources


def _inbound(options: SidecarOptions) -> tuple[InboundPort, ...]:
    """Return the application's ports; a gateway has none."""
    return options.inbound if options.role == "sidecar" else ()


def _connection_limits(options: SidecarOptions) -> dict[str, int]:
    """Return the limit of connections of each listener, by its name.

    The sum of the limits bounds the process, so that clients of one port cannot take the places of another.
    """
    limits = {
        f"{port.name}_{port.port}": bounds.SECURE_CONNECTIONS if port.secure else bounds.PLAINTEXT_CONNECTIONS
        for port in metrics.metrics_ports(options)
    }
    limits |= {f"inbound_{inbound.port}": bounds.TRAFFIC_CONNECTIONS for inbound in _inbound(options)}
    if options.gateway_port is not None:
        limits[traffic.gateway_name(options.gateway_port)] = bounds.TRAFFIC_CONNECTIONS
    return limits
