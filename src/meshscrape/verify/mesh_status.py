"""Parse the part of the status document that verification needs (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshscrape.errors import InputError
from meshscrape.istio.allow_list import Scraper, SpiffeScraper, TrustDomainScraper, parse_scrapers
from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.spiffe.ids import SpiffeId

_WHERE = "status document"
_REMEDY = "use the status of a mesh started by this version (`meshscrape status -o json`)"


@dataclass(frozen=True, slots=True)
class ApplicationPortStatus:
    """A declared port of an application; `metrics` is the path of its metrics there, or empty."""

    name: str
    port: int
    mtls: str
    metrics: str = ""


@dataclass(frozen=True, slots=True)
class MeshWorkload:
    """One workload as its status describes it; ports that are off are None.

    `announced` are the URLs that discovery gives to Prometheus, as Prometheus shows them; `message` tells why
    the workload is not ready. `istio_agent` and `istio_listeners`: its agent, and the listeners of its secure
    ports, are Istio's own.
    """

    name: str
    namespace: str
    kind: str
    spiffe_id: SpiffeId
    addresses: tuple[str, ...]
    inside_address: str
    secure_stats: int | None
    secure_merged: int | None
    stats: int | None
    merged: int | None
    health: int | None
    application: tuple[ApplicationPortStatus, ...]
    hardened: bool
    credentials: str
    token: str
    scrapers: tuple[Scraper, ...]
    pids: frozenset[int] = frozenset()
    output_certificates: str = ""
    ready: bool = True
    message: str = ""
    announced: tuple[str, ...] = ()
    istio_agent: bool = False
    istio_listeners: bool = False

    @property
    def title(self) -> str:
        """Return NAMESPACE/NAME, as reports and options spell it."""
        return f"{self.namespace}/{self.name}"

    @property
    def has_identity(self) -> bool:
        """Return whether verification can use this workload's identity: by its credentials or its token."""
        return bool(self.credentials or self.token)

    def allows(self, identity: SpiffeId) -> bool:
        """Return whether the allow list of this workload's secure ports contains `identity`."""
        return any(_matches(entry, identity) for entry in self.scrapers)


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """The mesh to verify. `prometheus_url` is empty when it has no Prometheus.

    `scrape_proxy` is `host:port` of the proxy that Prometheus scrapes through, empty when there is none;
    `proxy_token` is the file with its bearer token.
    """

    trust_domain: str
    ca_address: str
    ca_root: str
    prometheus_url: str
    prometheus_workload: str
    workloads: tuple[MeshWorkload, ...]
    scrape_proxy: str = ""
    proxy_token: str = ""

    def workload(self, title: str) -> MeshWorkload:
        """Return the workload NAMESPACE/NAME. Raise InputError when there is none."""
        for workload in self.workloads:
            if workload.title == title:
                return workload
        known = ", ".join(workload.title for workload in self.workloads) or "none"
        raise InputError(f"no workload {title} in the mesh", where=_WHERE, remedy=f"there are: {known}")


def parse_mesh(status: Mapping[str, object]) -> MeshStatus:
    """Return the mesh of a MeshStatus document. Raise InputError for another kind, version or shape."""
    kind = f"{status.get('apiVersion')} {status.get('kind')}"
    if kind != f"{DOCUMENT_VERSION} MeshStatus":
        raise InputError(f"this is {kind}, not {DOCUMENT_VERSION} MeshStatus", where=_WHERE, remedy=_REMEDY)
    authority = _mapping(status, "ca")
    prometheus = _mapping(status, "prometheus") if status.get("prometheus") else {}
    proxy = _mapping(status, "scrapeProxy") if status.get("scrapeProxy") else {}
    listed = _list(status, "workloads")
    return MeshStatus(
        trust_domain=_text(status, "trustDomain"),
        ca_address=_text(authority, "address"),
        ca_root=_text(authority, "rootCertificate"),
        prometheus_url=_text(prometheus, "url", ""),
        prometheus_workload=_text(prometheus, "workload", ""),
        workloads=tuple(_workload(_as_mapping(entry, "workloads")) for entry in listed),
        scrape_proxy=_text(proxy, "address", "").removeprefix("http://").rstrip("/"),
        proxy_token=_text(proxy, "tokenFile", ""),
    )


