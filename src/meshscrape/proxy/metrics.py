"""The proxy's metrics. Label values come only from discovery and from our own catalogue of reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from meshscrape.envoy.scrape_proxy import route_name
from meshscrape.exposition.health import Family, label_text, render_families
from meshscrape.prometheus.targets import Target
from meshscrape.proxy.access import Scrape
from meshscrape.proxy.discovery import Discovery

Sample = tuple[Mapping[str, str] | str, float]
_NOBODY = {"target": "", "path": "", "namespace": "", "workload": "", "spiffe_id": ""}


@dataclass(slots=True)
class TargetFigures:
    """The counters of one target since it was discovered."""

    target: Target
    scrapes: int = 0
    handshakes: int = 0
    reused: int = 0
    newest_connection: int = 0
    not_after: datetime | None = None
    refusals: Counter[str] = field(default_factory=Counter)
    text: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels that identify the target; all come from discovery."""
        target = self.target
        return {
            "target": target.authority,
            "path": target.path,
            "namespace": target.labels.get("namespace", ""),
            "workload": target.labels.get("workload", ""),
            "spiffe_id": str(target.spiffe_id),
        }


@dataclass(slots=True)
class ProxyFigures:
    """The counters of the proxy as a whole."""

    reloads: int = 0
    reload_failures: int = 0
    current: bool = True
    last_reload: float = 0.0
    envoy_restarts: int = 0
    envoy_up: bool = False


class ScrapeCounters:
    """Count scrapes from Envoy's log. Each known target has counters; the rest is one sum per reason."""

    def __init__(self) -> None:
        self.by_route: dict[str, TargetFigures] = {}
        self.strangers: Counter[str] = Counter()

    def know(self, present: Iterable[Target], gone: Iterable[Target] = ()) -> None:
        """Keep counters for the targets that are `present`, and drop those of `gone` ones that are not."""
        fresh = {route_name(target): target for target in present}
        for target in gone:
            if (route := route_name(target)) not in fresh:
                self.by_route.pop(route, None)
        for route, target in fresh.items():
            known = self.by_route.get(route)
            if known is None or known.target.spiffe_id != target.spiffe_id:
                known = self.by_route[route] = TargetFigures(target)
            if not known.text or known.target != target:
                known.target = target
                known.text = label_text(known.labels)

    def forget_connections(self) -> None:
        """Forget connection numbers, because a restarted Envoy begins again with the first one."""
        for figures in self.by_route.values():
            figures.newest_connection = 0

    def count(self, scrape: Scrape) -> None:
        """Count one request."""
        figures = self.by_route.get(scrape.route)
        if figures is None or scrape.reason == "bad-token":
            if scrape.reason:
                self.strangers[scrape.reason] += 1
            return
        figures.scrapes += 1
        if scrape.reason:
            figures.refusals[scrape.reason] += 1
        if scrape.connection > figures.newest_connection:
            figures.newest_connection = scrape.connection
            figures.handshakes += 1
        elif scrape.connection:
            figures.reused += 1
        if scrape.not_after is not None:
            figures.not_after = scrape.not_after


def render(
    counters: ScrapeCounters,
    discovery: Discovery,
    proxy: ProxyFigures,
    certificates: Mapping[str, float],
) -> bytes:
    """Render all families; `certificates` is the end of the scraper's own certificate by trust domain."""
    return render_families(
        [*_target_families(counters), *_source_families(discovery), *_proxy_families(proxy, certificates)]
    )


def _target_families(counters: ScrapeCounters) -> list[Family]:
    known = list(counters.by_route.values())
    refusals: list[Sample] = [
        ({"reason": reason, **figures.labels}, count)
        for figures in known
        for reason, count in sorted(figures.refusals.items())
    ]
    refusals += [
        ({"reason": reason, **_NOBODY}, count) for reason, count in sorted(counters.strangers.items())
    ]

    def each_target(value: Callable[[TargetFigures], float]) -> list[Sample]:
        return [(figures.text, value(figures)) for figures in known]

    ends: list[Sample] = [
        (figures.text, figures.not_after.timestamp()) for figures in known if figures.not_after
    ]
    return [
        Family(
            "meshscrape_scrape_refusals_total", "counter",
            "Scrapes that failed or were refused, by reason; without a target: requests for none.", refusals,
        ),
        Family(
            "meshscrape_scrape_requests_total", "counter", "Requests for the target, failed ones included.",
            each_target(lambda figures: figures.scrapes),
        ),
        Family(
            "meshscrape_scrape_handshakes_total", "counter",
            "TLS handshakes with the target that succeeded: its SPIFFE ID was checked.",
            each_target(lambda figures: figures.handshakes),
        ),
        Family(
            "meshscrape_scrape_reused_connections_total", "counter",
            "Scrapes on a connection that an earlier one had made.",
            each_target(lambda figures: figures.reused),
        ),
        Family(
            "meshscrape_scrape_target_certificate_expiration_timestamp_seconds", "gauge",
            "End (not-after) of the target's last seen certificate.", ends,
        ),
    ]  # fmt: skip


def _source_families(discovery: Discovery) -> list[Family]:
    targets = discovery.targets()
    states = discovery.states
    return [
        Family(
            "meshscrape_scrape_proxy_targets", "gauge", "Targets that discovery announces.",
            [({"job": job}, sum(target.ready for target in told)) for job, told in targets.items()],
        ),
        Family(
            "meshscrape_scrape_proxy_source_up", "gauge",
            "Whether the source was usable at its last read; if not, its last targets stay in use.",
            [({"source": state.source.name}, float(state.problem.error is None)) for state in states],
        ),
        Family(
            "meshscrape_scrape_proxy_source_as_of_timestamp_seconds", "gauge",
            "When the source last told all its targets: while it is not up, what is used is from then.",
            [({"source": state.source.name}, state.as_of) for state in states],
        ),
        Family(
            "meshscrape_scrape_proxy_source_failures_total", "counter",
            "Changes of the source that were unusable.",
            [({"source": state.source.name}, state.problem.count) for state in states],
        ),
    ]  # fmt: skip


def _proxy_families(proxy: ProxyFigures, certificates: Mapping[str, float]) -> list[Family]:
    return [
        Family(
            "meshscrape_scrape_proxy_reloads_total", "counter",
            "Changes of targets that Envoy has applied.", [({}, proxy.reloads)],
        ),
        Family(
            "meshscrape_scrape_proxy_reload_failures_total", "counter",
            "Changes of targets that Envoy could not apply.", [({}, proxy.reload_failures)],
        ),
        Family(
            "meshscrape_scrape_proxy_current", "gauge", "Whether Envoy uses the targets of discovery.",
            [({}, float(proxy.current))],
        ),
        Family(
            "meshscrape_scrape_proxy_last_reload_timestamp_seconds", "gauge",
            "Time of the last change that Envoy applied (Unix time).", [({}, proxy.last_reload)],
        ),
        Family(
            "meshscrape_scrape_proxy_envoy_restarts_total", "counter", "Restarts of the proxy's Envoy.",
            [({}, proxy.envoy_restarts)],
        ),
        Family(
            "meshscrape_scrape_proxy_envoy_up", "gauge", "Whether the proxy's Envoy runs.",
            [({}, float(proxy.envoy_up))],
        ),
        Family(
            "meshscrape_scrape_proxy_certificate_expiration_timestamp_seconds", "gauge",
            "End (not-after) of the certificate that the proxy presents in the trust domain.",
            [({"trust_domain": name}, end) for name, end in sorted(certificates.items())],
        ),
    ]  # fmt: skip
