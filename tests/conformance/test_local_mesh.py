"""The local mesh with Prometheus 3, and what promtool 3 says to what is generated."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance.cluster import programs

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
        "MESHSCRAPE_PROMETHEUS": str(programs.program("prometheus")),
        "MESHSCRAPE_PROMTOOL": str(programs.program("promtool")),
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


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    """Run promtool 3."""
    return subprocess.run(
        [str(programs.program("promtool")), *words], capture_output=True, text=True, check=False
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
