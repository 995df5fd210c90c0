"""List the ports of a mesh that are checked (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from meshscrape.istio.host_port import host_port, split_host_port
from meshscrape.istio.names import MERGED_PATH
from meshscrape.verify.mesh_status import ApplicationPortStatus, MeshStatus, MeshWorkload
from meshscrape.verify.observations import OpenPorts
from meshscrape.verify.probe import PLAIN, Identity, Probe

ADMIN_PORT = 15000
HEALTH_PATH = "/healthz/ready"

# "secure-stats" and "secure-merged" are 15091 and 15092, "stats" and "merged" are 15090 and 15020.
# "application" ports have mutual TLS. On an "open" port something listens, and it has no checks of its own.
# "searched" stands for an address and says how open ports were searched there. "proxy" is the scrape proxy.
Role: TypeAlias = Literal[
    "secure-stats", "secure-merged", "stats", "merged", "health", "application", "admin", "open", "searched",
    "proxy",
]  # fmt: skip
Exposure: TypeAlias = Literal["hidden", "announced", "outside"]


@dataclass(frozen=True, slots=True)
class Port:
    """One port, and what is known about it from the status document.

    `workload` is NAMESPACE/NAME, empty for a process beside the mesh. `path` is what the port serves.
    `strict` ports accept nothing but mutual TLS. `declares_metrics` is for application ports. `sources` are
    what a merged port must contain. `neighbour` is a workload that must not read the port. `exposure` tells
    the owner of an open port: "hidden" (the workload's, not announced), "announced", or "outside" (a process
    beside the mesh); `paths` are requested there. `found` tells how an address was searched, `unable` why a
    port cannot be checked. `headers` admit a request to the scrape proxy. `istio_agent` and
    `istio_listeners`: Istio's own serve the plaintext and the secure ports, with what they do differently.
    """

    role: Role
    workload: str
    address: str
    number: int = 0
    path: str = MERGED_PATH
    spiffe_id: str = ""
    strict: bool = False
    hardened: bool = False
    declares_metrics: bool = False
    sources: tuple[str, ...] = ()
    neighbour: str = ""
    exposure: Exposure = "hidden"
    paths: tuple[str, ...] = ()
    found: str = ""
    unable: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    istio_agent: bool = False
    istio_listeners: bool = False

    @property
    def target(self) -> str:
        """Return `host:port`, or the address alone for a "searched" one."""
        return host_port(self.address, self.number) if self.number else self.address

    @property
    def is_secure(self) -> bool:
        """Return whether this is a secure port (15091, 15092)."""
        return self.role in ("secure-stats", "secure-merged")

    @property
    def has_mutual_tls(self) -> bool:
        """Return whether every TLS client of the port needs a certificate."""
        return self.is_secure or self.role == "application"

    def probe(self, identity: Identity = PLAIN) -> Probe:
        """Return a GET of the port's own path."""
        return Probe(self.address, self.number, identity, path=self.path, headers=self.headers)


def announced_ports(mesh: MeshStatus, proxy_token: str = "") -> Iterator[Port]:
    """Yield every port that the status document names; `proxy_token` is the scrape proxy's token."""
    for workload in mesh.workloads:
        yield from _workload_ports(mesh, workload)
    if mesh.scrape_proxy:
        yield _proxy_port(mesh, proxy_token)


def open_ports(
    mesh: MeshStatus, open_by_address: Mapping[str, OpenPorts], paths: tuple[str, ...]
) -> Iterator[Port]:
    """Yield every open port without checks of its own, from what a search found (`open_by_address`).

    `paths` are requested on each port, besides those that the workload declares.
    """
    outside: dict[int, str] = {}
    for workload in mesh.workloads:
        for address in workload.addresses:
            open_there = open_by_address.get(address, OpenPorts(unable="the address was not searched"))
            yield from _open_at(workload, address, open_there, paths)
            for number in open_there.outside:
                outside.setdefault(number, address)
    for number, address in outside.items():
        yield Port("open", "", address, number, exposure="outside", paths=paths)


