"""The mesh's real Prometheus: what it scrapes, how, and what its own tools say of its configuration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

from meshscrape.local.binaries import find_prometheus
from meshscrape.scrape.targets import APPLICATION_JOB, ENVOY_JOB, JOBS, MERGED_JOB
from support.mesh import Up, meshscrape


def _promtool(config: Path) -> subprocess.CompletedProcess[str]:
    found = find_prometheus(os.environ)
    assert found is not None and found.promtool is not None
    command = [str(found.promtool), "check", "config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_every_target_is_scraped_over_https(example_mesh: Up) -> None:
    """Prometheus' own API: all seven endpoints up, none over plain HTTP, the merged one at its URL."""
    example_mesh.wait_until_up()
    targets = example_mesh.active_targets()
    assert len(targets) == 7
    assert {target["health"] for target in targets} == {"up"}
    assert all(target["scrapeUrl"].startswith("https://") for target in targets)
    address = example_mesh.workload("default/httpbin")["address"]
    merged = [target["scrapeUrl"] for target in targets if target["labels"]["job"] == MERGED_JOB]
    assert f"https://{address}:15092/stats/prometheus" in merged


def test_targets_carry_namespace_pod_and_workload(example_mesh: Up) -> None:
    """Samples are attributed to the workload that they come from."""
    example_mesh.wait_until_up()
    found = example_mesh.query(f'up{{job="{ENVOY_JOB}", workload="istio-ingressgateway"}}')
    assert found[0]["metric"]["namespace"] == "istio-system"
    assert found[0]["metric"]["pod"] == "istio-ingressgateway-0"


def test_application_metrics_arrive_merged_and_directly(example_mesh: Up) -> None:
    """`python_gc_objects_collected_total` of productpage comes through 15092 and over mTLS from :9080."""
    example_mesh.wait_until_up()
    found = example_mesh.query('python_gc_objects_collected_total{workload="productpage"}')
    assert {series["metric"]["job"] for series in found} == {MERGED_JOB, APPLICATION_JOB}


def test_envoy_statistics_arrive(example_mesh: Up) -> None:
    """Envoy's own families come through both secure ports."""
    example_mesh.wait_until_up()
    found = example_mesh.query('envoy_server_live{workload="httpbin"}')
    assert {series["metric"]["job"] for series in found} == {MERGED_JOB, ENVOY_JOB}


def test_promtool_accepts_the_running_configuration(example_mesh: Up, tmp_path: Path) -> None:
    """`meshscrape prometheus-config` prints what the running Prometheus has, and promtool finds it valid."""
    done = example_mesh.run("prometheus-config")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "prometheus.yml"
    path.write_text(done.stdout)
    checked = _promtool(path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert [job["job_name"] for job in yaml.safe_load(done.stdout)["scrape_configs"]] == list(JOBS)


def test_promtool_accepts_a_configuration_for_ones_own_prometheus(example_mesh: Up, tmp_path: Path) -> None:
    """With --certs and --targets no mesh is asked, and the paths are the given ones."""
    certs = example_mesh.workload("istio-system/prometheus")["outputCertificates"]
    arguments = ("--certs", certs, "--targets", str(tmp_path), "--scrape-interval", "250ms")
    done = meshscrape("prometheus-config", "--state", str(tmp_path / "none"), *arguments)
    assert done.returncode == 0, done.stderr
    document = yaml.safe_load(done.stdout)
    assert document["global"]["scrape_interval"] == "250ms"
    assert document["scrape_configs"][0]["tls_config"]["key_file"] == f"{certs}/key.pem"
    path = tmp_path / "prometheus.yml"
    path.write_text(done.stdout)
    assert _promtool(path).returncode == 0


def test_promtool_would_refuse_missing_credentials(example_mesh: Up, tmp_path: Path) -> None:
    """The check can fail: a configuration whose certificates are not there is refused."""
    arguments = ("--certs", str(tmp_path / "nowhere"), "--targets", str(tmp_path))
    done = meshscrape("prometheus-config", *arguments)
    path = tmp_path / "prometheus.yml"
    path.write_text(done.stdout)
    assert _promtool(path).returncode != 0
