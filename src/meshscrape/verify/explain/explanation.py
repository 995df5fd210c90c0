"""Explain why a target is down or refused, in steps from the scraper's certificate to Prometheus (pure).

Each step tells what was seen. The first broken step ends the explanation, because later steps cannot work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from meshscrape.envoy.refusals import REASON_HEADER, Refusal, refusal_of
from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import identity_of, load_certificates
from meshscrape.verify import scraped
from meshscrape.verify.explain.scraper import ScraperFiles, Step, certificate_steps
from meshscrape.verify.explain.sources import has_sources, source_steps
from meshscrape.verify.explain.target import ExplainTarget
from meshscrape.verify.judges import certificate_verdict
from meshscrape.verify.mesh_status import MeshWorkload
from meshscrape.verify.observations import (
    Answered,
    Closed,
    ConnectionRefused,
    Negotiated,
    NotHttp,
    NotObserved,
    Observation,
    Presented,
    Reset,
    TimedOut,
    TlsAlert,
    TlsFailed,
    Unreachable,
    describe,
    printable,
)
from meshscrape.verify.prometheus_checks import Scraping, WantedTarget, target_of
from meshscrape.verify.registry import CHECKS

# The proxy itself causes these refusals. The target causes all others, and the next steps say why.
_OF_THE_PROXY = frozenset(
    {"bad-token", "bad-method", "unknown-target", "unknown-path", "bad-request", "no-scraper-certificate",
     "overloaded", "unavailable"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Explanation:
    """The steps for one target, up to the first broken one."""

    target: ExplainTarget
    steps: tuple[Step, ...]

    @property
    def broken(self) -> Step | None:
        """Return the broken step that explains the target's state, or None when the target is healthy."""
        return next((step for step in self.steps if step.outcome == "broken"), None)


