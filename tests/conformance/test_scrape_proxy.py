"""The scrape proxy in the pod of each kind of Prometheus: planned, applied, and disturbed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance import proxied, shop
from conformance.kube import Kube, until
from conformance.migration import Migration
from conformance.prometheus import Prometheus
from conformance.watch import Watch

Row = Callable[..., None]
PROXY = ("--scrape-proxy", "--proxy-image", proxied.IMAGE)
PORT = {"native": 15092, "bootstrap": 15092, "legacy": 15091}


@dataclass(frozen=True)
class Case:
    """A mode and a kind of Prometheus."""

    mode: str
    prometheus: str

    def __str__(self) -> str:
        """Return the name of the test's case."""
        return f"{self.mode}-{self.prometheus}"

    def options(self) -> tuple[str, ...]:
        """Return the options of plan and render."""
        words = ("--mode", self.mode, "-n", shop.NAMESPACE, "--prometheus", self.prometheus, *PROXY)
        return words if self.prometheus == "existing" else (*words, "--prometheus-namespace", "monitoring")


CASES = (Case("native", "existing"), Case("bootstrap", "addon"), Case("native", "operator"))
WHOLE = (Case("legacy", "existing"), Case("legacy", "operator"))


def scraped(prometheus: Prometheus, kube: Kube, mode: str) -> list[str]:
    """Wait until every workload of the shop is up through the proxy; return the targets' URLs."""
    addresses = shop.addresses(kube)
    targets = prometheus.wait_for_up(set(addresses.values()))
    urls = sorted(target["scrapeUrl"] for target in targets)
    # Plain HTTP to the proxy in the pod, which speaks mutual TLS with the target.
    assert urls == sorted(f"http://{address}:{PORT[mode]}/stats/prometheus" for address in addresses.values())
    return urls


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(each, marks=pytest.mark.whole) for each in WHOLE)], ids=str
)
def test_planned_scrape_proxy_verifies_every_target(
    kube: Kube, meshscrape: Path, tmp_path: Path, case: Case, row: Row
) -> None:
    """A plan with a scrape proxy, applied phase by phase, loses no scrape and skips no verification."""
    with shop.shop(kube, strict=True), shop.found(kube, case.prometheus) as existing:
        migration = Migration(kube, meshscrape, tmp_path, case.options())
        if existing is not None:
            existing.wait_for_up(set(shop.addresses(kube).values()))
        assert migration.plan().returncode == 1
        watch = Watch(kube, existing)
        phases = migration.migrate((shop.NAMESPACE, *shop.places(case.prometheus)), watch.look)
        # Istio's add-on has such jobs of its own, for the API server: those stay as they were.
        assert _unverified(tmp_path / "out", "*") == _unverified(tmp_path / "out/originals", "*.yaml")
        prometheus = existing or shop.rendered(kube, case.prometheus)
        urls = scraped(prometheus, kube, case.mode)
        last = migration.plan()
        assert last.returncode == 0, last.stdout
        verified = {job["name"] for job in migration.observe()["scrapeJobs"] if job["verified"]}
        assert verified
        row(
            f"plan: {case.mode}, Prometheus {case.prometheus}, scrape proxy",
            f"{len(phases)} phases applied, {len(urls)} targets up through the proxy, {watch.lost()}"
            "no insecure_skip_verify written; planned again: nothing to do",
            Prometheus=prometheus.version(),
        )
        if case.mode == "bootstrap":
            _disturb(kube, prometheus, row)
        if case == Case("legacy", "operator"):
            _spread(kube, row)


def _unverified(directory: Path, pattern: str) -> int:
    """Return how often the latest files below a directory skip the verification of a server."""
    files = {
        file.name: file.read_text().lower()
        for part in sorted(directory.glob(pattern))
        if part.name != "originals"
        for file in ([part] if part.is_file() else sorted(part.rglob("*.yaml")))
        if file.suffix == ".yaml"
    }
    skips = ("insecure_skip_verify: true", "insecureskipverify: true")
    return sum(line.strip() in skips for text in files.values() for line in text.splitlines())


