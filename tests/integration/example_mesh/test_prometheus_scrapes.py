"""The mesh's real Prometheus: what it scrapes, how, and what its own tools say of its configuration."""

from __future__ import annotations

import http.client
import os
import subprocess
from pathlib import Path

import yaml

from meshscrape.local.binaries import find_prometheus
from meshscrape.prometheus.config import CA_JOB, PROXY_JOB
from meshscrape.prometheus.targets import APPLICATION_JOB, ENVOY_JOB, JOBS, MERGED_JOB
from support.mesh import Up, meshscrape
from support.polling import eventually


def _promtool(config: Path) -> subprocess.CompletedProcess[str]:
    found = find_prometheus(os.environ)
    assert found is not None and found.promtool is not None
    command = [str(found.promtool), "check", "config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_every_target_is_scraped_through_the_proxy(example_mesh: Up) -> None:
    """Prometheus' own API: seven endpoints, the proxy and the CA are up; the merged one at its URL."""
    example_mesh.wait_until_up()
    targets = example_mesh.active_targets()
    assert sorted(target["labels"]["job"] for target in targets) == sorted(
        [*[MERGED_JOB] * 3, *[ENVOY_JOB] * 3, APPLICATION_JOB, PROXY_JOB, CA_JOB]
    )
    assert {target["health"] for target in targets} == {"up"}
    address = example_mesh.workload("default/httpbin")["address"]
    merged = [target["scrapeUrl"] for target in targets if target["labels"]["job"] == MERGED_JOB]
    assert f"http://{address}:15092/stats/prometheus" in merged


def test_no_job_leaves_the_servers_unverified(example_mesh: Up) -> None:
    """What Prometheus really runs: every job of the mesh has the proxy, none has insecure_skip_verify."""
    config = example_mesh.prometheus_config()
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    address = example_mesh.document()["scrapeProxy"]["address"]
    assert all(jobs[job]["proxy_url"] == f"http://{address}" for job in JOBS)
    assert {jobs[job]["authorization"]["type"] for job in (PROXY_JOB, CA_JOB)} == {"Bearer"}
    assert "insecure_skip_verify" not in yaml.safe_dump(config)


def test_refused_requests_to_the_proxy_are_counted_in_prometheus(example_mesh: Up) -> None:
    """A process without the token gets 401; the refusal arrives in Prometheus, with its reason."""
    host, port = example_mesh.document()["scrapeProxy"]["address"].rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("GET", "http://127.0.0.1:1/stats/prometheus")
    assert connection.getresponse().status == 401
    connection.close()
    eventually(
        lambda: example_mesh.query('meshscrape_scrape_refusals_total{reason="bad-token"} > 0'),
        what="the refusal in Prometheus",
    )


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
    jobs = [job["job_name"] for job in yaml.safe_load(done.stdout)["scrape_configs"]]
    assert jobs == [*JOBS, PROXY_JOB]


def test_promtool_accepts_a_configuration_for_a_separate_prometheus(example_mesh: Up, tmp_path: Path) -> None:
    """With --direct, --certs and --targets no mesh is asked, and the paths are the given ones."""
    certs = example_mesh.workload("istio-system/prometheus")["outputCertificates"]
    arguments = ("--direct", "--certs", certs, "--targets", str(tmp_path), "--scrape-interval", "250ms")
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
    arguments = ("--direct", "--certs", str(tmp_path / "nowhere"), "--targets", str(tmp_path))
    done = meshscrape("prometheus-config", *arguments)
    path = tmp_path / "prometheus.yml"
    path.write_text(done.stdout)
    assert _promtool(path).returncode != 0


def test_direct_jobs_are_written_only_on_request(tmp_path: Path) -> None:
    """Without --direct, --certs and --targets are refused with the way to the proxy."""
    done = meshscrape("prometheus-config", "--certs", str(tmp_path), "--targets", str(tmp_path))
    assert done.returncode == 2
    assert "--direct" in done.stderr and "--proxy" in done.stderr


def test_promtool_accepts_jobs_through_a_separate_proxy(tmp_path: Path) -> None:
    """With --proxy: the given jobs, through it, with its token."""
    token = tmp_path / "token"
    token.write_text("x" * 32)
    proxy = ("--proxy", "127.0.0.1:15094", "--token-file", str(token))
    done = meshscrape("prometheus-config", *proxy, "--job", "a", "--job", "b")
    assert done.returncode == 0, done.stderr
    jobs = yaml.safe_load(done.stdout)["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["a", "b", PROXY_JOB]
    assert jobs[0]["http_sd_configs"][0]["url"] == "http://127.0.0.1:15095/targets/a"
    path = tmp_path / "prometheus.yml"
    path.write_text(done.stdout)
    assert _promtool(path).returncode == 0