@dataclass(frozen=True, slots=True)
class ProxyAnswer:
    """What the scrape proxy at `address` answered to a scrape of the target."""

    address: str
    seen: Observation


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that was seen of one target; None for what was not tried, because it could not work.

    `handshake` is a TLS handshake alone, `answer` a whole scrape, and `again` a second scrape if
    `drops_lines` is true, all with the scraper's credentials. `prometheus` is the reason when its API does
    not answer.
    """

    files: ScraperFiles
    proxy: ProxyAnswer | None = None
    handshake: Observation | None = None
    answer: Observation | None = None
    again: Observation | None = None
    prometheus: Scraping | str | None = None


def explain(target: ExplainTarget, observed: Observed, now: datetime) -> Explanation:
    """Return the steps up to the first broken one."""
    steps: list[Step] = []
    for step in _steps(target, observed, now):
        steps.append(step)
        if step.outcome == "broken":
            break
    return Explanation(target, tuple(steps))


def _steps(target: ExplainTarget, observed: Observed, now: datetime) -> Iterator[Step]:
    yield from certificate_steps(observed.files, now)
    yield discovery_step(target)
    if observed.proxy is not None:
        yield proxy_step(observed.proxy)
    yield connection_step(target, observed.handshake or NotObserved("not tried"))
    yield from tls_steps(target, observed.handshake or NotObserved("not tried"), now)
    answer = observed.answer or NotObserved("not tried")
    yield acceptance_step(answer)
    yield authorisation_step(target, answer, _identity(observed.files))
    yield status_step(answer)
    yield from exposition_steps(target, answer, observed.again)
    if observed.proxy is not None:
        yield passage_step(observed.proxy)
    yield prometheus_step(target, observed.prometheus)


def discovery_step(target: ExplainTarget) -> Step:
    """Return whether discovery announces the target, and whether its workload is ready."""
    name, workload = "discovery", target.workload
    if target.fault:
        return Step(name, "broken", target.fault, target.remedy)
    if workload is None:
        return Step(name, "ok", f"{target.what}, expected to be {target.expected}")
    if not workload.ready:
        reason = f": {printable(workload.message)}" if workload.message else ""
        remedy = "see the workload's agent log; a workload that is not ready is not a target"
        return Step(name, "broken", f"{workload.title} is not ready{reason}", remedy)
    if workload.announced and not _announced(workload, target):
        known = ", ".join(workload.announced)
        remedy = "use one of these; a target follows within seconds of the workload being ready"
        return Step(name, "broken", f"announced are {known}, not {target.url}", remedy)
    return Step(name, "ok", f"{target.what} of {workload.title}, ready, expected to be {workload.spiffe_id}")


def proxy_step(proxy: ProxyAnswer) -> Step:
    """Return whether the scrape proxy runs, accepts the token and knows the target."""
    name = "scrape proxy"
    match proxy.seen:
        case Answered(status=200):
            return Step(name, "ok", f"{proxy.address} passed a scrape on and got HTTP 200")
        case Answered() as answer:
            refusal, words = _refusal(answer)
            if refusal is None:
                return Step(name, "note", f"passes on the target's own HTTP {answer.status}")
            if refusal.reason in _OF_THE_PROXY:
                return Step(name, "broken", words, refusal.remedy)
            return Step(name, "note", f"refuses to pass the scrape on: {words}; the next steps show why")
        case other:
            remedy = "see that the proxy runs (a mesh's: `meshscrape status -o json`), and its log"
            return Step(name, "broken", f"{proxy.address}: {describe(other)}", remedy)


def passage_step(proxy: ProxyAnswer) -> Step:
    """Return whether a scrape that works directly works through the proxy too."""
    name = "through the proxy"
    match proxy.seen:
        case Answered(status=200):
            return Step(name, "ok", "HTTP 200")
        case Answered() as answer:
            refusal, words = _refusal(answer)
            remedy = refusal.remedy if refusal else "see the proxy's log"
            return Step(
                name, "broken", f"a scrape without the proxy succeeds, one through it: {words}", remedy
            )
        case other:
            return Step(name, "broken", describe(other), "see the proxy's log")


def connection_step(target: ExplainTarget, observation: Observation) -> Step:
    """Return whether something accepts connections at the address."""
    name = "TCP connection"
    remedy = "see that the workload's Envoy runs (`meshscrape listeners`) and its agent's log"
    match observation:
        case ConnectionRefused():
            return Step(name, "broken", f"{target.authority} refuses connections: nothing listens", remedy)
        case Unreachable() | TimedOut(phase="connect"):
            remedy = "see the network between the scraper and the target: routes, policies, firewalls"
            return Step(name, "broken", f"{target.authority}: {describe(observation)}", remedy)
        case NotObserved(reason=reason):
            return Step(name, "broken", reason, "see the scraper's credentials")
        case _:
            return Step(name, "ok", f"{target.authority} accepts connections")


def tls_steps(target: ExplainTarget, observation: Observation, now: datetime) -> Iterator[Step]:
    """Yield whether the server speaks TLS, and which identity it has."""
    name = "TLS handshake"
    match observation:
        case Presented():
            yield Step(name, "ok", "the server completes a handshake")
        case Negotiated(version=version):
            yield Step(name, "ok", f"the server agrees to {version}")
        case TlsAlert():
            yield Step(name, "broken", describe(observation), _ALERTS.get(observation.name, _OTHER_ALERT))
            return
        case TlsFailed() | NotHttp():
            remedy = "something else listens there, or the port is a plaintext one: scrape 15091 or 15092"
            yield Step(name, "broken", describe(observation), remedy)
            return
        case _:
            remedy = "the listener may be overloaded or draining: try again, and see the workload's Envoy log"
            yield Step(name, "broken", describe(observation), remedy)
            return
    verdict = certificate_verdict(observation, target.expected, now)
    if verdict.outcome == "passed":
        yield Step("server's identity", "ok", f"{verdict.seen}, as expected, from a trusted CA")
    else:
        yield Step("server's identity", "broken", verdict.seen, CHECKS["server-certificate"].remedy)


def acceptance_step(observation: Observation) -> Step:
    """Return whether the target accepts the scraper's certificate (in TLS 1.3, known after the handshake)."""
    name = "client certificate"
    match observation:
        case TlsAlert(name=alert):
            return Step(
                name,
                "broken",
                f"the target refuses it: {describe(observation)}",
                _ALERTS.get(alert, _OTHER_ALERT),
            )
        case Reset() | Closed():
            remedy = "see the workload's Envoy log; it may be draining, or at its limit of connections"
            return Step(name, "broken", f"the target ends the connection: {describe(observation)}", remedy)
        case NotHttp() | TlsFailed() | ConnectionRefused() | Unreachable() | NotObserved():
            return Step(name, "broken", describe(observation), "try again; see the workload's Envoy log")
        case TimedOut():
            remedy = "the target hangs: see the workload's agent and Envoy log"
            return Step(name, "broken", describe(observation), remedy)
        case _:
            return Step(name, "ok", "the target's TLS accepts it")


def authorisation_step(target: ExplainTarget, observation: Observation, identity: str) -> Step:
    """Return whether the scraper is on the allow list."""
    name = "authorisation"
    listed = ", ".join(map(str, target.workload.scrapers)) if target.workload else ""
    if isinstance(observation, Answered) and observation.status == 403:
        entries = f"its allow list: {listed}" if listed else "its allow list is empty: no scraper is admitted"
        if target.workload is None:
            entries = "it is not on the target's allow list"
        remedy = f"add spiffe:{identity} to MESHSCRAPE_SCRAPERS of the workload"
        return Step(name, "broken", f"{describe(observation)}: {identity} may not scrape; {entries}", remedy)
    if target.application:
        return Step(name, "ok", "an application's own port has no allow list")
    if target.workload is None:
        return Step(name, "ok", "the target lets the scraper in")
    return Step(name, "ok", f"the scraper is on the allow list ({listed})")


