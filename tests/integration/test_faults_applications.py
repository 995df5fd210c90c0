"""Misbehaving applications behind a real agent and Envoy, as a real Prometheus sees them over mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from support.addresses import free_port, loopback
from support.agent import AgentProcess, agent_process
from support.applications import (
    HEALTHY,
    TEXT,
    Behaviour,
    applications,
    drips,
    flood,
    hangs,
    header,
    redirects,
    resets_after,
    says,
    zips,
)
from support.ca import ca_process
from support.polling import eventually
from support.prometheus import Prometheus, running_prometheus

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
INTERVAL = 5
JOBS = ("text",)
EXEMPLARS = (
    b"# TYPE traced counter\n"
    b'traced_total 4 # {trace_id="abc"} 1.0\n'
    b"# TYPE spans histogram\n"
    b'spans_bucket{le="1"} 2 # {trace_id="def"} 0.5\nspans_bucket{le="+Inf"} 2\nspans_sum 1\nspans_count 2\n'
    b"# EOF\n"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """An application, whether the agent calls it up, series that must be there, names that must not.

    Without a behaviour it runs elsewhere, or not at all. `up` may differ by the format that is negotiated.
    """

    behaviour: Behaviour | None
    up: int | dict[str, int]
    there: dict[str, float] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


async def endless_header(_: bytes, writer: asyncio.StreamWriter) -> None:
    """Never comes to the end of its header."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: y\r\n" * 1000)
        await writer.drain()


async def only_continues(_: bytes, writer: asyncio.StreamWriter) -> None:
    """Sends interim answers for ever."""
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
        await writer.drain()


async def leaves(_: bytes, writer: asyncio.StreamWriter) -> None:
    """Closes without a word."""


async def broken_chunks(_: bytes, writer: asyncio.StreamWriter) -> None:
    """A chunk whose size is none, behind a good one."""
    writer.write(
        header(TEXT, "Transfer-Encoding: chunked") + b"d\r\nchunked_ok 1\n\r\nzz\r\nchunked_bad 1\n\r\n"
    )


async def polyglot(request: bytes, writer: asyncio.StreamWriter) -> None:
    """Speaks OpenMetrics with exemplars to who asks for it, text to others, as client libraries do."""
    if b"application/openmetrics-text" in request.lower():
        await says(EXEMPLARS, OPENMETRICS)(request, writer)
    else:
        await says(b"# TYPE traced_total counter\ntraced_total 4\n")(request, writer)


