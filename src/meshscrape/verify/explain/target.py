"""Find the port and the workload that `meshscrape explain TARGET` means (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshscrape.errors import InputError
from meshscrape.istio.host_port import host_port
from meshscrape.istio.names import MERGED_PATH
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload
from meshscrape.verify.observations import printable

_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#@\s]+)(?P<path>/\S*)?")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[1-9][0-9]{0,4})")
_NAME = re.compile(r"(?:(?P<namespace>[a-z0-9.-]+)/)?(?P<name>[a-z0-9.-]+)")
_LONGEST = 600
_REMEDY = "name a workload (NAME or NAMESPACE/NAME), ADDRESS:PORT, or a target's URL as Prometheus shows it"


@dataclass(frozen=True, slots=True)
class Spot:
    """An address, a port, and a path if one was given."""

    address: str
    port: int
    path: str | None


@dataclass(frozen=True, slots=True)
class ExplainTarget:
    """One port of one workload. `fault` tells why discovery does not announce it, with a `remedy`.

    `what` describes the port. `merged` ports have sources, and `application` ports have no allow list.
    Prometheus reads only `announced` ports. Without a status document there is no `workload`, only the
    `identity` that discovery expects, and perhaps a `name`.
    """

    address: str
    port: int
    path: str
    scheme: str
    what: str
    workload: MeshWorkload | None
    merged: bool = False
    application: bool = False
    announced: bool = True
    fault: str = ""
    remedy: str = ""
    identity: SpiffeId | None = None
    name: str = ""

    @property
    def expected(self) -> str:
        """Return the SPIFFE ID that must answer; empty when none is known."""
        known = self.workload.spiffe_id if self.workload else self.identity
        return str(known) if known else ""

    @property
    def title(self) -> str:
        """Return NAMESPACE/NAME of its workload, as far as it is known."""
        return self.workload.title if self.workload else self.name

    @property
    def authority(self) -> str:
        """Return `host:port`, with brackets around an IPv6 address."""
        return host_port(self.address, self.port)

    @property
    def url(self) -> str:
        """Return the target's URL as Prometheus shows it."""
        return f"{self.scheme}://{self.authority}{self.path}"


def find_targets(mesh: MeshStatus, text: str) -> tuple[ExplainTarget, ...]:
    """Return the targets of a workload, or the one port, that `text` names. Raise InputError for neither.

    An address that no workload has gives a target with a `fault`, because Prometheus may still scrape it.
    """
    spot, name = read_spot(text)
    if spot is not None:
        return (_at(mesh, spot.address, spot.port, spot.path),)
    namespace, _, own = name.rpartition("/")
    return tuple(_of(mesh, _named(mesh, namespace, own)))


def read_spot(text: str) -> tuple[Spot | None, str]:
    """Return the spot of `text` (ADDRESS:PORT or a URL), or None and the name for [NAMESPACE/]NAME.

    Raises InputError for anything else.
    """
    if match := _URL.fullmatch(text):
        if authority := _AUTHORITY.fullmatch(match["authority"]):
            return _spot(authority, match["path"]), ""
    elif authority := _AUTHORITY.fullmatch(text):
        return _spot(authority, None), ""
    elif _NAME.fullmatch(text):
        return None, text
    raise InputError(f"{text!a} is not a target", where="TARGET", remedy=_REMEDY)


def _spot(authority: re.Match[str], path: str | None) -> Spot:
    return Spot(authority["v6"] or authority["v4"], int(authority["port"]), path)


def _named(mesh: MeshStatus, namespace: str, name: str) -> MeshWorkload:
    workloads = [
        workload
        for workload in mesh.workloads
        if workload.name == name and namespace in ("", workload.namespace)
    ]
    if len(workloads) == 1:
        return workloads[0]
    known = ", ".join(workload.title for workload in workloads or mesh.workloads) or "none"
    what = f"{len(workloads)} workloads are called" if workloads else "no workload is called"
    raise InputError(f"{what} {name}", where="TARGET", remedy=f"there are: {known}")


def _of(mesh: MeshStatus, workload: MeshWorkload) -> Iterator[ExplainTarget]:
    """Yield the ports of a workload that Prometheus reads, or a target with a fault when there is none."""
    known = [target for target in _known(mesh, workload, workload.addresses[0]) if target.announced]
    if not known:
        yield ExplainTarget(
            workload.addresses[0], 0, "", "https", "nothing", workload,
            fault=f"{workload.title} has no secure metrics port and no metrics behind mutual TLS",
            remedy="set ENVOY_SECURE_MERGED_METRICS_PORT in its proxyMetadata",
        )  # fmt: skip
    yield from known


def _at(mesh: MeshStatus, address: str, port: int, path: str | None) -> ExplainTarget:
    scheme = _scheme(mesh)
    owner = next((workload for workload in mesh.workloads if address in workload.addresses), None)
    if owner is None:
        known = ", ".join(f"{workload.addresses[0]} ({workload.title})" for workload in mesh.workloads)
        fault = f"no workload of the mesh has the address {address}"
        if inside := next(
            (workload.title for workload in mesh.workloads if address == workload.inside_address), ""
        ):
            fault = f"{address} is the inside address of {inside}, which cannot be reached from the network"
        return ExplainTarget(
            address, port, path or MERGED_PATH, scheme, "unknown", None, fault=fault,
            remedy=f"the workload may be gone; there are: {printable(known, _LONGEST)}",
        )  # fmt: skip
    known_ports = _known(mesh, owner, address)
    for target in known_ports:
        if target.port == port and path in (None, target.path):
            return target
    targets = ", ".join(target.url for target in known_ports if target.announced) or "none"
    same = next((target for target in known_ports if target.port == port), None)
    fault = f"the path there is {same.path}, not {path}" if same else _no_target(owner, port)
    return ExplainTarget(
        address, port, path or MERGED_PATH, scheme, "unknown", owner, fault=fault,
        remedy=f"targets of {owner.title}: {targets}",
    )  # fmt: skip


def _no_target(workload: MeshWorkload, port: int) -> str:
    if port in (workload.stats, workload.merged, workload.health):
        return f"port {port} serves plaintext and is not a target of secure scraping"
    if any(application.port == port for application in workload.application):
        return f"port {port} is an application's without metrics behind mutual TLS"
    return f"{workload.title} announces no port {port}"


def _known(mesh: MeshStatus, workload: MeshWorkload, address: str) -> Sequence[ExplainTarget]:
    """Return the secure ports of a workload at one of its addresses. Only the first address is announced."""

    def known(
        port: int, path: str, what: str, *, merged: bool = False, application: bool = False
    ) -> ExplainTarget:
        announced = address == workload.addresses[0]
        return ExplainTarget(
            address, port, path, _scheme(mesh), what, workload, merged, application, announced
        )  # fmt: skip

    targets = []
    if workload.secure_merged is not None:
        targets.append(known(workload.secure_merged, MERGED_PATH, "merged metrics", merged=True))
    if workload.secure_stats is not None:
        targets.append(known(workload.secure_stats, MERGED_PATH, "Envoy's statistics"))
    for application_port in workload.application:
        if application_port.metrics and application_port.mtls != "DISABLE" and workload.kind != "gateway":
            targets.append(
                known(
                    application_port.port,
                    application_port.metrics,
                    "the application's own metrics",
                    application=True,
                )
            )
    return targets


def _scheme(mesh: MeshStatus) -> str:
    """Return the scheme that Prometheus shows: http for targets that it reads through the scrape proxy."""
    return "http" if mesh.scrape_proxy else "https"
