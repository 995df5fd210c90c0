"""Find legacy ports: a Sidecar's ingress or a Gateway with ISTIO_MUTUAL in front of a metrics port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshscrape.istio import ports
from meshscrape.istio.names import ISTIO_NETWORKING
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref
from meshscrape.kube.selectors import matches
from meshscrape.kube.views.sidecar import Sidecar, Sidecars, sidecar
from meshscrape.observe.cluster import Cluster

_METRICS = (ports.MERGED, ports.STATS)
# A path of the agent that does not serve metrics.
_OTHER_PATH = "/quitquitquit"


@dataclass(frozen=True, slots=True)
class LegacyPort:
    """A port that serves metrics through Envoy's ordinary listeners, and the object that configures it.

    `every_path`: requests for any path get to the target, and not only those for the metrics.
    """

    port: int
    target: int
    ref: Ref
    every_path: bool = True


class Legacy:
    """Find the legacy ports of sidecars and gateways."""

    def __init__(self, cluster: Cluster, root_namespace: str) -> None:
        manifests = cluster.inventory.of_kind("Sidecar", ISTIO_NETWORKING)
        self.sidecars = Sidecars(map(sidecar, manifests), root_namespace)
        self._gateways = _metrics_gateways(cluster)

    def of_sidecar(self, namespace: str, labels: Mapping[str, str]) -> tuple[LegacyPort, ...]:
        """Return the ports that the Sidecar in force routes to the proxy's own metrics ports."""
        in_force = self.sidecars.of(namespace, labels)[:1]
        return tuple(port for effective in in_force for port in ingress_ports(effective))

    def of_gateway(self, labels: Mapping[str, str]) -> tuple[LegacyPort, ...]:
        """Return the ports that Gateways route to the own metrics ports of this gateway's pods."""
        return tuple(
            port
            for selector, metrics_ports in self._gateways
            if selector and matches(selector, labels)
            for port in metrics_ports
        )


def ingress_ports(sidecar: Sidecar) -> list[LegacyPort]:
    """Return the ingress listeners of a Sidecar that lead to 15020 or 15090."""
    legacy_ports = []
    for listener in sidecar.ingress:
        port = objects.dig(listener, "port", "number")
        target = str(objects.dig(listener, "defaultEndpoint", default="")).rpartition(":")[2]
        if isinstance(port, int) and target.isdigit() and int(target) in _METRICS:
            legacy_ports.append(LegacyPort(port, int(target), sidecar.ref))
    return legacy_ports


def _metrics_gateways(cluster: Cluster) -> list[tuple[Mapping[str, Any], list[LegacyPort]]]:
    routed: dict[Ref, tuple[int, bool]] = {}
    for service in cluster.inventory.of_kind("VirtualService", ISTIO_NETWORKING):
        route = _metrics_route(service)
        if route is None:
            continue
        for name in objects.as_list(objects.dig(service.data, "spec", "gateways")):
            namespace, slash, bare = str(name).partition("/")
            if not slash:
                namespace, bare = service.ref.namespace, str(name)
            routed[Ref(ISTIO_NETWORKING, "Gateway", namespace, bare)] = route
    gateways = []
    for ref, (target, every_path) in sorted(routed.items()):
        gateway = cluster.inventory.get(ref)
        if gateway is None:
            continue
        mutual = [
            LegacyPort(number, target, ref, every_path)
            for server in objects.as_list(objects.dig(gateway.data, "spec", "servers"))
            if objects.dig(server, "tls", "mode") == "ISTIO_MUTUAL"
            and isinstance(number := objects.dig(server, "port", "number"), int)
        ]
        if mutual:
            gateways.append((objects.as_mapping(objects.dig(gateway.data, "spec", "selector")), mutual))
    return gateways


def _metrics_route(service: Manifest) -> tuple[int, bool] | None:
    """Return the metrics port that a VirtualService routes to, and whether it does so for every path."""
    targets: dict[int, bool] = {}
    for route in objects.as_list(objects.dig(service.data, "spec", "http")):
        for destination in objects.as_list(objects.dig(route, "route")):
            number = objects.dig(destination, "destination", "port", "number")
            if number in _METRICS:
                targets[int(number)] = targets.get(int(number), False) or _takes_every_path(route)
    return next(iter(targets.items()), None)


def _takes_every_path(route: Any) -> bool:
    """Return whether a route also matches a path that does not serve metrics."""
    conditions = objects.as_list(objects.dig(route, "match"))
    return not conditions or any(_takes(objects.dig(condition, "uri")) for condition in conditions)


def _takes(uri: Any) -> bool:
    exact, prefix = objects.dig(uri, "exact"), objects.dig(uri, "prefix")
    if exact is not None:
        return bool(exact == _OTHER_PATH)
    if prefix is not None:
        return _OTHER_PATH.startswith(str(prefix))
    # A route without a condition on the path matches every path. A regular expression is not judged.
    return objects.dig(uri, "regex") is None