def _disturb(kube: Kube, prometheus: Prometheus, row: Row) -> None:
    """Kill the process that follows pods, and let pods come and go: no other target loses a scrape."""
    steady = {
        address
        for name, address in shop.addresses(kube).items()
        if name in ("productpage", "httpbin-gateway")
    }
    assert steady
    proxied.kill(kube, prometheus)
    kube("-n", shop.NAMESPACE, "rollout", "restart", "deployment/httpbin")
    kube.rollout(shop.NAMESPACE, "deployment/httpbin")
    urls = scraped(prometheus, kube, "bootstrap")
    lost = prometheus.lost_scrapes(steady, 120)
    assert not lost
    row(
        "scrape proxy: its Python process killed, a workload restarted",
        f"{len(urls)} targets up again, 0 scrapes of the other targets lost",
    )


def _spread(kube: Kube, row: Row) -> None:
    """Give the Prometheus of the Operator two shards of two replicas, then end one of the four pods."""
    space, kind = "monitoring", "prometheuses.monitoring.coreos.com"
    (found,) = kube.get("-n", space, kind)["items"]
    more = json.dumps({"spec": {"shards": 2, "replicas": 2}})
    kube("-n", space, "patch", kind, found["metadata"]["name"], "--type=merge", "-p", more)
    until(lambda: len(kube.pods(space, shop.OPERATED)) == 4, "four pods of Prometheus run")
    kube.rollout(space, *kube("-n", space, "get", "statefulset", "-o", "name").split())
    addresses = set(shop.addresses(kube).values())
    shards: dict[str, list[Prometheus]] = {}
    for pod in kube.pods(space, shop.OPERATED):
        labels = pod["metadata"]["labels"]
        one = Prometheus(kube, space, f"statefulset.kubernetes.io/pod-name={pod['metadata']['name']}")
        shards.setdefault(labels["operator.prometheus.io/shard"], []).append(one)
    assert sorted(map(len, shards.values())) == [2, 2]
    seen: list[list[set[str]]] = []

    def divided() -> bool:
        seen[:] = [[_scraped(each, addresses) for each in replicas] for replicas in shards.values()]
        first, second = (replicas[0] for replicas in seen)
        alike = all(replicas[0] == replicas[1] for replicas in seen)
        return alike and first | second == addresses and not first & second

    until(divided, "each target is up in both replicas of exactly one shard", detail=lambda: seen)
    larger = max(zip(shards.values(), seen, strict=True), key=lambda each: len(each[1][0]))
    (ended, stays), (targets, _) = larger
    began, before = stays.now(), stays.scrapes(targets, 600)
    kube("-n", space, "delete", "pod", ended.selector.partition("=")[2], "--timeout=120s")
    kube.rollout(space, *kube("-n", space, "get", "statefulset", "-o", "name").split())
    until(divided, "the new pod scrapes what the old one did", detail=lambda: seen)
    until(lambda: stays.scrapes(targets, 600) >= before + 3 * len(targets), "three more scrapes of each")
    seconds = stays.now() - began
    lost = stays.lost_scrapes(targets, seconds)
    assert not lost
    row(
        "scrape proxy: two shards of two replicas by the Operator, one of the four pods ended",
        f"each of {len(addresses)} targets up in both replicas of one shard; the other replica: "
        f"{stays.scrapes(targets, seconds)} scrapes, 0 lost",
        Prometheus=stays.version(),
    )


def _scraped(prometheus: Prometheus, addresses: set[str]) -> set[str]:
    """Return which of the addresses a pod of Prometheus scrapes; none if one of them is down."""
    found = prometheus.of(addresses)
    if any(each["health"] != "up" for each in found):
        return set()
    return {each["discoveredLabels"]["__address__"].rpartition(":")[0] for each in found}
