"""The merged endpoint in protobuf: agreed on by every source, and ingested by a real Prometheus 3."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conformance.cluster.programs import program
from meshscrape.agent.merged import PATHS, MergedMetrics
from meshscrape.agent.sources import MergedOptions
from meshscrape.exposition.health import Family
from meshscrape.exposition.protobuf import MetricFamily
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.system.http.client import FetchLimits, fetch_stream
from meshscrape.system.http.server import HttpServer, routes
from support.accept_headers import PROMETHEUS_3_NATIVE
from support.addresses import free_port, loopback
from support.agent import agent_process
from support.applications import HEALTHY, Behaviour, application, applications, hangs, says
from support.ca import ca_process
from support.expositions import text_series
from support.polling import eventually
from support.prometheus import Prometheus

PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"


def native(name: str) -> bytes:
    """Return one native histogram as a delimited message: 3 observations, in 2 buckets."""
    family = MetricFamily(name=name, type=4, help="Native.")
    histogram = family.metric.add().histogram
    histogram.sample_count, histogram.sample_sum, histogram.schema = 3, 3.5, 0
    histogram.zero_threshold = 1e-128
    histogram.positive_span.add(offset=0, length=2)
    histogram.positive_delta.extend([1, 1])
    body = family.SerializeToString()
    return bytes([len(body)]) + body


def speaks_both(name: str) -> Behaviour:
    """Answers protobuf to who offers it, text to others, as client_golang does."""

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"application/vnd.google.protobuf" in request:
            await says(native(name), PROTOBUF)(request, writer)
        else:
            await says(b"# TYPE %s histogram\n%s_count 3\n" % ((name.encode(),) * 2))(request, writer)

    return behave


@contextlib.asynccontextmanager
async def agent(*behaviours: Behaviour) -> AsyncIterator[tuple[str, list[int]]]:
    """The merged endpoint over applications that behave so: its URL and their ports."""
    address = loopback()
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(application(each, address)) for each in behaviours]
        options = MergedOptions(tuple(ScrapeSource(port) for port in ports), address)
        merged = MergedMetrics(options, lambda: [Family("istio_agent_x", "gauge", "x", [({}, 1)])])
        server = HttpServer(routes(dict.fromkeys(PATHS, merged.handle)), addresses=[(address, 0)])
        await stack.enter_async_context(server)
        yield f"http://{address}:{server.addresses[0][1]}/metrics", ports


async def scrape(url: str, accept: str = PROMETHEUS_3_NATIVE) -> tuple[str, bytes]:
    """Return Content-Type and body of one scrape."""
    headers = {"Accept": accept, "X-Prometheus-Scrape-Timeout-Seconds": "2"}
    async with fetch_stream(url, headers=headers, limits=FetchLimits(total=10, read=10)) as response:
        body = b"".join([chunk async for chunk in response.body])
    assert response.complete
    return response.content_type, body


def families(body: bytes) -> dict[str, Any]:
    """Return the messages of a body by name."""
    found: dict[str, Any] = {}
    while body:
        length = shift = place = 0
        while True:
            length |= (body[place] & 0x7F) << shift
            shift, place = shift + 7, place + 1
            if body[place - 1] < 0x80:
                break
        family = MetricFamily.FromString(body[place : place + length])
        assert family.name not in found
        found[family.name] = family
        body = body[place + length :]
    return found


def formats(body: bytes) -> dict[str, str]:
    """Return the format of each source, from a text answer."""
    return {
        dict(labels)["source"]: dict(labels)["format"]
        for name, labels, _ in text_series(body)
        if name == "meshscrape_source_format"
    }


def test_protobuf_where_every_source_speaks_it() -> None:
    """Agent, applications and health are one sequence of messages; a native histogram is as it was."""

    async def run() -> None:
        async with agent(speaks_both("a_seconds"), speaks_both("b_seconds")) as (url, _):
            for _ in range(2):
                content_type, body = await scrape(url)
                assert content_type == PROTOBUF
                assert native("a_seconds") in body
                found = families(body)
                assert found["istio_agent_x"].metric[0].gauge.value == 1
                assert [one.gauge.value for one in found["meshscrape_source_up"].metric] == [1, 1]

    asyncio.run(run())


def test_scraper_without_protobuf_gets_text() -> None:
    """Whatever the sources speak, and whatever another scraper asked before."""

    async def run() -> None:
        async with agent(speaks_both("a_seconds")) as (url, _):
            for accept in ("text/plain;version=0.0.4;q=1,*/*;q=0.1", PROMETHEUS_3_NATIVE, "*/*"):
                content_type, body = await scrape(url, accept)
                if accept != PROMETHEUS_3_NATIVE:
                    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
                    assert b"\na_seconds_count 3\n" in body

    asyncio.run(run())


def test_one_source_of_text_makes_the_answer_text() -> None:
    """Visible per source; the others are asked again for text, and in the next scrapes at once."""

    async def run() -> None:
        async with agent(speaks_both("a_seconds"), says(HEALTHY)) as (url, ports):
            for _ in range(2):
                content_type, body = await scrape(url)
                assert content_type.startswith("text/plain")
                assert b"\na_seconds_count 3\n" in body
                assert HEALTHY in body
                assert formats(body) == {
                    f"application:{ports[0]}": "protobuf",
                    f"application:{ports[1]}": "text",
                }

    asyncio.run(run())


def test_source_that_never_answers_makes_the_answer_text_in_time() -> None:
    """What it speaks is not known; the scrape has the other source's text within its timeout."""

    async def run() -> None:
        async with agent(speaks_both("a_seconds"), hangs) as (url, _):
            started = asyncio.get_running_loop().time()
            content_type, body = await scrape(url)
            assert asyncio.get_running_loop().time() - started < 0.9 * 2
        assert content_type.startswith("text/plain")
        assert b"\na_seconds_count 3\n" in body

    asyncio.run(run())


