"""Verify a mesh of a cluster from inside: describe it for verifiers in pods, and join their reports (pure).

A verifier is a pod that runs `meshscrape verify --mesh FILE`. The scraper's verifier has the ServiceAccount
of a Prometheus, so that the CA issues it the same SPIFFE ID. The stranger's has one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from meshscrape.errors import InputError
from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.istio.ports import MERGED, SECURE_STATS, STATS
from meshscrape.kube.objects import Object
from meshscrape.observe.model import Scraper
from meshscrape.observe.observation import Observation
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.spiffe.ids import workload_id
from meshscrape.verify.findings import CheckResult, Outcome, Report
from meshscrape.verify.kubernetes import secured, title_of
from meshscrape.verify.observations import ConnectionRefused, TimedOut, describe
from meshscrape.verify.ports import ADMIN_PORT

# Checks that judge what meshscrape's own agent merges (`families`, `sources`) do not apply to Istio's, and
# applications' own ports have Istio's rules for TLS, which differ from those of the local mesh.
SCRAPER_CHECKS = (
    "scraper-admitted", "content-type", "exposition", "server-certificate", "plain-http", "no-certificate",
    "other-ca", "expired-certificate", "session-resumption", "legacy-tls", "silent-connection", "paths",
    "methods", "plaintext-closed",
)  # fmt: skip
STRANGER_CHECKS = (
    "plain-http", "no-certificate", "unlisted-workload", "plaintext-closed", "plaintext-open",
    "exposed-metrics", "exposed-admin",
)  # fmt: skip
_WITH_ALLOW_LIST = ("bootstrap", "legacy")
_WORST: tuple[Outcome, ...] = ("failed", "skipped", "blocked", "noted", "passed")
# A sidecar that intercepts inbound traffic accepts connections to every port, so ports are not searched for.
_MOST_PORTS = 64
_UNREACHED = tuple(
    f"could not be checked: {describe(silence)}" for silence in (TimedOut("connect"), ConnectionRefused())
)


@dataclass(frozen=True, slots=True)
class Verifier:
    """The identity of a verifier: its namespace and ServiceAccount, and the checks that it makes."""

    namespace: str
    account: str
    checks: tuple[str, ...]

    @property
    def title(self) -> str:
        """Return NAMESPACE/NAME, as reports and options spell a workload."""
        return f"{self.namespace}/{self.account}"


@dataclass(frozen=True, slots=True)
class VerifierFiles:
    """Where a verifier's pod has the CA's root and its own token, and the CA's `host:port`."""

    ca_address: str
    roots: str
    token: str


def scraper_among(observation: Observation, wanted: str) -> Scraper:
    """Return the scraper NAMESPACE/NAME, by default the first that reads a secure port.

    Raises InputError if there is none.
    """
    reading = {
        job.scraper for job in observation.scrape_jobs if job.scraper and (job.over == "mtls" or job.verified)
    }
    known = [scraper for scraper in observation.scrapers if not scraper.stopped and scraper.spiffe_id]
    for scraper in known:
        if f"{scraper.namespace}/{scraper.name}" == wanted or (not wanted and scraper.ref in reading):
            return scraper
    names = ", ".join(sorted(f"{scraper.namespace}/{scraper.name}" for scraper in known)) or "none"
    raise InputError(
        f"no scraper {wanted}" if wanted else "no scraper reads a secure port",
        where="--as",
        remedy=f"name one with --as; there are: {names}",
        code="no-scraper",
    )


def mesh_document(
    observation: Observation, verifier: Verifier | None = None, files: VerifierFiles | None = None,
    *, by_name: bool = False, scrape_proxy: str = "",
) -> Object:  # fmt: skip
    """Return the MeshStatus document of the secured workloads, with the verifier as its scraper.

    Open plaintext ports are there unless the verifier tries paths and methods: Istio's agent has more than
    metrics on them. `by_name`: names of pods instead of their addresses, as reports show them. `scrape_proxy`
    is the address of the proxy that the scraper reads through.
    """
    open_too = verifier is None or "paths" not in verifier.checks
    domain = observation.mesh.trust_domain
    own = []
    if verifier is not None and files is not None:
        own.append(
            {
                **_entry(verifier.namespace, verifier.account, ["127.0.0.1"]),
                "kind": "credentials",
                "spiffeId": str(workload_id(domain, verifier.namespace, verifier.account)),
                "token": files.token,
            }
        )
    return {
        "apiVersion": DOCUMENT_VERSION,
        "kind": "MeshStatus",
        "trustDomain": domain,
        "ca": {
            "address": files.ca_address if files else "unknown",
            "rootCertificate": files.roots if files else "unknown",
        },
        "prometheus": {"workload": verifier.title} if verifier else None,
        "scrapeProxy": {"address": scrape_proxy} if scrape_proxy else None,
        "workloads": [
            *own,
            *(
                _workload(workload, domain, open_too=open_too, by_name=by_name)
                for workload in secured(observation)
                if _addresses(workload)
            ),
        ],
    }


def ports_to_try(observation: Observation) -> tuple[int, ...]:
    """Return the ports to try for metrics and for Envoy's admin API: what the pods' containers declare."""
    return _declared(observation)[:_MOST_PORTS]


def untried(observation: Observation) -> Iterator[CheckResult]:
    """Yield a finding if there are more declared ports than one Job tries."""
    if left := _declared(observation)[_MOST_PORTS:]:
        shown = ", ".join(map(str, left[:5])) + (", …" if len(left) > 5 else "")
        yield CheckResult(
            "exposed-metrics", "", "", "skipped", f"not tried: {len(left)} declared ports ({shown})",
            f"at most {_MOST_PORTS} ports in one run", "verify namespace by namespace: --namespace NAME",
            "skipped",
        )  # fmt: skip


