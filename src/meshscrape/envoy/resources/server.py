"""What concerns the whole process: admin API, overload, runtime."""

from __future__ import annotations

from collections.abc import Mapping

from meshscrape.envoy.resources.values import Resource, pipe_address, typed
from meshscrape.istio.names import MERGED_PATH

ADMIN_MODE = 0o600
# What the agent, `listeners` and operators read. `/quitquitquit`, `/runtime_modify`, profilers and the like
# stay shut even for who may open the socket; draining is what a graceful stop needs.
ADMIN_PATHS = (
    "/ready", "/server_info", "/stats", MERGED_PATH, "/config_dump", "/certs", "/clusters",
    "/listeners", "/init_dump", "/memory", "/logging", "/drain_listeners",
)  # fmt: skip


def admin(socket_path: str) -> Resource:
    """The admin API on a Unix socket of mode 0600, never on TCP, with `ADMIN_PATHS` alone."""
    return {
        "address": pipe_address(socket_path, ADMIN_MODE),
        "allow_paths": [{"safe_regex": {"regex": f"({'|'.join(ADMIN_PATHS)})(\\?.*)?"}}],
    }


def overload_manager(max_connections: int) -> Resource:
    """A bound on the client connections of the whole process."""
    monitor = typed(
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=max_connections,
    )
    name = "envoy.resource_monitors.global_downstream_max_connections"
    return {"resource_monitors": [{"name": name, "typed_config": monitor}]}


def static_runtime(values: Mapping[str, object]) -> Resource:
    """Runtime values that nothing can change later (there is no admin layer)."""
    return {"layers": [{"name": "static", "static_layer": dict(values)}]}