def kinds(canary: str) -> dict[str, Kind]:
    """Every kind of misbehaviour; redirects go to `canary`, which nobody may ever ask."""
    return {
        "down": Kind(None, 0),
        "hanging": Kind(hangs, 0),
        "a slow drip": Kind(drips(b"dripped_total 1\n" * 100_000, chunk=16), 0, {"dripped_total": 1}),
        "reset in mid-body": Kind(
            resets_after(b"before_reset 1\nafter_res"), 0, {"before_reset": 1}, ("after_res",)
        ),
        "more than 100 MB": Kind(None, 0),
        "not text at all": Kind(says(bytes(range(256)) * 4096), 0),
        "HTML": Kind(says(b"<html>html_total 1</html>\nhtml_total 1\n", "text/html"), 0, {}, ("html_total",)),
        "a wrong Content-Type": Kind(says(b"xml_total 1\n", "application/xml"), 0, {}, ("xml_total",)),
        "no Content-Type": Kind(says(b"untold_total 1\n", ""), 1, {"untold_total": 1}),
        "gzip unasked for": Kind(zips(b"zipped_total 1\n"), 1, {"zipped_total": 1}),
        "a redirect off the workload": Kind(redirects(canary), 0, {}, ("stolen_total",)),
        "duplicate families": Kind(
            says(
                b"# TYPE twice gauge\ntwice 1\n# TYPE other gauge\nother 1\n# TYPE twice counter\ntwice 1\n"
            ),
            1,
            {"twice": 1, "other": 1},
        ),
        "families of Envoy's": Kind(
            says(b"# TYPE envoy_server_live gauge\nenvoy_server_live 7\nbeside_envoy 1\n"),
            1,
            {"beside_envoy": 1},
        ),
        "families of the agent's": Kind(
            says(b'meshscrape_source_up{source="envoy"} 0\nistio_agent_scrapes_total 1e9\nbeside_agent 1\n'),
            1,
            {"beside_agent": 1},
        ),
        "exemplars": Kind(polyglot, 1, {"traced_total": 4}),
        "OpenMetrics whoever asks": Kind(
            says(b"# TYPE always counter\nalways_total 1\n# EOF\nlate 1\n", OPENMETRICS),
            1,
            {"always_total": 1},
            ("late",),
        ),
        "OpenMetrics without its end": Kind(says(b"endless 1\n", OPENMETRICS), 0, {"endless": 1}),
        "syntax errors": Kind(
            says(b'correct 1\nwrong{a="1" 1\nwrong 1 2 3\n{} 1\nwrong{a=1} 1\n# TYPE\nalso_correct 2\n'),
            1,
            {"correct": 1, "also_correct": 2},
            ("wrong",),
        ),
        "EOF in the middle": Kind(says(b"ahead 1\n# EOF\nbehind 2\n"), 1, {"ahead": 1, "behind": 2}),
        "non-UTF-8": Kind(says(b'latin{a="\xe9"} 1\nascii_only 1\n'), 1, {"ascii_only": 1}, ("latin",)),
        "impossible times": Kind(
            says(b"long_ago 1 1\nfar_away 1 99999999999999\nnow_and_here 1\n"), 1, {"now_and_here": 1}
        ),
        "a label of 200 kB": Kind(
            says(b'wide{a="' + b"x" * 200_000 + b'"} 1\nbeside_wide 1\n'), 1, {"beside_wide": 1}
        ),
        "an endless header": Kind(endless_header, 0),
        "interim answers for ever": Kind(only_continues, 0),
        "no answer": Kind(leaves, 0),
        "broken chunks": Kind(broken_chunks, 0, {}, ("chunked_bad",)),
        "healthy": Kind(says(HEALTHY), 1, {'app_requests_total{code="200"}': 5, "app_seconds_count": 2}),
    }


NAMES = tuple(kinds(""))


@dataclass(frozen=True, slots=True)
class World:
    """Two agents, one for each format, in front of one application of every kind each."""

    prometheus: Prometheus
    kinds: dict[str, Kind]
    ports: dict[str, dict[str, int]]
    stolen: list[bytes]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    stolen: list[bytes] = []

    async def canary(request: bytes, writer: asyncio.StreamWriter) -> None:
        stolen.append(request)
        await says(b"stolen_total 1\n")(request, writer)

    directory = tmp_path_factory.mktemp("applications")
    elsewhere = loopback()
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(applications(elsewhere, {"canary": canary}))
        every = kinds(f"http://{elsewhere}:{places['canary']}/metrics")
        ca = stack.enter_context(ca_process(directory / "ca"))
        ports: dict[str, dict[str, int]] = {}
        agents: dict[str, AgentProcess] = {}
        for job in JOBS:
            inside = loopback()
            serving = {name: kind.behaviour for name, kind in every.items() if kind.behaviour}
            served = stack.enter_context(applications(inside, serving))
            served["down"] = free_port(inside)
            served["more than 100 MB"] = stack.enter_context(flood(inside, 'flooded{a="1"} 1\n'))
            ports[job] = {name: served[name] for name in every}
            (directory / job).mkdir()
            environment = {
                "MESHSCRAPE_INSIDE_ADDRESS": inside,
                "ISTIO_PROMETHEUS_ANNOTATIONS": json.dumps(
                    {"scrape": "true", "targets": [{"port": str(port)} for port in ports[job].values()]}
                ),
            }
            agents[job] = stack.enter_context(agent_process(directory / job, ca, **environment))
        for agent in agents.values():
            agent.await_ready()
        prometheus = stack.enter_context(running_prometheus(directory / "prometheus", configuration(agents)))
        for job in JOBS:
            eventually(lambda job=job: prometheus.value(f'count_over_time(up{{job="{job}"}}[5m])') >= 1)  # type: ignore[misc]
        yield World(prometheus, every, ports, stolen)


