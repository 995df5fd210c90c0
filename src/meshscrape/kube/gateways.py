"""Gateway and VirtualService: where a gateway listens and which workloads it routes to.

The local mesh serves plain HTTP for every host, with routes by path to one destination each. Everything else
is refused, not ignored: a route that is read only in part would lead to the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from meshscrape.errors import InputError
from meshscrape.istio.fields import Field
from meshscrape.istio.ports import refuse_reserved, shorten
from meshscrape.istio.scrape_targets import check_path
from meshscrape.kube.declarations import DeclaredService, Named
from meshscrape.kube.mesh_spec import Gateway, Route, Workload
from meshscrape.kube.selectors import matches

_EVERY_HOST = "the local mesh's gateways serve every host"


@dataclass(frozen=True, slots=True)
class GatewayObject:
    """A Gateway: which workloads it selects, and the one port where they listen."""

    named: Named
    selector: dict[str, str]
    port: int
    port_field: Field


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One match of one http route of a VirtualService, with its destination as written."""

    prefix: str
    host: str
    port: int | None
    destination: Field


@dataclass(frozen=True, slots=True)
class VirtualService:
    """A VirtualService: its gateways (namespace, name, place) and its routes in order."""

    named: Named
    gateways: tuple[tuple[str, str, Field], ...]
    routes: tuple[HttpRoute, ...]


def parse_gateway(named: Named) -> GatewayObject:
    """Return the Gateway that the object declares. Raise InputError with the place of a wrong field."""
    spec = named.root.mapping("spec", required=True)
    spec.only("selector", "servers")
    selector = spec.strings("selector")
    if not selector:
        spec.at("selector").refuse("missing", "missing", "write the labels of the gateway's pod")
    servers = spec.items("servers")
    if len(servers) != 1:
        spec.at("servers").refuse(
            "one-server",
            f"{len(servers)} servers are declared",
            "write exactly one server, with protocol HTTP",
        )
    server = servers[0]
    server.only("port", "hosts", "name")
    _check_hosts(server)
    port = server.mapping("port", required=True)
    port.only("number", "name", "protocol", "targetPort")
    if (protocol := port.text("protocol")).upper() not in ("HTTP", "HTTP2"):
        port.at("protocol").refuse("not-http", f"{shorten(protocol)} is not supported here", "write HTTP")
    return GatewayObject(named, selector, port.port("number"), port.at("number"))


def _check_hosts(parent: Field) -> None:
    hosts = parent.elements("hosts")
    if not hosts:
        parent.at("hosts").refuse("missing", "missing", 'write ["*"]')
    for host in hosts:
        if host.as_text().rpartition("/")[2] != "*":
            host.refuse("every-host", _EVERY_HOST, 'write "*"')


def parse_virtual_service(named: Named) -> VirtualService:
    """Return the VirtualService of an object. Raise InputError with the place of a wrong field."""
    spec = named.root.mapping("spec", required=True)
    spec.only("hosts", "gateways", "http")
    _check_hosts(spec)
    gateways = []
    for item in spec.elements("gateways"):
        namespace, slash, name = item.as_text().rpartition("/")
        gateways.append((namespace if slash else named.namespace, name, item))
    if not gateways:
        spec.at("gateways").refuse(
            "missing", "missing", "name a Gateway: only gateways route in the local mesh"
        )
    routes = tuple(route for item in spec.items("http") for route in _http_routes(item))
    if not routes:
        spec.at("http").refuse("missing", "no route is given", "write at least one")
    return VirtualService(named, tuple(gateways), routes)


def _http_routes(item: Field) -> list[HttpRoute]:
    item.only("name", "match", "route")
    routes = item.items("route")
    if len(routes) != 1:
        item.at("route").refuse(
            "one-destination", f"{len(routes)} destinations are given", "write exactly one"
        )
    routes[0].only("destination", "weight")
    if routes[0].at("weight").value not in (None, 100):
        routes[0].at("weight").refuse(
            "divided-traffic", "traffic is not divided here", "write 100 or remove it"
        )
    destination = routes[0].mapping("destination", required=True)
    destination.only("host", "port")
    host = destination.text("host")
    port_field = destination.mapping("port")
    port_field.only("number")
    port = port_field.port("number") if destination.at("port").value is not None else None
    prefixes = [_prefix(match) for match in item.items("match")] or ["/"]
    return [HttpRoute(prefix, host, port, destination) for prefix in prefixes]


def _prefix(match: Field) -> str:
    match.only("name", "uri")
    uri = match.mapping("uri", required=True)
    uri.only("prefix")
    return check_path(uri.text("prefix"), uri.at("prefix").place)


def resolve_gateways(
    gateways: Sequence[GatewayObject],
    virtual_services: Sequence[VirtualService],
    services: Sequence[DeclaredService],
    workloads: Sequence[Workload],
) -> tuple[Gateway, ...]:
    """Return the port and routes of each gateway workload; a destination is a Service or else a workload.

    Raises InputError for gateways that select no gateway workload, a workload with two ports, unknown
    gateways and destinations.
    """
    routes = _routes_by_gateway(gateways, virtual_services, services, workloads)
    serving: dict[tuple[str, str], Gateway] = {}
    for gateway in gateways:
        for workload in _selected(gateway, workloads):
            key = (workload.namespace, workload.name)
            port = _listening_port(gateway, workload, services)
            before = serving.get(key, Gateway(*key, port))
            if before.port != port:
                gateway.port_field.refuse(
                    "two-ports",
                    f"{workload.namespace}/{workload.name} already listens on port {before.port}",
                    "write the same port in every Gateway of that workload",
                )
            # One VirtualService may be bound to several Gateways of the same workload.
            own = [r for r in routes[gateway.named.namespace, gateway.named.name] if r not in before.routes]
            serving[key] = Gateway(*key, port, (*before.routes, *own))
            _refuse_hidden(gateway, serving[key].routes)
    return tuple(serving.values())


