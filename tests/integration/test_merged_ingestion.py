"""The merged exposition as others see it: promtool and a real Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from meshscrape.agent.merged import PATHS, MergedMetrics
from meshscrape.agent.sources import MergedOptions
from meshscrape.errors import UnavailableError
from meshscrape.exposition.source import MergeLimits
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.local.binaries import Prometheus, find_prometheus
from meshscrape.system.http.client import FetchLimits, fetch
from meshscrape.system.http.server import HttpServer, routes
from support.addresses import free_port, loopback
from support.applications import HEALTHY, application, drips, floods, hangs, resets_after, says, zips
from support.polling import eventually_async

ODD = (
    b"# HELP odd \\x\n# TYPE odd histogram\n# TYPE odd gauge\nodd_count 1\n"
    b"# TYPE odd_count gauge\nodd_count 2\n"
    b'odd_bucket{le="much"} 1\nodd{a="1",a="2"} 1\nodd{__name__="x"} 1\nodd 1e999\n# EOF\nodd{x="\xff"} 1\n'
    b"# TYPE app_requests_total gauge\napp_requests_total 7\nlate_total 3\r\nhalf"
)


@pytest.fixture(scope="module")
def prometheus() -> Prometheus:
    """Prometheus and promtool, where they have been set up."""
    found = find_prometheus(os.environ)
    if found is None or found.promtool is None:
        pytest.skip("no Prometheus here: make setup fetches one")
    return found


@contextlib.asynccontextmanager
async def troubled_agent() -> AsyncIterator[tuple[str, int]]:
    """Where an agent serves a healthy application among seven that are not."""
    address = loopback()
    behaviours = [
        says(HEALTHY),
        says(ODD),
        says(HEALTHY + b"other_total 1\n"),
        zips(b"zipped_total 1\n"),
        says(b"<html>", "text/html"),
        resets_after(b"cut_total 1\ncut_tot"),
        floods(b'flood_total{a="1"} 1\n', 2 << 20),
        drips(b"drip_total 1\n" * 1000),
        hangs,
    ]
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(application(b, address)) for b in behaviours]
        sources = tuple(ScrapeSource(port) for port in ports)
        limits = MergeLimits(max_bytes=1 << 20)
        merged = MergedMetrics(MergedOptions(sources, address, limits=limits))
        server = HttpServer(routes(dict.fromkeys(PATHS, merged.handle)), addresses=[(address, 0)])
        yield (await stack.enter_async_context(server)).addresses[0]


def test_promtool_reads_it(prometheus: Prometheus) -> None:
    """promtool finds no parse error in the text; its lint exit code 3 is about missing HELP."""

    async def run() -> bytes:
        async with troubled_agent() as (host, port):
            headers = {"X-Prometheus-Scrape-Timeout-Seconds": "1"}
            limits = FetchLimits(total=30)
            return (await fetch(f"http://{host}:{port}/metrics", headers=headers, limits=limits))[1]

    body = asyncio.run(run())
    checked = subprocess.run(
        [str(prometheus.promtool), "check", "metrics"], input=body, capture_output=True, timeout=30
    )
    assert b"error while" not in checked.stderr
    assert checked.returncode in (0, 3), checked.stderr.decode()
    refused = subprocess.run(
        [str(prometheus.promtool), "check", "metrics"], input=ODD, capture_output=True, timeout=30
    )
    assert b"error while" in refused.stderr, "what the odd application says would have been refused"


def test_prometheus_ingests_it(prometheus: Prometheus, tmp_path: Path) -> None:
    """A real Prometheus scrapes it beside troubled applications: up, with everyone's series."""

    async def run() -> None:
        async with troubled_agent() as text:
            config = {
                "global": {"scrape_interval": "2s", "scrape_timeout": "2s"},
                "scrape_configs": [
                    {"job_name": name, "static_configs": [{"targets": [f"{place[0]}:{place[1]}"]}]}
                    for name, place in (("text", text),)
                ],
            }
            async with _running(prometheus.server, config, tmp_path) as url:
                for job in ("text",):
                    await _eventually(url, f'up{{job="{job}"}}', ["1"])
                    await _eventually(url, f'app_requests_total{{job="{job}",code="200"}}', ["5"])
                    await _eventually(url, f'sum(meshscrape_source_up{{job="{job}"}})', ["4"])
                    await _eventually(url, f'zipped_total{{job="{job}"}}', ["1"])
                    await _eventually(url, f'late_total{{job="{job}"}}', ["3"])

    asyncio.run(run())


@contextlib.asynccontextmanager
async def _running(server: Path, config: dict[str, Any], directory: Path) -> AsyncIterator[str]:
    address = loopback()
    listen = f"{address}:{free_port(address)}"
    (directory / "prometheus.yml").write_text(json.dumps(config))
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(server),
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address={listen}",
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{listen}"
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)


async def _eventually(url: str, query: str, expected: list[str]) -> None:
    async def values() -> bool:
        try:
            status, body = await fetch(f"{url}/api/v1/query?query={quote(query)}")
        except UnavailableError as error:
            raise AssertionError(str(error)) from error
        assert status == 200
        seen = [series["value"][1] for series in json.loads(body)["data"]["result"]]
        assert seen == expected, f"{query} is {seen}"
        return True

    await eventually_async(values, what=f"{query} = {expected}")