def configuration(agents: dict[str, AgentProcess]) -> dict[str, Any]:
    """A job for each agent's merged port, over mutual TLS as the agent's own workload."""

    def job(name: str, agent: AgentProcess) -> dict[str, Any]:
        tls = {
            "cert_file": str(agent.output / "cert-chain.pem"),
            "key_file": str(agent.output / "key.pem"),
            "insecure_skip_verify": True,
        }
        return {
            "job_name": name,
            "scheme": "https",
            "metrics_path": "/stats/prometheus",
            "tls_config": tls,
            "static_configs": [{"targets": [f"{agent.pod}:15092"]}],
        }

    return {
        "global": {"scrape_interval": f"{INTERVAL}s", "scrape_timeout": f"{INTERVAL}s"},
        "scrape_configs": [job(name, agent) for name, agent in agents.items()],
    }


@pytest.mark.parametrize("job", JOBS)
def test_every_scrape_is_ingested_within_its_budget(world: World, job: str) -> None:
    """Beside all of that at once no scrape fails, and each has Envoy's and the agent's families."""
    own = f'{{job="{job}"}}[5m]'
    assert world.prometheus.value(f"min_over_time(up{own})") == 1
    scrapes = world.prometheus.value(f"count_over_time(up{own})")
    for family in ("envoy_server_live", "meshscrape_agent_build_info", "istio_agent_scrapes_total"):
        assert world.prometheus.value(f"count_over_time({family}{own})") >= scrapes - 1, family
    assert world.prometheus.value(f"max_over_time(envoy_server_live{own})") == 1
    assert world.prometheus.value(f'meshscrape_source_up{{job="{job}",source="envoy"}}') == 1


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", NAMES)
def test_misbehaving_application_loses_only_its_own_families(world: World, name: str, job: str) -> None:
    """Its health says what happened; what is valid of it is there, what is not is nowhere."""
    kind, port = world.kinds[name], world.ports[job][name]
    expected = kind.up if isinstance(kind.up, int) else kind.up[job]
    source = f'{{job="{job}",source="application:{port}"}}'
    assert world.prometheus.value(f"meshscrape_source_up{source}") == expected
    for series, value in kind.there.items():
        selector = series.replace("}", f',job="{job}"}}') if "{" in series else f'{series}{{job="{job}"}}'
        assert world.prometheus.value(selector) == value, series
    for series in kind.absent:
        assert world.prometheus.query(f'{{__name__=~"{series}.*",job="{job}"}}') == {}


def test_a_redirect_is_never_followed_off_the_workload(world: World) -> None:
    """Where it points to, nobody has ever been asked."""
    assert world.stolen == []


@pytest.mark.parametrize("job", JOBS)
def test_what_was_dropped_is_counted(world: World, job: str) -> None:
    """Families that Envoy has, and malformed lines, by source."""
    for name, counter in (
        ("families of Envoy's", "meshscrape_source_dropped_families_total"),
        ("families of the agent's", "meshscrape_source_dropped_families_total"),
        ("syntax errors", "meshscrape_source_malformed_lines_total"),
        ("non-UTF-8", "meshscrape_source_malformed_lines_total"),
    ):
        source = f'{{job="{job}",source="application:{world.ports[job][name]}"}}'
        assert world.prometheus.value(f"{counter}{source}") > 0, name
