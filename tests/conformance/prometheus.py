"""What a Prometheus in the cluster says, asked through the API server."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from conformance.cluster import programs
from conformance.kube import Kube, Object, until

HISTORY = 600.0  # seconds; longer than the pods of a scenario live


@dataclass(frozen=True)
class Prometheus:
    """The pods of a Prometheus, found by a selector."""

    kube: Kube
    namespace: str
    selector: str

    def text(self, path: str) -> str:
        """Return what its port 9090 answers."""
        pods = self.kube.pods(self.namespace, self.selector)
        assert pods, f"no Prometheus runs in {self.namespace} ({self.selector})"
        base = f"/api/v1/namespaces/{self.namespace}/pods/{pods[0]['metadata']['name']}:9090/proxy"
        return self.kube("get", "--raw", base + path)

    def _get(self, path: str) -> Any:
        return json.loads(self.text(path))["data"]

    def query(self, expression: str) -> list[Object]:
        """Return the vector of an instant query."""
        found: list[Object] = self._get(f"/api/v1/query?query={quote(expression)}")["result"]
        return found

    def now(self) -> float:
        """Return its own time."""
        return float(self._get("/api/v1/query?query=time()")["result"][1])

    def version(self) -> str:
        """Return Prometheus' own version; a program of the Go module knows only the module's."""
        told = self._get("/api/v1/status/buildinfo")["version"]
        return str(told or f"module {programs.BY_NAME['prometheus'].version}")

    def targets(self, job: str = "") -> list[Object]:
        """Return the active targets, of one job or of all."""
        found: list[Object] = self._get("/api/v1/targets?state=active")["activeTargets"]
        return [target for target in found if not job or target["scrapePool"] == job]

    def of(self, addresses: set[str]) -> list[Object]:
        """Return the active targets on some addresses."""
        return [
            t for t in self.targets() if t["discoveredLabels"]["__address__"].rpartition(":")[0] in addresses
        ]

    def wait_for_up(self, addresses: set[str], job: str = "", timeout: float = 180.0) -> list[Object]:
        """Wait until every address has exactly one target, all are up, and return them."""
        seen: list[Object] = []

        def good() -> bool:
            seen[:] = [t for t in self.of(addresses) if not job or t["scrapePool"] == job]
            hosts = sorted(t["scrapeUrl"].split("//")[1].rpartition(":")[0] for t in seen)
            return hosts == sorted(addresses) and all(t["health"] == "up" for t in seen)

        def detail() -> list[object]:
            return [(t["scrapePool"], t["scrapeUrl"], t["health"], t["lastError"][:200]) for t in seen]

        until(good, f"{sorted(addresses)} are up in {job or 'one job each'}", timeout, detail)
        return list(seen)

    def lost_scrapes(self, addresses: set[str], seconds: float) -> list[str]:
        """Return each lost scrape of these addresses within the last seconds: of what, after how long."""
        window = _window(addresses, max(seconds, HISTORY))
        ups = self.query(f"up{window}")
        newest = max((when for series in ups for when, _ in series["values"]), default=0.0)
        failed = [scrape for scrape in lost(ups) if scrape[1] >= newest - seconds]
        took = {
            (series["metric"]["instance"], when): value
            for series in (self.query(f"scrape_duration_seconds{window}") if failed else ())
            for when, value in series["values"]
        }
        return [f"{instance} after {took.get((instance, when), '?')} s" for instance, when in failed]

    def scrapes(self, addresses: set[str], seconds: float) -> int:
        """Return how many scrapes of these addresses there were within the last seconds."""
        return self._number(f"sum(count_over_time(up{_window(addresses, seconds)}))")

    def _number(self, expression: str) -> int:
        found = self.query(expression)
        return int(float(found[0]["value"][1])) if found else 0


def lost(ups: list[Object]) -> list[tuple[str, float]]:
    """Return which scrapes failed, by instance and time, from the series of `up` with all their samples.

    Counted is what failed after the first success of an address, in whatever job: Prometheus discovers the
    pod of a gateway as soon as it runs, a second or two before its Envoy listens.
    """
    samples: dict[str, list[tuple[str, float, bool]]] = {}
    for series in ups:
        instance = series["metric"]["instance"]
        samples.setdefault(instance.rpartition(":")[0], []).extend(
            (instance, float(when), value == "1") for when, value in series["values"]
        )
    failed = []
    for scrapes in samples.values():
        first = min((when for _, when, good in scrapes if good), default=math.inf)
        failed += [(instance, when) for instance, when, good in scrapes if not good and when > first]
    return failed


def _window(addresses: set[str], seconds: float) -> str:
    hosts = "|".join(address.replace(".", r"\\.") for address in sorted(addresses))
    return f'{{instance=~"({hosts}):.*"}}[{max(1, round(seconds))}s]'
