"""The local mesh with Prometheus 3, and what promtool 3 says to what is generated."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from conformance import scraper
from conformance.cluster import programs
from conformance.kube import until
from support.addresses import free_port

Row = Callable[..., None]


@pytest.fixture(scope="module")
def version() -> str:
    """Return the version of Prometheus' Go module."""
    return f"module {programs.BY_NAME['prometheus'].version}"


@pytest.mark.timeout(1200)
def test_local_mesh_is_proven_with_prometheus_3(meshscrape: Path, version: str, local_row: Row) -> None:
    """`meshscrape up --check` has no findings with Prometheus 3."""
    environment = {
        **os.environ,
        "MESHSCRAPE_PROMETHEUS": str(programs.built("prometheus")),
        "MESHSCRAPE_PROMTOOL": str(programs.built("promtool")),
    }
    done = subprocess.run(
        [str(meshscrape), "up", "--check", "--quiet"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    local_row("local mesh: `up --check` with Prometheus 3", "no findings", Prometheus=version)


@pytest.mark.whole
def test_collector_scrapes_local_mesh(meshscrape: Path, tmp_path: Path, local_row: Row) -> None:
    """The OpenTelemetry Collector reads every target of a local mesh through the scrape proxy."""
    state, configuration = tmp_path / "mesh", tmp_path / "collector.yaml"
    subprocess.run([str(meshscrape), "up", "--state", str(state), "--detach", "--quiet"], check=True)
    try:
        words = ("--state", str(state), "--for", "otel", "--scrape-interval", "1s")
        receivers = generated(meshscrape, "prometheus-config", *words)
        address = f"127.0.0.1:{free_port()}"
        configuration.write_text(scraper.collecting(receivers, address))
        command = [programs.built("collector"), f"--config={configuration}"]
        with (
            (tmp_path / "collector.log").open("w") as log,
            subprocess.Popen(command, stderr=log) as collector,
        ):
            try:
                document = json.loads(generated(meshscrape, "status", "--state", str(state), "-o", "json"))
                urls = [target["url"] for each in document["workloads"] for target in each["targets"]]
                targets = {urlsplit(url).netloc for url in urls}
                # The Collector also scrapes the proxy's own metrics.
                until(
                    lambda: targets <= {name for name, good in _up(address).items() if good},
                    f"{sorted(targets)} are up",
                    detail=lambda: _up(address),
                )
            finally:
                collector.terminate()
    finally:
        subprocess.run([str(meshscrape), "down", "--state", str(state)], check=True)
    local_row(
        "local mesh: OpenTelemetry Collector with `prometheus-config --for otel`",
        f"{len(targets)} of {len(targets)} targets up through the scrape proxy",
        Collector=programs.BY_NAME["collector"].version,
    )


def _up(address: str) -> dict[str, bool]:
    """Return what the Collector says of its targets; nothing while it does not answer yet."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            return scraper.up(answer.read().decode())
    except OSError:
        return {}


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    """Run promtool 3."""
    return subprocess.run(
        [str(programs.built("promtool")), *words], capture_output=True, text=True, check=False
    )


def generated(meshscrape: Path, *words: str) -> str:
    """Return what a command of meshscrape prints."""
    return subprocess.run([str(meshscrape), *words], capture_output=True, text=True, check=True).stdout


def test_cluster_configuration_is_accepted_by_promtool_3(
    meshscrape: Path, tmp_path: Path, version: str, local_row: Row
) -> None:
    """Prometheus 3 accepts the jobs of a cluster, Kubernetes discovery included, and the rules."""
    rules = tmp_path / "rules.yml"
    rules.write_text(generated(meshscrape, "rules"))
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(generated(meshscrape, "prometheus-config", "--kubernetes"))
    checked = promtool("check", "config", "--syntax-only", str(configuration))
    assert checked.returncode == 0, checked.stderr
    checked = promtool("check", "rules", str(rules))
    assert checked.returncode == 0, checked.stderr
    broken = tmp_path / "broken.yml"
    broken.write_text(configuration.read_text().replace("role: pod", "role: nonsense"))
    assert promtool("check", "config", "--syntax-only", str(broken)).returncode != 0
    local_row("generated configuration and rules", "promtool 3 accepts both", Prometheus=version)