def _workload(entry: Mapping[str, object]) -> MeshWorkload:
    ports = _mapping(entry, "ports")
    secure, plain = _mapping(ports, "secure"), _mapping(ports, "plaintext")
    addresses = tuple(str(address) for address in _list(entry, "addresses")) or (_text(entry, "address"),)
    return MeshWorkload(
        name=_text(entry, "name"),
        namespace=_text(entry, "namespace"),
        kind=_text(entry, "kind"),
        spiffe_id=SpiffeId.parse(_text(entry, "spiffeId")),
        addresses=addresses,
        inside_address=_text(entry, "insideAddress", ""),
        secure_stats=_port(secure, "envoy"),
        secure_merged=_port(secure, "merged"),
        stats=_port(plain, "envoy"),
        merged=_port(plain, "merged"),
        health=_port(plain, "health"),
        application=tuple(_application(_as_mapping(p, "application")) for p in _list(ports, "application")),
        hardened=entry.get("hardened") is True,
        credentials=_text(entry, "credentials", ""),
        token=_text(entry, "token", ""),
        scrapers=parse_scrapers(",".join(str(scraper) for scraper in _list(entry, "scrapers")), _WHERE),
        pids=_pids(_mapping(entry, "pids")),
        output_certificates=_text(entry, "outputCertificates", ""),
        ready=entry.get("ready") is not False,
        message=_text(entry, "message", ""),
        announced=tuple(_text(_as_mapping(target, "targets"), "url") for target in _list(entry, "targets")),
        istio_agent=entry.get("istioAgent") is True,
        istio_listeners=entry.get("istioListeners") is True,
    )


def _pids(entry: Mapping[str, object]) -> frozenset[int]:
    """Return the processes of a workload, as far as the status names them."""
    listed = (entry.get("agent"), entry.get("envoy"), *_list(entry, "application"))
    return frozenset(pid for pid in listed if isinstance(pid, int) and pid > 1)


def _application(entry: Mapping[str, object]) -> ApplicationPortStatus:
    port = _port(entry, "port")
    if port is None:
        raise InputError("an application port has no number", where=_WHERE, remedy=_REMEDY)
    name, mtls = _text(entry, "name", ""), _text(entry, "mtls", "PERMISSIVE")
    return ApplicationPortStatus(name, port, mtls, _text(entry, "metrics", ""))


def _matches(entry: Scraper, identity: SpiffeId) -> bool:
    match entry:
        case SpiffeScraper(id=listed):
            return listed == identity
        case TrustDomainScraper(trust_domain=trust_domain):
            return trust_domain == identity.trust_domain
        case _:
            return False


def _text(entry: Mapping[str, object], key: str, default: str | None = None) -> str:
    value = entry.get(key)
    if isinstance(value, str) and value:
        return value
    if value in (None, "") and default is not None:
        return default
    raise InputError(f"{key} is not a string", where=_WHERE, remedy=_REMEDY)


def _port(entry: Mapping[str, object], key: str) -> int | None:
    value = entry.get(key)
    if value is None or value == 0:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65535:
        return value
    raise InputError(f"{key} is not a port", where=_WHERE, remedy=_REMEDY)


def _mapping(entry: Mapping[str, object], key: str) -> Mapping[str, object]:
    return _as_mapping(entry.get(key, {}), key)


def _as_mapping(value: object, key: str) -> Mapping[str, object]:
    if isinstance(value, Mapping):
        return value
    raise InputError(f"{key} is not an object", where=_WHERE, remedy=_REMEDY)


def _list(entry: Mapping[str, object], key: str) -> Sequence[object]:
    value = entry.get(key, [])
    if isinstance(value, (list, tuple)):
        return value
    raise InputError(f"{key} is not a list", where=_WHERE, remedy=_REMEDY)
