"""A Prometheus of a test's own: any configuration, and what it says to queries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshscrape.errors import MissingBinaryError
from meshscrape.local.binaries import ensure_prometheus
from support.addresses import free_port, loopback
from support.polling import eventually


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus; `url` has its API."""

    url: str

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """An instant query: labels (sorted, without the name) to value."""
        found = self.api("query", query=expression)["result"]
        return {
            tuple(sorted((k, v) for k, v in each["metric"].items() if k != "__name__")): float(
                each["value"][1]
            )
            for each in found
        }

    def value(self, expression: str) -> float:
        """The value of the only series of a query; an AssertionError for none or several."""
        found = self.query(expression)
        assert len(found) == 1, f"{expression}: {found}"
        return next(iter(found.values()))

    def api(self, path: str, **parameters: str) -> Any:
        """`data` of the answer of an API path."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def exemplars(self, expression: str) -> list[dict[str, str]]:
        """The labels of the exemplars of a series."""
        times = {"start": str(time.time() - 600), "end": str(time.time() + 600)}
        found = self.api("query_exemplars", query=expression, **times)
        return [each["labels"] for series in found for each in series["exemplars"]]


@contextlib.contextmanager
def running_prometheus(directory: Path, config: Mapping[str, Any], *flags: str) -> Iterator[Prometheus]:
    """A Prometheus with this configuration, ready; skips where there is none to be had."""
    try:
        binary = asyncio.run(ensure_prometheus(os.environ, lambda line: print(line, file=sys.stderr))).server
    except MissingBinaryError as error:
        pytest.skip(str(error))
    directory.mkdir()
    (directory / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
    address = loopback()
    listen = f"{address}:{free_port(address)}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={listen}",
                *flags,
            ],
            stdout=log,
            stderr=log,
        )
    try:
        running = Prometheus(f"http://{listen}")
        eventually(lambda: running.query("vector(1)"), what="a ready Prometheus")
        yield running
    finally:
        process.terminate()
        process.wait(20)
