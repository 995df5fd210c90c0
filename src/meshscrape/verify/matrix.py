"""Which probes a mesh needs: a pure function of its status document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from meshscrape.istio.names import MERGED_PATH
from meshscrape.verify.mesh_status import ApplicationPortStatus, MeshStatus, MeshWorkload

ADMIN_PORT = 15000

IdentityKind: TypeAlias = Literal[
    "plain", "anonymous", "scraper", "stranger", "short-lived", "expired", "workload"
]
ProbeKind: TypeAlias = Literal["http", "certificate", "legacy-tls", "resumption"]
Exposure: TypeAlias = Literal["hidden", "announced", "outside"]

# A whole merged exposition may have to be read to be judged; of anything else the head is enough.
WHOLE = 256 * 2**20
HEAD = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a probe appears as; `workload` is the NAMESPACE/NAME for kind "workload"."""

    kind: IdentityKind
    workload: str = ""


PLAIN = Identity("plain")
ANONYMOUS = Identity("anonymous")
SCRAPER = Identity("scraper")
STRANGER = Identity("stranger")
SHORT_LIVED = Identity("short-lived")
EXPIRED = Identity("expired")


@dataclass(frozen=True, slots=True)
class Probe:
    """One visit: to where, as whom, asking for what. `limit` is how many bytes of a body are read.

    `headers` are sent besides the usual ones; they may hold a token, and are never shown.
    """

    address: str
    port: int
    identity: Identity
    kind: ProbeKind = "http"
    method: str = "GET"
    path: str = MERGED_PATH
    limit: int = HEAD
    version: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def target(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return host_port(self.address, self.port)


@dataclass(frozen=True, slots=True)
class Case:
    """A probe and what to call it in a finding."""

    probe: Probe
    label: str = ""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the judge must know besides the observations.

    `exposure` is whose an open port is: "hidden" (of the workload, not announced), "announced" or "outside"
    (of a process beside the mesh), `paths` what it was asked for, in order. `looked` says that there was
    nothing to try, and how it was looked for.
    """

    spiffe_id: str = ""
    families: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    versioned: bool = False
    exposure: Exposure = "hidden"
    paths: tuple[str, ...] = ()
    looked: str = ""
    unable: str = ""


@dataclass(frozen=True, slots=True)
class PlannedCheck:
    """One check of one target: every case must come out as the check expects.

    With `expectation.unable` it has no case: it cannot be made, for that reason.
    """

    check: str
    workload: str
    target: str
    cases: tuple[Case, ...]
    expectation: Expectation = Expectation()


def host_port(address: str, port: int) -> str:
    """`address:port` as it stands in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def plan(mesh: MeshStatus, scraper: MeshWorkload) -> tuple[PlannedCheck, ...]:
    """Every check of every port of the mesh, visited with the credentials of `scraper` among others."""
    return tuple(check for workload in mesh.workloads for check in _workload(mesh, workload, scraper))


def _workload(mesh: MeshStatus, workload: MeshWorkload, scraper: MeshWorkload) -> Iterator[PlannedCheck]:
    unlisted = _unlisted(mesh, workload)
    for address in workload.addresses:
        for port, merged in ((workload.secure_stats, False), (workload.secure_merged, True)):
            if port is not None:
                yield from _secure_port(workload, Probe(address, port, SCRAPER), unlisted, merged)
        for port, name in ((workload.stats, "Envoy's statistics"), (workload.merged, "merged metrics")):
            if port is not None:
                yield from _plaintext_port(workload, Probe(address, port, PLAIN), name)
        if workload.health is not None:
            yield from _beyond(workload, Probe(address, workload.health, PLAIN), "/healthz/ready")
        for application in workload.application:
            yield from _application_port(workload, Probe(address, application.port, SCRAPER), application)
    if workload.kind != "credentials":
        yield from _admin(workload)


def _secure_port(
    workload: MeshWorkload, probe: Probe, unlisted: MeshWorkload | None, merged: bool
) -> Iterator[PlannedCheck]:
    def check(name: str, *cases: Case, expectation: Expectation = Expectation()) -> PlannedCheck:
        return PlannedCheck(name, workload.title, probe.target, cases, expectation)

    scrape = Case(replace(probe, limit=WHOLE))
    families = ("envoy_", "istio_agent_", "meshscrape_source_up") if merged else ("envoy_",)
    sources = tuple(f"application:{each.port}" for each in workload.application if each.metrics)
    yield check("scraper-admitted", scrape)
    yield check("content-type", scrape, expectation=Expectation(versioned=merged))
    yield check("exposition", scrape)
    yield check("families", scrape, expectation=Expectation(families=families))
    if merged:
        yield check("sources", scrape, expectation=Expectation(sources=sources))
    yield from _tls(workload, probe)
    yield check("other-ca", Case(replace(probe, identity=STRANGER)))
    lives = (Case(replace(probe, identity=each), each.kind) for each in (SHORT_LIVED, EXPIRED))
    yield check("expired-certificate", *lives)
    resumed = (replace(probe, kind="resumption", version=each) for each in ("TLS 1.2", "TLS 1.3"))
    yield check("session-resumption", *(Case(each, each.version) for each in resumed))
    if unlisted is None:
        reason = "every workload of the mesh is on the allow list of this port"
        yield check("unlisted-workload", expectation=Expectation(unable=reason))
    else:
        other = replace(probe, identity=Identity("workload", unlisted.title))
        yield check("unlisted-workload", Case(other, unlisted.title))
    yield from _beyond(workload, probe, MERGED_PATH)


def _tls(workload: MeshWorkload, probe: Probe) -> Iterator[PlannedCheck]:
    """What every mutual TLS port owes, whoever may read it."""

    def check(name: str, *cases: Case, expectation: Expectation = Expectation()) -> PlannedCheck:
        return PlannedCheck(name, workload.title, probe.target, cases, expectation)

    identity = Expectation(spiffe_id=str(workload.spiffe_id))
    yield check("server-certificate", Case(replace(probe, kind="certificate")), expectation=identity)
    yield check("plain-http", Case(replace(probe, identity=PLAIN)))
    yield check("no-certificate", Case(replace(probe, identity=ANONYMOUS)))
    legacy = [
        Case(replace(replace(probe, identity=ANONYMOUS), kind="legacy-tls", version=version), version)
        for version in ("TLS 1.0", "TLS 1.1")
    ]
    yield check("legacy-tls", *legacy)


def _beyond(workload: MeshWorkload, probe: Probe, path: str) -> Iterator[PlannedCheck]:
    """Paths and methods beyond the one that is served."""
    spellings = other_paths(path, probe.target)
    asked = tuple(Case(replace(probe, path=spelling), f"GET {spelling}") for spelling in spellings)
    yield PlannedCheck("paths", workload.title, probe.target, asked)
    methods = [Case(replace(probe, method=method, path=path), f"{method} {path}") for method in OTHER_METHODS]
    tunnel = Case(replace(probe, method="CONNECT", path=probe.target), f"CONNECT {probe.target}")
    yield PlannedCheck("methods", workload.title, probe.target, (*methods, tunnel))


def _plaintext_port(workload: MeshWorkload, probe: Probe, name: str) -> Iterator[PlannedCheck]:
    if workload.hardened:
        yield PlannedCheck("plaintext-closed", workload.title, probe.target, (Case(probe, name),))
        return
    yield PlannedCheck("plaintext-open", workload.title, probe.target, (Case(probe, name),))
    yield from _beyond(workload, probe, MERGED_PATH)


def _application_port(
    workload: MeshWorkload, probe: Probe, application: ApplicationPortStatus
) -> Iterator[PlannedCheck]:
    # A gateway's own port is for clients from outside the mesh.
    if application.mtls == "DISABLE" or workload.kind == "gateway":
        return
    path = application.metrics or "/"
    if application.metrics:
        scrape = Case(replace(probe, path=path, limit=WHOLE))
        yield PlannedCheck("application-metrics", workload.title, probe.target, (scrape,))
    checks = _tls(workload, replace(probe, path=path))
    if application.mtls == "STRICT":
        yield from checks
    else:
        yield from (each for each in checks if each.check == "server-certificate")


def _admin(workload: MeshWorkload) -> Iterator[PlannedCheck]:
    addresses = dict.fromkeys((*workload.addresses, workload.inside_address))
    for address in filter(None, addresses):
        probe = Probe(address, ADMIN_PORT, PLAIN, path="/server_info")
        yield PlannedCheck("admin-closed", workload.title, probe.target, (Case(probe),))


def _unlisted(mesh: MeshStatus, workload: MeshWorkload) -> MeshWorkload | None:
    """A workload with credentials that may not scrape `workload`; preferably another one than itself."""
    candidates = [each for each in mesh.workloads if each.credentials and not workload.allows(each.spiffe_id)]
    return next((each for each in candidates if each is not workload), next(iter(candidates), None))


# Harmless where they are let through: nothing here changes a server's state.
OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE")

_ADMIN_PATHS = (
    "/", "/server_info", "/config_dump", "/certs", "/clusters", "/listeners", "/stats", "/help", "/ready",
    "/stats/recentlookups", "/config_dump?include_eds",
)  # fmt: skip

# The read-only admin page that a traversal asks for; `{path}` is a path that is served.
_TRAVERSALS = (
    "{path}/../../server_info",
    "{path}/../../../../server_info",
    "{path}/.././../server_info",
    "{path}/../../server_info/",
    "{path}/../recentlookups",
    "{path}/%2e%2e/%2e%2e/server_info",
    "{path}/%2E%2E/%2E%2E/server_info",
    "{path}/.%2e/%2e./server_info",
    "{path}/..%2f..%2fserver_info",
    "{path}/..%2F..%2Fserver_info",
    "{path}%2f..%2f..%2fserver_info",
    "{path}/%2e%2e%2f%2e%2e%2fserver_info",
    "{path}/%252e%252e/%252e%252e/server_info",
    "{path}/..%252f..%252fserver_info",
    "{path}\\..\\..\\server_info",
    "{path}/..\\..\\server_info",
    "{path}/..%5c..%5cserver_info",
    "{path}/..;/..;/server_info",
    "{path};/../../server_info",
    "{path}/..%00/..%00/server_info",
    "{path}/%c0%ae%c0%ae/%c0%ae%c0%ae/server_info",
    "{path}//..//..//server_info",
    "//server_info",
    "/./server_info",
    "/%2fserver_info",
    "/%73erver_info",
    "http://{target}/server_info",
    "https://{target}/server_info",
    "http://{target}{path}/../../server_info",
    "http://localhost:15000/server_info",
)


def other_paths(path: str, target: str) -> tuple[str, ...]:
    """Paths beyond `path` that must be refused at `target`: Envoy's admin pages, straight and in disguise."""
    direct: Iterable[str] = (each for each in _ADMIN_PATHS if each != path)
    return (*direct, *(each.format(path=path, target=target) for each in _TRAVERSALS))
