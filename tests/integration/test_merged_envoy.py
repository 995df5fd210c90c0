"""A real Envoy's statistics through the merge."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

from meshscrape.agent.merged import MergedMetrics
from meshscrape.agent.sources import MergedOptions
from meshscrape.exposition.merge import Merger
from meshscrape.system.http.client import fetch
from meshscrape.system.http.server import HttpServer
from support.addresses import loopback
from support.envoy import RunningEnvoy, running_envoy
from support.expositions import check_text_structure, text_series

CLUSTERS = 20


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEnvoy]:
    """An Envoy with clusters named as Istio names them."""
    clusters = [
        {
            "name": f"outbound|8080|v{number}|svc-{number}.default.svc.cluster.local",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "x", "endpoints": []},
        }
        for number in range(CLUSTERS)
    ]
    bootstrap = {
        "node": {"id": "merge", "cluster": "merge"},
        "admin": {"address": {"pipe": {"path": "admin.sock", "mode": 0o600}}},
        "static_resources": {"clusters": clusters},
    }
    with running_envoy(tmp_path_factory.mktemp("envoy"), bootstrap) as running:
        yield running


def test_envoys_text_is_valid_as_it_is(envoy: RunningEnvoy) -> None:
    """No line of Envoy's is malformed, none is changed, no family is lost."""
    body = envoy.admin("/stats/prometheus")[1]
    source = Merger().source("envoy")
    out = source.feed(body) + source.finish()
    assert (source.malformed_lines, source.dropped_families) == (0, 0)
    assert [line for line in out.split(b"\n") if line] == [line for line in body.split(b"\n") if line]
    check_text_structure(out)


def test_every_series_of_envoy_is_merged(envoy: RunningEnvoy) -> None:
    """Through the agent's endpoint each of Envoy's series arrives by its own name."""

    async def run() -> bytes:
        address = loopback()
        merged = MergedMetrics(MergedOptions(envoy_admin=envoy.directory / "admin.sock"))
        async with HttpServer(merged.handle, addresses=[(address, 0)]) as server:
            url = f"http://{address}:{server.addresses[0][1]}/metrics"
            return (await fetch(url))[1]

    own = envoy.admin("/stats/prometheus")[1].decode()
    names = {(name, labels) for name, labels in re.findall(r"^(envoy_\w+)(\{.*\})? ", own, re.MULTILINE)}
    body = asyncio.run(run())
    seen = text_series(body)
    assert len(names) > 50 * CLUSTERS
    assert {name for name, _ in names} <= {name for name, _, _ in seen}
    assert len(names) <= len([name for name, _, _ in seen if name.startswith("envoy_")])
    assert b'meshscrape_source_up{source="envoy"} 1\n' in body