def _declared(observation: Observation) -> tuple[int, ...]:
    ports = {port.number for workload in secured(observation) for port in workload.container_ports}
    return (ADMIN_PORT, *sorted(ports - {ADMIN_PORT}))


def join(
    observation: Observation, scraper: Report, stranger: Report, stranger_namespace: str
) -> Iterator[CheckResult]:
    """Yield one result for each check and port from both reports, the worse of two.

    A target is written POD:PORT. A stranger that cannot even connect to a port that admits the scraper is
    kept out by the network, which is as good as a refusal.
    """
    # Two kinds of workloads can have one name: the pod's address tells them apart.
    owners = {pod.ip: workload for workload in secured(observation) for pod in workload.running if pod.ip}
    titles = {title_of(workload): workload for workload in secured(observation)}
    pods = {pod.ip: pod.ref.name for workload in owners.values() for pod in workload.running if pod.ip}
    alive = {
        result.target
        for result in scraper.checks
        if (result.check, result.outcome) == ("scraper-admitted", "passed")
    }
    results: dict[tuple[str, str, str], list[CheckResult]] = {}
    both = (*scraper.checks, *(_by_network(result, alive, stranger_namespace) for result in stranger.checks))
    for result in both:
        workload = owners.get(_host(result.target)) or titles.get(result.workload)
        if workload is not None and not _needless(result, workload):
            shown = replace(_with_mode(result, workload), target=_place(result.target, pods))
            results.setdefault((shown.workload, shown.check, shown.target), []).append(shown)
    for group in results.values():
        yield _joined(group)


def _workload(workload: ObservedWorkload, domain: str, *, open_too: bool, by_name: bool) -> Object:
    metrics = workload.metrics
    stats = next((port for port in metrics.listening if port == (metrics.envoy or SECURE_STATS)), None)
    merged = next((port for port in metrics.listening if port != stats), None)
    plaintext = {"envoy": STATS, "merged": MERGED} if metrics.hardened or open_too else {}
    return {
        **_entry(workload.namespace, workload.name, _addresses(workload, by_name=by_name)),
        "kind": "gateway" if workload.is_gateway else "sidecar",
        "spiffeId": workload.spiffe_id,
        "ports": {"secure": {"envoy": stats, "merged": merged}, "plaintext": plaintext},
        "hardened": metrics.hardened,
        "istioAgent": True,
        "istioListeners": metrics.mode != "bootstrap",
        "scrapers": sorted(_admitted(workload, domain)),
    }


def _entry(namespace: str, name: str, addresses: Sequence[str]) -> dict[str, object]:
    return {"namespace": namespace, "name": name, "addresses": list(addresses), "ports": {}, "pids": {}}


def _addresses(workload: ObservedWorkload, *, by_name: bool = False) -> list[str]:
    return [pod.ref.name if by_name else pod.ip for pod in workload.running if pod.ip]


def _admitted(workload: ObservedWorkload, domain: str) -> Iterable[str]:
    """Return the allow list as far as it is known. Istio's own listeners admit every workload of the mesh."""
    if workload.metrics.mode in _WITH_ALLOW_LIST:
        return (workload.override.allowed if workload.override else None) or ()
    return (f"spiffe:spiffe://{domain}/*",)


def _with_mode(result: CheckResult, workload: ObservedWorkload) -> CheckResult:
    """Return the result, as a note where the workload's mode cannot do better."""
    if result.check == "unlisted-workload" and workload.metrics.mode not in _WITH_ALLOW_LIST:
        seen = (
            f"{workload.metrics.mode} mode has no allow list: every workload of the mesh can read this port"
        )
        return replace(result, outcome="noted", seen=seen, remedy="--mode bootstrap has an allow list")
    return result


def _by_network(result: CheckResult, alive: set[str], namespace: str) -> CheckResult:
    if result.outcome == "skipped" and result.seen in _UNREACHED and result.target in alive:
        seen = result.seen.removeprefix("could not be checked: ")
        return replace(result, outcome="passed", seen=f"not reachable from namespace {namespace}: {seen}")
    return result


def _needless(result: CheckResult, workload: ObservedWorkload) -> bool:
    """Return whether a port that only other workloads declare was tried in vain."""
    declared = {ADMIN_PORT, *(port.number for port in workload.container_ports)}
    port = result.target.rpartition(":")[2]
    tried = result.check in ("exposed-metrics", "exposed-admin") and result.outcome == "passed"
    return tried and port.isdigit() and int(port) not in declared


def _host(target: str) -> str:
    """Return the address of a target `ADDRESS:PORT`, or of one without a port."""
    host, colon, port = target.rpartition(":")
    return host.strip("[]") if colon and port.isdigit() and not target.endswith("::" + port) else target


def _place(target: str, pods: dict[str, str]) -> str:
    host, colon, port = target.rpartition(":")
    if not colon or target in pods:
        return pods.get(target, target)
    return f"{pods.get(host.strip('[]'), host)}:{port}"


def _joined(group: Sequence[CheckResult]) -> CheckResult:
    """Return the worst of several results of one check and port, with what the others saw if it differs."""
    worst = min(group, key=lambda result: _WORST.index(result.outcome))
    same = [result.seen for result in group if result.outcome == worst.outcome]
    return replace(worst, seen="; ".join(dict.fromkeys(same)), cases=sum(result.cases for result in group))