def _refuse_hidden(gateway: GatewayObject, routes: Sequence[Route]) -> None:
    """Raise InputError for a route behind an earlier one that matches the same paths.

    Istio takes the first route and never reaches the later one. The local gateway would reach it, because it
    tries longer prefixes first.
    """
    for index, route in enumerate(routes):
        for earlier in routes[:index]:
            if route.prefix.startswith(earlier.prefix):
                gateway.named.root.refuse(
                    "route-never-taken",
                    f"the route for {route.prefix} is never taken, {earlier.prefix} comes first",
                    "declare longer prefixes first, and each prefix once",
                )


def _routes_by_gateway(
    gateways: Iterable[GatewayObject],
    virtual_services: Iterable[VirtualService],
    services: Sequence[DeclaredService],
    workloads: Sequence[Workload],
) -> dict[tuple[str, str], list[Route]]:
    routes: dict[tuple[str, str], list[Route]] = {(g.named.namespace, g.named.name): [] for g in gateways}
    for virtual in virtual_services:
        resolved = [_resolve(route, virtual.named.namespace, services, workloads) for route in virtual.routes]
        for namespace, name, place in virtual.gateways:
            if (namespace, name) not in routes:
                known = ", ".join(f"{n}/{g}" for n, g in routes) or "none"
                place.refuse("no-gateway", f"there is no Gateway {namespace}/{name}", f"declared are {known}")
            routes[namespace, name] += resolved
    return routes


def _selected(gateway: GatewayObject, workloads: Iterable[Workload]) -> list[Workload]:
    selected = [w for w in workloads if w.kind == "gateway" and matches(gateway.selector, w.labels)]
    if not selected:
        gateway.named.root.at("spec").at("selector").refuse(
            "selects-nothing",
            "no gateway workload has these labels",
            "write the labels of a gateway Deployment's template",
        )
    return selected


def _listening_port(gateway: GatewayObject, workload: Workload, services: Iterable[DeclaredService]) -> int:
    """Return the pod's port for the Gateway's port; as in Istio, a Service in front of the pod maps it."""
    port = gateway.port
    for service in services:
        if not service.selects(workload.namespace, workload.labels):
            continue
        for service_port in service.ports:
            if service_port.port == gateway.port:
                target = service_port.target
                port = (
                    target
                    if isinstance(target, int)
                    else service.target_port(service_port, workload.containers)
                )
    refuse_reserved(port, gateway.port_field.place)
    return port


def _resolve(
    route: HttpRoute, namespace: str, services: Sequence[DeclaredService], workloads: Sequence[Workload]
) -> Route:
    name, owner = _host(route, namespace)
    service = next((s for s in services if (s.named.namespace, s.named.name) == (owner, name)), None)
    if service is None:
        candidates = [w for w in workloads if (w.namespace, w.name) == (owner, name)]
    else:
        candidates = [w for w in workloads if service.selects(w.namespace, w.labels)]
    if len(candidates) != 1:
        route.destination.at("host").refuse(
            "one-workload-per-host",
            f"{len(candidates)} workloads are behind {owner}/{name}",
            "name a Service that selects one workload, or the workload itself",
        )
    workload = candidates[0]
    if workload.kind != "sidecar":
        route.destination.at("host").refuse(
            "no-mutual-tls",
            f"{workload.namespace}/{workload.name} has no Envoy that accepts mutual TLS",
            "route to a workload with a sidecar",
        )
    port = _destination_port(route, service, workload)
    return Route(route.prefix, workload.namespace, workload.name, port)


def _host(route: HttpRoute, namespace: str) -> tuple[str, str]:
    """Return name and namespace of `name`, `name.ns`, `name.ns.svc` or `name.ns.svc.cluster.local`."""
    match route.host.split("."):
        case [name]:
            return name, namespace
        case [name, owner] | [name, owner, "svc"] | [name, owner, "svc", "cluster", "local"]:
            return name, owner
    route.destination.at("host").refuse(
        "unknown-host",
        f"{shorten(route.host)} is not a host of the mesh",
        "write NAME, NAME.NAMESPACE or the long form",
    )


def _destination_port(route: HttpRoute, service: DeclaredService | None, workload: Workload) -> int:
    place = route.destination.at("port")
    if service is not None:
        possible = [port for port in service.ports if route.port in (None, port.port)]
        if len(possible) == 1:
            return service.target_port(possible[0], workload.containers)
        known = [port.port for port in service.ports]
    else:
        known = [port.port for container in workload.containers for port in container.ports]
        if route.port in known:
            return route.port
        if route.port is None and len(known) == 1:
            return known[0]
    what = "no port is given" if route.port is None else f"port {route.port} does not exist"
    raise InputError(
        what,
        where=place.place,
        remedy=f"write port: {{number: …}}; ports are {', '.join(map(str, known)) or 'none'}",
        code="which-port" if route.port is None else "no-such-port",
    )
