"""What verification asks a real Prometheus, whose configuration has one mistake per workload."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshscrape.local.binaries import ensure_prometheus
from meshscrape.verify.findings import CheckResult, Report
from meshscrape.verify.registry import PROMETHEUS_CHECKS
from meshscrape.verify.run import VerifyOptions, verify
from support.addresses import free_port, loopback
from support.ca import ca_process
from support.polling import eventually
from support.subject import Identities, Spoiled, mesh_status, subject

NAMES = ("fine", "forgotten", "in-the-clear", "dropped", "refused")
ONLY = frozenset(each.name for each in PROMETHEUS_CHECKS) | {"scraper-admitted"}


def configuration(identities: Identities, pods: dict[str, str]) -> dict[str, Any]:
    """Jobs as generated, but: one target missing, one job without TLS, one family dropped."""
    credentials = identities.workload("istio-system", "prometheus")
    tls = {
        "cert_file": str(credentials / "cert-chain.pem"),
        "key_file": str(credentials / "key.pem"),
        "insecure_skip_verify": True,
    }

    def job(name: str, port: int, workloads: list[str], **more: Any) -> dict[str, Any]:
        groups = [
            {"targets": [f"{pods[each]}:{port}"], "labels": {"namespace": "default", "workload": each}}
            for each in workloads
        ]
        base = {"job_name": name, "metrics_path": "/stats/prometheus", "static_configs": groups}
        return base | more

    secure = {"scheme": "https", "tls_config": tls}
    drop = [
        {"source_labels": ["__name__", "workload"], "regex": "python_gc.*;dropped", "action": "drop"},
    ]
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            job("istio-secure-merged-metrics", 15092, list(NAMES), metric_relabel_configs=drop, **secure),
            job("istio-secure-envoy-metrics", 15091, [n for n in NAMES if n != "forgotten"], **secure),
            job("by-hand", 15090, ["in-the-clear"]),
        ],
    }


@contextlib.contextmanager
def prometheus(directory: Path, config: dict[str, Any]) -> Iterator[str]:
    """A Prometheus that has scraped every target once; yields its URL."""
    binary = asyncio.run(ensure_prometheus(os.environ, lambda line: None)).server
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    arguments = [f"--config.file={directory}/prometheus.yml", f"--web.listen-address={address}"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [binary, *arguments, f"--storage.tsdb.path={directory}/data"], stdout=log, stderr=log
        )
    try:
        url = f"http://{address}"
        eventually(lambda: _all_scraped(url), what="a first scrape of every target")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _all_scraped(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/api/v1/targets", timeout=5) as response:
        active = json.load(response)["data"]["activeTargets"]
    return bool(active) and all(each["health"] != "unknown" for each in active)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One verification of a mesh whose Prometheus runs."""
    directory = tmp_path_factory.mktemp("prometheus")
    with ca_process(directory / "ca") as ca, contextlib.ExitStack() as stack:
        (directory / "identities").mkdir()
        identities = Identities(ca, directory / "identities")
        spoiled = {"refused": Spoiled(scrapers="")}
        entries = [
            stack.enter_context(subject(directory / name, identities, name, spoiled.get(name)))
            for name in NAMES
        ]
        pods = {each["name"]: each["address"] for each in entries}
        url = stack.enter_context(prometheus(directory, configuration(identities, pods)))
        status = mesh_status(identities, entries)
        status["prometheus"]["url"] = url
        return asyncio.run(verify(status, VerifyOptions(only=ONLY, patience=1.5)))


def of(report: Report, name: str) -> list[tuple[str, str, str]]:
    """Check, port and what was seen of every finding of a workload."""
    return [
        (each.check, each.target.rpartition(":")[2], each.seen)
        for each in report.findings
        if each.workload == f"default/{name}"
    ]


def passed(report: Report, name: str, check: str) -> list[CheckResult]:
    return [
        each
        for each in report.checks
        if (each.workload, each.check, each.outcome) == (f"default/{name}", check, "passed")
    ]


def test_healthy_prometheus_passes(report: Report) -> None:
    """Both targets are up and the application's series arrive with the workload's labels."""
    assert of(report, "fine") == []
    assert len(passed(report, "fine", "prometheus-target")) == 2
    assert [each.seen for each in passed(report, "fine", "application-series")] == [
        "1 series of python_gc_objects_collected_total"
    ]


def test_a_forgotten_target_is_found(report: Report) -> None:
    """A secure port that Prometheus does not scrape is a finding."""
    [(check, port, seen)] = of(report, "forgotten")
    assert (check, port) == ("prometheus-target", "15091")
    assert seen.startswith("no active target https://")


def test_plaintext_scrape_is_found(report: Report) -> None:
    """A job that reads the mesh over plain http is a finding of Prometheus's, although it is up."""
    assert of(report, "in-the-clear") == []
    [finding] = [each for each in report.findings if each.check == "prometheus-scheme"]
    assert finding.workload == "istio-system/prometheus"
    assert ":15090/stats/prometheus" in finding.seen


def test_a_dropped_family_is_found(report: Report) -> None:
    """What the merged port answers but no query returns is a finding."""
    [(check, port, seen)] = of(report, "dropped")
    assert (check, port) == ("application-series", "15092")
    assert "python_gc_objects_collected_total" in seen


def test_refused_scrape_is_found_with_the_error_of_prometheus(report: Report) -> None:
    """The scraper's 403 and the target that is down are both told, with the reason."""
    assert sorted((check, port) for check, port, _ in of(report, "refused")) == [
        ("prometheus-target", "15091"),
        ("prometheus-target", "15092"),
        ("scraper-admitted", "15091"),
        ("scraper-admitted", "15092"),
    ]
    assert any("403" in seen for check, _, seen in of(report, "refused") if check == "prometheus-target")


def test_unreachable_prometheus_leaves_every_check_reported(tmp_path: Path) -> None:
    """When its API does not answer, each of its checks is a finding."""
    with ca_process(tmp_path / "ca") as ca:
        (tmp_path / "identities").mkdir()
        status = mesh_status(Identities(ca, tmp_path / "identities"), [])
        status["prometheus"]["url"] = f"http://{loopback()}:9090"
        found = asyncio.run(verify(status, VerifyOptions(patience=0)))
    assert {(each.check, each.severity) for each in found.findings} == {
        (each.name, "skipped") for each in PROMETHEUS_CHECKS
    }
