"""Prometheus' own judgement: promtool on configurations, rules and discovered targets.

Debian's build has no Kubernetes discovery. Where promtool lacks it, configurations are checked with targets
from files in its place; everything else of a job, relabeling above all, stays as it is.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshscrape.errors import MissingBinaryError
from meshscrape.local.binaries import ensure_prometheus
from support.polling import eventually


@functools.cache
def promtool() -> Path:
    """promtool beside Prometheus; the test is skipped where neither is to be had."""
    try:
        found = asyncio.run(ensure_prometheus(os.environ, lambda line: print(line, file=sys.stderr))).promtool
    except MissingBinaryError as error:
        pytest.skip(str(error))
    if found is None:
        pytest.skip("there is a Prometheus, but no promtool beside it")
    return found


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """promtool with `arguments`."""
    return subprocess.run([promtool(), *arguments], capture_output=True, text=True, timeout=60, check=False)


def check_config(text: str, directory: Path) -> None:
    """Fail unless promtool accepts the configuration (the files that it names must exist)."""
    path = directory / "checked-prometheus.yml"
    path.write_text(text if knows_kubernetes() else yaml.safe_dump(_from_files(yaml.safe_load(text))))
    done = run("check", "config", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def check_rules(text: str, directory: Path) -> None:
    """Fail unless promtool accepts the rules."""
    path = directory / "checked-rules.yml"
    path.write_text(text)
    done = run("check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def knows_kubernetes() -> bool:
    """Whether this promtool was built with Kubernetes discovery."""
    config = '{"scrape_configs": [{"job_name": "a", "kubernetes_sd_configs": [{"role": "pod"}]}]}'
    return run_with_input(config).returncode == 0


def run_with_input(config: str) -> subprocess.CompletedProcess[str]:
    """`promtool check config` on a text."""
    command = [promtool(), "check", "config", "--syntax-only", "/dev/stdin"]
    return subprocess.run(command, input=config, capture_output=True, text=True, timeout=60, check=False)


def relabelled(
    job: Mapping[str, Any], discovered: Sequence[Mapping[str, str]], directory: Path
) -> list[dict[str, str]]:
    """The final labels of what a job keeps of the `discovered` label sets, by Prometheus' own relabeling."""
    sentinel = {"__address__": "sentinel.invalid:1"}
    groups = [
        {
            "targets": [each["__address__"]],
            "labels": {k: v for k, v in each.items() if k != "__address__"} | {"__index__": str(index)},
        }
        for index, each in enumerate((sentinel, *discovered))
    ]
    (directory / "targets.json").write_text(json.dumps(groups))
    plain = {key: value for key, value in job.items() if key not in ("kubernetes_sd_configs", "tls_config")}
    plain["file_sd_configs"] = [{"files": [str(directory / "targets.json")]}]
    config = directory / "discovery.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": [plain]}))

    def look() -> list[dict[str, Any]] | None:
        # promtool prints what has come within the timeout, which may be nothing on a busy machine.
        done = run("check", "service-discovery", "--timeout=150ms", str(config), str(job["job_name"]))
        start = done.stdout.find("[")
        found = json.loads(done.stdout[start:]) if start >= 0 else []
        seen = any(each["discoveredLabels"]["__index__"] == "0" for each in found)
        return found if seen else None

    found = eventually(look, what="discovered targets")
    kept = [each for each in found if each["labels"] and each["discoveredLabels"]["__index__"] != "0"]
    kept.sort(key=lambda each: int(each["discoveredLabels"]["__index__"]))
    return [each["labels"] for each in kept]


def _from_files(config: dict[str, Any]) -> dict[str, Any]:
    for job in config["scrape_configs"]:
        if job.pop("kubernetes_sd_configs", None):
            job["file_sd_configs"] = [{"files": ["/nonexistent/*.json"]}]
    return config