def status_step(observation: Observation) -> Step:
    """Return whether the target answers a scrape with 200."""
    name = "HTTP status"
    match observation:
        case Answered(status=200):
            return Step(name, "ok", "HTTP 200")
        case Answered(status=404):
            return Step(
                name, "broken", describe(observation), "scrape exactly the path that discovery announces"
            )
        case Answered(status=status) if status >= 500:
            remedy = "Envoy answers, but the server behind it does not: check the agent and the application"
            return Step(name, "broken", describe(observation), remedy)
        case other:
            return Step(name, "broken", describe(other), "see what answers on this port")


def exposition_steps(
    target: ExplainTarget, observation: Observation, again: Observation | None
) -> Iterator[Step]:
    """Yield whether Prometheus can read the body, and what is missing in it; `again` is a second scrape."""
    if not isinstance(observation, Answered):
        return
    if observation.end == "cut":
        remedy = "the target ended the connection in the middle: see its Envoy's and its agent's log"
        yield Step("exposition", "broken", "the body is cut off", remedy)
        return
    sources = tuple(
        f"application:{port.port}" for port in (target.workload.application if target.workload else ())
        if port.metrics
    )  # fmt: skip
    typed, _ = scraped.content_type_fault(observation, versioned=target.merged)
    # A target file does not tell whether an application answers there, which may send another type.
    own_type = target.application or (target.workload is None and observation.header("content-type") != "")
    if typed and not own_type:
        yield Step("exposition", "broken", typed, "Prometheus 3 refuses a scrape without a valid type")
        return
    wrong, right = scraped.exposition_fault(observation.body)
    remedy = "the lines that are named break the text format: check which application exports them"
    yield Step("exposition", "broken" if wrong else "ok", wrong or right, remedy if wrong else "")
    if target.merged or (target.workload is None and has_sources(observation.body)):
        yield from source_steps(observation.body, sources, again)


def prometheus_step(target: ExplainTarget, scraping: Scraping | str | None) -> Step:
    """Return what Prometheus itself reports about the target."""
    name = "Prometheus"
    if scraping is None:
        return Step(name, "skipped", "the mesh has no Prometheus" if target.workload else "it is not asked")
    if isinstance(scraping, str):
        return Step(name, "broken", scraping, "see that Prometheus runs")
    if not target.announced:
        return Step(name, "skipped", "this port is not a target of Prometheus")
    wanted = WantedTarget("", target.authority, f"https://{target.authority}{target.path}")
    active = target_of(wanted, scraping)
    if not active:
        remedy = (
            "it discovers targets every few seconds; if not, check its jobs: `meshscrape prometheus-config`"
        )
        return Step(name, "broken", f"it does not have the target {target.url}", remedy)
    worst = next((candidate for candidate in active if candidate.health not in ("up", "unknown")), None)
    if worst is None:
        if new := next((candidate for candidate in active if candidate.health == "unknown"), None):
            return Step(name, "note", f"it knows {new.url}, and has not scraped it yet")
        through = " through the scrape proxy" if scraping.proxied(active[0]) else ""
        return Step(name, "ok", f"{active[0].url} is up{through}")
    said = f": {printable(worst.error, 300)}" if worst.error else ""
    remedy = "every step before this one works now: its next scrape should succeed; compare its credentials"
    return Step(name, "broken", f"{worst.url} is {worst.health}{said}", remedy)


def _refusal(answer: Answered) -> tuple[Refusal | None, str]:
    """Return the catalogue's entry for a refusal of the proxy, and its text; None for a target's answer."""
    refusal = refusal_of(answer.header(REASON_HEADER))
    if refusal is None:
        return None, describe(answer)
    return refusal, f"{refusal.reason} (HTTP {answer.status}): {refusal.meaning}"


def _announced(workload: MeshWorkload, target: ExplainTarget) -> bool:
    plain = {url.partition("://")[2] for url in workload.announced}
    return f"{target.authority}{target.path}" in plain or not target.announced


def _identity(files: ScraperFiles) -> str:
    try:
        return str(identity_of(load_certificates(files.chain, files.directory)[0]))
    except InputError:
        return "the scraper"


_OTHER_ALERT = "see the workload's Envoy log: it names the reason of a refused handshake"
_ALERTS = {
    "certificate required": "the scraper sent no certificate: see its credentials and the job's tls_config",
    "unknown ca": "the target does not trust the CA of the scraper's certificate: compare both trust bundles",
    "certificate expired": "by the target's clock the scraper's certificate has ended: compare the clocks",
    "bad certificate": "the target cannot use the scraper's certificate: compare both trust bundles",
    "certificate unknown": "the target does not accept the scraper's certificate: compare both trust bundles",
    "certificate revoked": "the target's CA has withdrawn the scraper's certificate",
    "protocol version": "the target wants another version of TLS",
    "handshake failure": "scraper and target have no cipher suite or curve in common",
}
