"""The scrape proxy in the pod of each kind of Prometheus: planned, applied, and disturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance import shop
from conformance.kube import Kube, until
from conformance.migration import Migration
from conformance.prometheus import Prometheus
from conformance.watch import Watch

Row = Callable[..., None]
IMAGE = "registry.example/meshscrape:test"
PROXY = ("--scrape-proxy", "--proxy-image", IMAGE)
PORT = {"native": 15092, "bootstrap": 15092, "legacy": 15091}
# Ends the process that follows pods, as its own user, inside its pod.
KILL = """
import os, pathlib, signal
own = os.readlink("/proc/self/ns/net")
for entry in pathlib.Path("/proc").iterdir():
    try:
        words = (entry / "cmdline").read_bytes().split(b"\\0")
        if b"routes" in words and os.readlink(entry / "ns/net") == own:
            os.kill(int(entry.name), signal.SIGKILL)
    except (OSError, ValueError):
        continue
"""


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


def proxied(prometheus: Prometheus, kube: Kube, mode: str) -> list[str]:
    """Wait until every workload of the shop is up through the proxy; return the targets' URLs."""
    addresses = shop.addresses(kube)
    targets = prometheus.wait_for_up(set(addresses.values()))
    urls = sorted(target["scrapeUrl"] for target in targets)
    # Plain HTTP to the proxy in the pod, which speaks mutual TLS with the target.
    assert urls == sorted(f"http://{address}:{PORT[mode]}/stats/prometheus" for address in addresses.values())
    return urls


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "case", [*CASES, pytest.param(Case("legacy", "existing"), marks=pytest.mark.whole)], ids=str
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
        urls = proxied(prometheus, kube, case.mode)
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
    (pod,) = kube.pods(prometheus.namespace, prometheus.selector)
    place = ("-n", prometheus.namespace, "exec", pod["metadata"]["name"], "-c", "scrape-proxy", "--")
    before = _restarts(kube, prometheus)
    # What runs in a container ends with its main process, so this command does, too.
    kube.run(*place, "python3", "-c", KILL)
    until(lambda: _restarts(kube, prometheus) > before, "the kubelet starts the killed process again")
    kube("-n", shop.NAMESPACE, "rollout", "restart", "deployment/httpbin")
    kube.rollout(shop.NAMESPACE, "deployment/httpbin")
    urls = proxied(prometheus, kube, "bootstrap")
    lost = prometheus.down_samples(steady, 120)
    assert lost == 0
    row(
        "scrape proxy: its Python process killed, a workload restarted",
        f"{len(urls)} targets up again, 0 scrapes of the other targets lost",
    )


def _restarts(kube: Kube, prometheus: Prometheus) -> int:
    # While a native sidecar starts again, the pod is not counted as running.
    (pod,) = kube.get("-n", prometheus.namespace, "pods", "-l", prometheus.selector)["items"]
    statuses = pod["status"]["initContainerStatuses"]
    return sum(int(each["restartCount"]) for each in statuses if each["name"] == "scrape-proxy")
