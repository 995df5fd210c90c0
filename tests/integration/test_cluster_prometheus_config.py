"""The configurations for a cluster's scrapers, in the programs that read them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from meshscrape.prometheus.collectors import collector_text
from meshscrape.prometheus.config import ScrapeOptions, ScrapeProxyAccess, scrape_configs
from meshscrape.prometheus.existing import with_secure_jobs
from meshscrape.prometheus.kubernetes_sd import ApplicationPort, ClusterJobs, ProxyInPod, secure_jobs
from meshscrape.prometheus.new_prometheus import PrometheusOptions, prometheus_objects
from support.ca import TestCa
from support.mesh import meshscrape
from support.promtool import check_config, check_rules
from support.upstream import SAMPLES, needs_upstream

SAMPLE = SAMPLES / "prometheus-secure-metrics.yaml"
VMAGENT = os.environ.get("MESHSCRAPE_VMAGENT") or shutil.which("vmagent")
APPLICATION = ApplicationPort("shop", "web", {"app": "web"}, 9080)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory with the three files, which promtool only looks for."""
    directory = tmp_path / "certs"
    directory.mkdir()
    for name in ("cert-chain.pem", "key.pem", "root-cert.pem"):
        (directory / name).touch()
    return directory


@pytest.mark.parametrize(
    "options",
    [
        PrometheusOptions("monitoring"),
        PrometheusOptions("monitoring", namespaces=("shop",), applications=(APPLICATION,)),
        PrometheusOptions("monitoring", rules=None, interval="1m", timeout="30s"),
    ],
)
def test_the_addons_files_pass_promtool(
    options: PrometheusOptions, certificates: Path, tmp_path: Path
) -> None:
    """The ConfigMap's files as they are, but for the directories that they are mounted in."""
    (data,) = [each["data"] for each in prometheus_objects("addon", options) if each["kind"] == "ConfigMap"]
    if "rules.yml" in data:
        (tmp_path / "rules.yml").write_text(data["rules.yml"])
        check_rules(data["rules.yml"], tmp_path)
    text = data["prometheus.yml"].replace("/etc/istio-output-certs", str(certificates))
    check_config(text.replace("/etc/prometheus", str(tmp_path)), tmp_path)


@needs_upstream
def test_istios_sample_with_our_jobs_passes_promtool(certificates: Path, tmp_path: Path) -> None:
    """An existing configuration with the secure jobs put in stays one that Prometheus takes."""
    documents = yaml.safe_load_all(SAMPLE.read_text())
    data = next(each for each in documents if each["kind"] == "ConfigMap")["data"]
    config = yaml.safe_load(data["prometheus.yml"])
    config["rule_files"] = []
    changed = with_secure_jobs(config, ClusterJobs(str(certificates)), ["kubernetes-pods"])
    text = yaml.safe_dump(changed)
    for name in ("ca.crt", "token"):
        (tmp_path / name).touch()
    text = text.replace("/var/run/secrets/kubernetes.io/serviceaccount", str(tmp_path))
    check_config(text.replace("/etc/istio-certs", str(certificates)), tmp_path)


def test_the_command_prints_what_promtool_accepts(certificates: Path, tmp_path: Path) -> None:
    """`prometheus-config --kubernetes` needs no running mesh."""
    done = meshscrape(
        "prometheus-config", "--kubernetes", "--certs", str(certificates), "--namespace", "shop"
    )
    assert done.returncode == 0, done.stderr
    check_config(done.stdout, tmp_path)
    assert yaml.safe_load(done.stdout)["scrape_configs"] == secure_jobs(
        ClusterJobs(str(certificates), ("shop",))
    )


def test_the_command_prints_jobs_through_the_scrape_proxy(tmp_path: Path) -> None:
    """Prometheus accepts them, they verify their targets, and no warning is printed."""
    token = tmp_path / "token"
    token.write_text("secret")
    through = ("--proxy", "127.0.0.1:15094", "--token-file", str(token))
    done = meshscrape("prometheus-config", "--kubernetes", *through)
    assert (done.returncode, done.stderr) == (0, "")
    check_config(done.stdout, tmp_path)
    assert "insecure_skip_verify" not in done.stdout
    proxy = ProxyInPod("127.0.0.1:15094", str(token))
    assert yaml.safe_load(done.stdout)["scrape_configs"] == secure_jobs(ClusterJobs("", proxy=proxy))


def test_an_existing_direct_job_becomes_one_through_the_scrape_proxy(tmp_path: Path) -> None:
    """Its old TLS settings go, its own interval stays, and a second run changes nothing."""
    token = tmp_path / "token"
    token.write_text("secret")
    direct = secure_jobs(ClusterJobs("/certs"))[0] | {"scrape_interval": "7s"}
    own = tmp_path / "prometheus.yml"
    own.write_text(yaml.safe_dump({"scrape_configs": [direct]}))
    command = ("prometheus-config", "--kubernetes", "--existing", str(own))
    through = ("--proxy", "127.0.0.1:15094", "--token-file", str(token))
    done = meshscrape(*command, *through)
    assert done.returncode == 0, done.stderr
    check_config(done.stdout, tmp_path)
    assert "insecure_skip_verify" not in done.stdout and "15094" in done.stdout
    assert yaml.safe_load(done.stdout)["scrape_configs"][0]["scrape_interval"] == "7s"
    own.write_text(done.stdout)
    again = meshscrape(*command, *through)
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_the_command_prints_rules_that_promtool_accepts(tmp_path: Path) -> None:
    """`rules` with thresholds of one's own."""
    done = meshscrape("rules", "--certificate-left", "30m", "--job", "istio-secure-envoy-metrics")
    assert done.returncode == 0, done.stderr
    check_rules(done.stdout, tmp_path)
    assert "< 1800" in done.stdout


@pytest.mark.skipif(VMAGENT is None, reason="no vmagent on PATH, and MESHSCRAPE_VMAGENT is not set")
def test_vmagent_accepts_its_variant(tmp_path: Path) -> None:
    """Its strict parsing refuses unknown fields: jobs of a cluster, and jobs through the scrape proxy."""
    directory = TestCa().workload("monitoring", "prometheus").write(tmp_path / "certs")
    token = tmp_path / "token"
    token.write_text("secret")
    proxy = ScrapeProxyAccess("127.1.0.2:15094", "127.1.0.2:15095", str(token))
    cluster = secure_jobs(ClusterJobs(str(directory), ("shop",), (APPLICATION,)))
    through_proxy = scrape_configs(ScrapeOptions(proxy))
    for job in through_proxy:
        job["job_name"] += "-local"
    config = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["a.yml"],
        "scrape_configs": [*cluster, *through_proxy],
    }
    path = tmp_path / "vmagent.yml"
    path.write_text(collector_text("vmagent", config))
    command = [str(VMAGENT), "-dryRun", f"-promscrape.config={path}", "-remoteWrite.url=http://127.0.0.1:1/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