def test_source_that_changes_to_text_is_left_out_once() -> None:
    """It was taken to speak protobuf; the scrape after it is text, with everything."""
    speaks: list[Behaviour] = [speaks_both("b_seconds")]

    async def changing(request: bytes, writer: asyncio.StreamWriter) -> None:
        await speaks[0](request, writer)

    async def run() -> None:
        async with agent(speaks_both("a_seconds"), changing) as (url, _):
            await scrape(url)
            speaks[0] = says(b"b_now 1\n")
            content_type, body = await scrape(url)
            assert content_type == PROTOBUF
            assert native("a_seconds") in body
            assert [one.gauge.value for one in families(body)["meshscrape_source_up"].metric] == [1, 0]
            content_type, body = await scrape(url)
            assert content_type.startswith("text/plain")
            assert b"\nb_now 1\n" in body

    asyncio.run(run())


def test_prometheus_3_ingests_a_native_histogram_through_the_secure_port(tmp_path: Path) -> None:
    """Of an application behind 15092, beside Envoy's and the agent's families, over mutual TLS."""
    binary = program("prometheus")
    if not binary.exists():
        pytest.skip(f"no Prometheus 3 at {binary}: the conformance suite builds it from its Go module")
    inside = loopback()
    with applications(inside, {"native": speaks_both("app_seconds")}) as ports:
        changes = {
            "MESHSCRAPE_INSIDE_ADDRESS": inside,
            "ISTIO_PROMETHEUS_ANNOTATIONS": json.dumps({"scrape": "true", "port": str(ports["native"])}),
        }
        with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as workload:
            workload.await_ready()
            tls = {
                "cert_file": str(workload.output / "cert-chain.pem"),
                "key_file": str(workload.output / "key.pem"),
                "insecure_skip_verify": True,
            }
            job = {
                "job_name": "native",
                "scheme": "https",
                "metrics_path": "/stats/prometheus",
                "scrape_native_histograms": True,
                "tls_config": tls,
                "static_configs": [{"targets": [f"{workload.pod}:15092"]}],
            }
            config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
            with _prometheus_3(binary, tmp_path / "prometheus", config) as prometheus:
                eventually(
                    lambda: prometheus.value("histogram_count(app_seconds)") == 3,
                    within=30,
                    what="a native histogram in Prometheus",
                )
                assert prometheus.value("up") == 1
                assert prometheus.value("envoy_server_live") == 1
                assert prometheus.value("histogram_sum(app_seconds)") == 3.5
                assert {
                    dict(labels)["source"]: dict(labels)["format"]
                    for labels in prometheus.query("meshscrape_source_format")
                } == {"envoy": "protobuf", f"application:{ports['native']}": "protobuf"}


@contextlib.contextmanager
def _prometheus_3(binary: Path, directory: Path, config: dict[str, Any]) -> Any:
    directory.mkdir()
    (directory / "prometheus.yml").write_text(json.dumps(config))
    address = loopback()
    listen = f"{address}:{free_port(address)}"
    command = [
        str(binary),
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address={listen}",
    ]
    with (directory / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            running = Prometheus(f"http://{listen}")
            eventually(lambda: running.query("vector(1)"), within=30, what="a ready Prometheus 3")
            yield running
        finally:
            process.terminate()
            process.wait(20)