def _workload_ports(mesh: MeshStatus, workload: MeshWorkload) -> Iterator[Port]:
    base = Port(
        "secure-stats", workload.title, "", spiffe_id=str(workload.spiffe_id), hardened=workload.hardened,
        istio_agent=workload.istio_agent, istio_listeners=workload.istio_listeners,
    )  # fmt: skip
    neighbour = _unlisted(mesh, workload)
    secure = replace(base, strict=True, neighbour=neighbour.title if neighbour else "")
    sources = tuple(f"application:{port.port}" for port in workload.application if port.metrics)
    for address in workload.addresses:
        known: tuple[tuple[Port, Role, int | None], ...] = (
            (secure, "secure-stats", workload.secure_stats),
            (replace(secure, sources=sources), "secure-merged", workload.secure_merged),
            (base, "stats", workload.stats),
            (base, "merged", workload.merged),
            (replace(base, path=HEALTH_PATH), "health", workload.health),
        )
        for port, role, number in known:
            if number is not None:
                yield replace(port, role=role, address=address, number=number)
        # A gateway's own port is for clients from outside the mesh.
        for application in workload.application if workload.kind != "gateway" else ():
            if application.mtls != "DISABLE":
                yield _application(base, address, application)
    if workload.kind != "credentials":
        for address in filter(None, dict.fromkeys((*workload.addresses, workload.inside_address))):
            yield replace(base, role="admin", address=address, number=ADMIN_PORT, path="/server_info")


def _application(base: Port, address: str, status: ApplicationPortStatus) -> Port:
    return replace(
        base, role="application", address=address, number=status.port, path=status.metrics or "/",
        strict=status.mtls == "STRICT", declares_metrics=bool(status.metrics),
    )  # fmt: skip


def _proxy_port(mesh: MeshStatus, token: str) -> Port:
    """Return the scrape proxy's port; requests there are for a target that it knows."""
    host, number = split_host_port(mesh.scrape_proxy) or ("", "")
    port = Port("proxy", mesh.prometheus_workload, host, int(number) if number.isdigit() else 0)
    known = next((url for workload in mesh.workloads for url in workload.announced), "")
    if not (port.number and known and token):
        lacking = "its token cannot be read" if not token else "discovery announces no target"
        return replace(port, unable=lacking if port.number else f"{mesh.scrape_proxy} is not an address")
    headers = (("Authorization", f"Bearer {token}"),)
    return replace(port, path=f"http://{known.partition('://')[2]}", headers=headers)


def _open_at(
    workload: MeshWorkload, address: str, open_there: OpenPorts, paths: tuple[str, ...]
) -> Iterator[Port]:
    searched = Port("searched", workload.title, address)
    if open_there.unable:
        yield replace(searched, unable=open_there.unable)
        return
    announced = {port.port for port in workload.application}
    declared = [port.metrics for port in workload.application if port.metrics]
    checked = _checked_elsewhere(workload)
    remaining = [number for number in open_there.own if number not in checked]
    for number in remaining:
        exposure: Exposure = "announced" if number in announced else "hidden"
        asked = tuple(dict.fromkeys((*declared, *paths)))
        yield Port("open", workload.title, address, number, exposure=exposure, paths=asked)
    if not remaining:
        yield replace(
            searched, found=f"{open_there.how}: {len(open_there.own)} open, each with checks of its own"
        )


def _checked_elsewhere(workload: MeshWorkload) -> set[int]:
    """Return the ports whose plaintext has checks of its own: the proxy's, and those under STRICT."""
    own = {workload.secure_stats, workload.secure_merged, workload.stats, workload.merged, workload.health}
    own.add(ADMIN_PORT if workload.kind != "credentials" else None)
    strict = {port.port for port in workload.application if port.mtls == "STRICT"}
    return {number for number in own if number} | (strict if workload.kind == "sidecar" else set())


def _unlisted(mesh: MeshStatus, workload: MeshWorkload) -> MeshWorkload | None:
    """Return a workload with an identity that may not scrape `workload`, preferably not that one itself."""
    candidates = [
        peer for peer in mesh.workloads if peer.has_identity and not workload.allows(peer.spiffe_id)
    ]
    return next((peer for peer in candidates if peer is not workload), next(iter(candidates), None))
