"""Build the resources of the whole process: admin API, overload manager, runtime."""

from __future__ import annotations

from collections.abc import Mapping

from meshscrape.envoy.resources.values import Resource, pipe_address, typed
from meshscrape.istio.names import MERGED_PATH

ADMIN_MODE = 0o600
# The paths that the agent, `listeners` and operators read, and the draining of a graceful stop. All others
# (`/quitquitquit`, `/runtime_modify`, profilers) are closed even to a process that may open the socket.
ADMIN_PATHS = (
    "/ready", "/server_info", "/stats", MERGED_PATH, "/config_dump", "/certs", "/clusters",
    "/listeners", "/init_dump", "/memory", "/logging", "/drain_listeners",
)  # fmt: skip


def admin(socket_path: str) -> Resource:
    """Return the admin API: a Unix socket of mode 0600, never TCP, with `ADMIN_PATHS` only."""
    return {
        "address": pipe_address(socket_path, ADMIN_MODE),
        "allow_paths": [{"safe_regex": {"regex": f"({'|'.join(ADMIN_PATHS)})(\\?.*)?"}}],
    }


def overload_manager(max_connections: int) -> Resource:
    """Return the bound on client connections of the whole process."""
    monitor = typed(
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=max_connections,
    )
    name = "envoy.resource_monitors.global_downstream_max_connections"
    return {"resource_monitors": [{"name": name, "typed_config": monitor}]}


def static_runtime(values: Mapping[str, object]) -> Resource:
    """Return runtime values that cannot be changed later (there is no admin layer)."""
    return {"layers": [{"name": "static", "static_layer": dict(values)}]}
