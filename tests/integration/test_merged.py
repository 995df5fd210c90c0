"""The merged endpoint in front of real HTTP applications, most of them misbehaving."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshscrape.agent import merged as merged_module
from meshscrape.agent.merged import PATHS, MergedMetrics
from meshscrape.agent.sources import MergedOptions
from meshscrape.exposition.health import Family
from meshscrape.exposition.source import MergeLimits
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.spiffe.certificates import certificates_to_pem, self_signed_root
from meshscrape.spiffe.keys import generate_key, key_to_pem
from meshscrape.system.http.client import FetchedResponse, FetchLimits, fetch_stream
from meshscrape.system.http.server import HttpServer, routes
from support.addresses import loopback
from support.applications import (
    HEALTHY,
    Behaviour,
    application,
    drips,
    flood,
    floods,
    hangs,
    header,
    redirects,
    resets_after,
    says,
    zips,
)
from support.expositions import check_text_structure, text_series
from support.polling import eventually_async

ENVOY = b"# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n"
SHORT = {"X-Prometheus-Scrape-Timeout-Seconds": "0.6"}


@contextlib.asynccontextmanager
async def agent(options: MergedOptions, address: str) -> AsyncIterator[str]:
    """The merged endpoint; its URL."""
    merged = MergedMetrics(options, lambda: [Family("istio_agent_x", "gauge", "x", [({}, 1)])])
    handler = routes(dict.fromkeys(PATHS, merged.handle))
    async with HttpServer(handler, addresses=[(address, 0)]) as server:
        yield f"http://{address}:{server.addresses[0][1]}/stats/prometheus"


async def read(url: str, headers: dict[str, str] | None = None) -> tuple[FetchedResponse, bytes]:
    """One scrape: the response and its whole body."""
    limits = FetchLimits(total=30, read=30)
    async with fetch_stream(url, headers=headers, limits=limits) as response:
        body = b"".join([chunk async for chunk in response.body])
    assert response.complete
    return response, body


async def scrape_beside(
    behaviour: Behaviour, headers: dict[str, str] | None = None, **options: object
) -> tuple[bytes, int]:
    """A scrape of an application that behaves so before a healthy one: the body, and the odd one's port."""
    address = loopback()
    async with application(behaviour, address) as odd, application(says(HEALTHY), address) as healthy:
        sources = (ScrapeSource(odd), ScrapeSource(healthy))
        async with agent(MergedOptions(sources, address, **options), address) as url:  # type: ignore[arg-type]
            response, body = await read(url, headers)
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    check_text_structure(body)
    text_series(body)
    assert HEALTHY in body, "the healthy application's families are whole"
    assert up(body, healthy) == 1
    return body, odd


def up(body: bytes, port: int) -> float:
    """`meshscrape_source_up` of the application on this port."""
    labels = (("source", f"application:{port}"),)
    values = [
        value for name, of, value in text_series(body) if (name, of) == ("meshscrape_source_up", labels)
    ]
    assert len(values) == 1
    return float(values[0])


FAULTY: dict[str, tuple[Behaviour, bytes]] = {
    "status 500": (says(HEALTHY, status="500 Oh no"), b""),
    "redirect to itself": (redirects("/metrics"), b""),
    "redirect elsewhere": (redirects("http://127.0.0.1:1/metrics"), b""),
    "redirect to another scheme": (redirects("https://localhost/metrics"), b""),
    "HTML": (says(b"<html>up 1</html>\nlate 1\n", "text/html"), b""),
    "JSON": (says(b'{"late": 1}\nlate 1\n', "application/json"), b""),
    "HTML that calls itself text": (says(b"<html>\n<p>up 1\n</html>\n"), b""),
    "protobuf": (says(b"\x0a\x03", "application/vnd.google.protobuf"), b""),
    "OpenMetrics without its end": (says(b"early 1\n", "application/openmetrics-text"), b"early 1\n"),
    "another charset": (says(b"a 1\n", "text/plain; charset=utf-16"), b""),
    "binary": (says(bytes(range(256)) * 64), b""),
    "another coding": (says(b"a 1\n", "text/plain", "200 OK", "Content-Encoding: br"), b""),
    "a gzip that is none": (says(b"a 1\n", "text/plain", "200 OK", "Content-Encoding: gzip"), b""),
    "reset in the middle": (resets_after(b"early 1\nlate 1"), b"early 1\n"),
    "hanging": (hangs, b""),
    "dripping": (drips(b"drip_total 1\n" * 1000, chunk=13), b"drip_total 1\n"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_application_costs_its_own_families_only(fault: str) -> None:
    """Whatever is wrong with one source, the scrape is valid, says `up 0` and has all of the others."""
    behaviour, kept = FAULTY[fault]
    body, odd = asyncio.run(scrape_beside(behaviour, SHORT))
    assert up(body, odd) == 0
    assert kept in body
    assert b"late" not in body


def test_absent_application_is_down() -> None:
    """A port that nobody listens on is a source that is down."""

    async def run() -> None:
        address = loopback()
        async with agent(MergedOptions((ScrapeSource(9),), address), address) as url:
            _, body = await read(url)
            _, again = await read(url)
        assert up(body, 9) == 0
        assert b'istio_agent_scrape_failures_total{type="application"} 0' in body
        assert b'istio_agent_scrape_failures_total{type="application"} 1' in again
        assert b"istio_agent_scrapes_total 2" in again

    asyncio.run(run())


IMPERFECT = {
    "gzip nobody asked for": (zips(b"odd_total 1\n"), b"odd_total 1\n"),
    "CRLF": (says(b"# TYPE odd gauge\r\nodd 1\r\n"), b"# TYPE odd gauge\nodd 1\n"),
    "no last line feed": (says(b"odd 1\nlast 2"), b"odd 1\nlast 2\n"),
    "EOF in the middle": (says(b"odd 1\n# EOF\nlast 2\n"), b"odd 1\nlast 2\n"),
    "not UTF-8": (says(b'odd{a="\xff"} 1\nodd 2\n'), b"odd 2\n"),
    "no Content-Type version": (says(b"odd 1\n", "text/plain"), b"odd 1\n"),
    "duplicate families": (says(b"# TYPE odd gauge\nodd 1\n" * 2), b"# TYPE odd gauge\nodd 1\nodd 1\n"),
    "ISO-8859-1": (says(b"odd 1\n", "text/plain;charset=ISO-8859-1"), b"odd 1\n"),
    "OpenMetrics": (
        says(b'odd_total 1 # {t="1"} 1\n# EOF\nlate 1\n', "application/openmetrics-text; version=1.0.0"),
        b"odd_total 1\n",
    ),
    "text called HTML": (says(b"# TYPE odd gauge\nodd 1\n", "text/html"), b"# TYPE odd gauge\nodd 1\n"),
    "text called JSON": (says(b"odd 1\n", "application/json"), b"odd 1\n"),
    "text called binary": (says(b"odd 1\n", "application/octet-stream"), b"odd 1\n"),
    "a Windows path": (says(rb'odd{p="C:\temp"} 1' + b"\n"), rb'odd{p="C:\\temp"} 1' + b"\n"),
    "series of the scrape": (says(b"up 0\nscrape_samples_scraped 5\nodd 1\n"), b"odd 1\n"),
    "the agent's own family": (says(b"meshscrape_source_up 5\nistio_agent_x 7\nodd 1\n"), b"odd 1\n"),
}


@pytest.mark.parametrize("flaw", IMPERFECT)
def test_tolerated_lines_are_corrected_and_merged(flaw: str) -> None:
    """A source with a flaw that does not make it unreadable is up, and what is valid of it comes through."""
    behaviour, expected = IMPERFECT[flaw]
    body, odd = asyncio.run(scrape_beside(behaviour))
    assert up(body, odd) == 1
    merged = body.partition(b"# HELP app_requests_total")[0]
    assert merged.endswith(expected)
    assert b"EOF" not in body
    assert b"istio_agent_x 7" not in body


def test_merge_goes_on_when_the_agents_own_metrics_fail() -> None:
    """When the agent cannot tell about itself, everybody else's metrics come all the same."""

    def broken() -> list[Family]:
        raise RuntimeError("no metrics")

    async def run() -> None:
        address = loopback()
        async with application(says(HEALTHY), address) as port:
            merged = MergedMetrics(MergedOptions((ScrapeSource(port),), address), broken)
            async with HttpServer(merged.handle, addresses=[(address, 0)]) as server:
                _, body = await read(f"http://{address}:{server.addresses[0][1]}/metrics")
        assert HEALTHY in body
        assert b'istio_agent_scrape_failures_total{type="agent"} 1\n' in body

    asyncio.run(run())


def test_first_source_owns_a_family() -> None:
    """Agent, Envoy, applications as declared; a family of two applications is the first one's."""

    async def run() -> None:
        address = loopback()
        second = b"# TYPE app_seconds gauge\napp_seconds 1\nother 2\n"
        async with application(says(HEALTHY), address) as one, application(says(second), address) as two:
            options = MergedOptions((ScrapeSource(one), ScrapeSource(two)), address)
            async with agent(options, address) as url:
                _, body = await read(url)
        places = [
            body.index(part) for part in (b"istio_agent_x 1", HEALTHY, b"other 2", b"meshscrape_source_up")
        ]
        assert places == sorted(places)
        assert body.count(b"app_seconds ") == 1, "only its TYPE line's"
        assert f'meshscrape_source_dropped_families_total{{source="application:{two}"}} 1'.encode() in body

    asyncio.run(run())


def test_envoy_is_asked_on_its_socket_for_text_only(tmp_path: Path) -> None:
    """Envoy's part comes from its admin socket, however long the path; it is asked for text alone."""
    asked: list[bytes] = []
    deep = tmp_path / ("d" * 100)
    deep.mkdir()

    async def envoy(request: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(request)
        writer.write(header(extra_length(ENVOY)) + ENVOY)

    def extra_length(body: bytes) -> str:
        return f"text/plain; charset=UTF-8\r\nContent-Length: {len(body)}"

    async def run() -> None:
        address = loopback()
        # The server binds by a relative name, as Envoy does: its own path may be too long for bind().
        with contextlib.chdir(deep):
            async with application(envoy, unix_socket=Path("admin.sock")):
                options = MergedOptions((), address, deep / "admin.sock")
                async with agent(options, address) as url:
                    text = await read(url)
        assert ENVOY in text[1]
        assert b'meshscrape_source_up{source="envoy"} 1' in text[1]

    asyncio.run(run())
    assert all(b"GET /stats/prometheus HTTP/1.1" in request for request in asked)
    assert all(b"accept: text/plain;version=0.0.4\r\n" in request.lower() for request in asked)


def test_first_bytes_before_the_slowest_source() -> None:
    """The agent's and Envoy's families leave while an application has not answered yet."""

    async def run() -> None:
        address = loopback()
        async with (
            application(hangs, address) as port,
            agent(MergedOptions((ScrapeSource(port),), address), address) as url,
            fetch_stream(url, limits=FetchLimits(total=30, read=30)) as response,
        ):
            first = await anext(aiter(response.body))
            assert b"istio_agent_x 1" in first
            assert b"meshscrape_source_up" not in first

    asyncio.run(run())


def test_source_that_waits_for_its_turn_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large healthy source behind a hanging one is whole: that it had to wait is not its fault."""
    monkeypatch.setattr(merged_module, "AHEAD_BYTES", 1 << 14)
    large = b"".join(b'large{n="%d"} 1\n' % number for number in range(5_000))

    async def run() -> None:
        address = loopback()
        async with contextlib.AsyncExitStack() as stack:
            behaviours = (hangs, says(large), says(HEALTHY))
            ports = [await stack.enter_async_context(application(each, address)) for each in behaviours]
            options = MergedOptions(tuple(ScrapeSource(port) for port in ports), address)
            url = await stack.enter_async_context(agent(options, address))
            _, body = await read(url, {"X-Prometheus-Scrape-Timeout-Seconds": "4"})
        assert body.count(b"\nlarge{") == 5_000
        for port, expected in zip(ports, (0, 1, 1), strict=True):
            assert f'meshscrape_source_up{{source="application:{port}"}} {expected}'.encode() in body

    asyncio.run(run())


FLOODS = {
    "valid lines": 'x_total{a="1"} 1\n',
    "blank lines": "\n",
    "comments": "# c\n",
    "malformed lines": "x\n",
    "lines to mend": "x_total  1\n",
    "valid and malformed lines": "x_total 1\nx\n",
    "lines that are not UTF-8": "x\udcff 1\n",
    "many labels": "x{" + ",".join(f'l{n}="1"' for n in range(40)) + "} 1\n",
    "families of Prometheus": "# TYPE up gauge\nup 1\n",
    "two names in turn": "x_total 1\ny_total 1\n",
    "repeated metadata": "# TYPE x_total counter\nx_total 1\n",
}


@pytest.mark.parametrize("kind", FLOODS)
def test_flood_delays_neither_the_answer_nor_later_sources(kind: str) -> None:
    """Whatever a source sends without end, the answer is whole within 90 % of the scrape's timeout.

    What was not merged in time is left out; the next source and the health are there.
    """

    async def run() -> tuple[float, bytes]:
        address = loopback()
        with flood(address, FLOODS[kind]) as odd:
            async with application(says(HEALTHY), address) as healthy:
                sources = (ScrapeSource(odd), ScrapeSource(healthy))
                limits = MergeLimits(max_bytes=1 << 40, max_series=1 << 40)
                async with agent(MergedOptions(sources, address, limits=limits), address) as url:
                    started = asyncio.get_running_loop().time()
                    _, body = await read(url, {"X-Prometheus-Scrape-Timeout-Seconds": "6"})
                    took = asyncio.get_running_loop().time() - started
        assert f'meshscrape_source_up{{source="application:{odd}"}} 0'.encode() in body
        assert f'meshscrape_source_up{{source="application:{healthy}"}} 1'.encode() in body
        assert b"app_seconds_count 2" in body
        return took, body

    took, _ = asyncio.run(run())
    assert took < 0.9 * 6


def test_redirect_on_the_same_port_is_followed_once() -> None:
    """FastAPI and Flask redirect /metrics to /metrics/; the answer there is merged."""

    async def slash(request: bytes, writer: asyncio.StreamWriter) -> None:
        target = request.split(b" ", 2)[1]
        answer = (
            says(b"odd 1\n") if target == b"/metrics/" else redirects(f"http://localhost:{port}/metrics/")
        )
        await answer(request, writer)

    async def run() -> bytes:
        nonlocal port
        address = loopback()
        async with (
            application(slash, address) as port,
            agent(MergedOptions((ScrapeSource(port),), address), address) as url,
        ):
            return (await read(url))[1]

    port = 0
    body = asyncio.run(run())
    assert up(body, port) == 1
    assert b"\nodd 1\n" in body


def test_hidden_families_are_named_with_their_source() -> None:
    """A family that an earlier application has, and one of Prometheus's own, show in the health by name."""
    body, odd = asyncio.run(scrape_beside(says(b"up 1\nown 2\n")))
    label = f'source="application:{odd}"'
    for line in (
        f'meshscrape_source_hidden_families{{{label},by="prometheus"}} 1',
        f'meshscrape_source_hidden_family_info{{{label},family="up",by="prometheus"}} 1',
        f'meshscrape_source_format{{{label},format="text"}} 1',
        f"meshscrape_source_series{{{label}}} 1",
    ):
        assert f"\n{line}\n".encode() in body


def test_problem_says_why_a_source_is_down() -> None:
    """The true reason is in the answer, not only in the agent's log."""
    body, odd = asyncio.run(scrape_beside(says(b"", status="500 Oh no")))
    expected = (
        f'meshscrape_source_problem_info{{source="application:{odd}",problem="answered with status 500"}}'
    )
    assert expected.encode() in body


def test_the_reason_of_a_hanging_source_is_the_same_text_at_every_scrape() -> None:
    """It is a label: the seconds in it would make a new series with each scrape."""
    body, odd = asyncio.run(scrape_beside(hangs, {"X-Prometheus-Scrape-Timeout-Seconds": "2"}))
    label = f'source="application:{odd}",problem="did not answer whole in time"'
    assert f"meshscrape_source_problem_info{{{label}}} 1".encode() in body


def test_first_malformed_line_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Who must correct the application finds the line in the agent's log, and not again at every scrape."""

    async def run() -> None:
        address = loopback()
        async with (
            application(says(b"good 1\nbad{a=1} 1\nworse\n"), address) as port,
            agent(MergedOptions((ScrapeSource(port),), address), address) as url,
        ):
            for _ in range(3):
                await read(url)

    asyncio.run(run())
    assert caplog.text.count("bad{a=1} 1") == 1
    assert "worse" not in caplog.text


def test_limit_on_series_of_a_source() -> None:
    """A source with more series is cut there, visibly; the others are whole."""
    many = b"# TYPE odd gauge\n" + b"".join(b'odd{n="%d"} 1\n' % n for n in range(50_000))
    body, odd = asyncio.run(scrape_beside(says(many), limits=MergeLimits(max_series=1000)))
    assert up(body, odd) == 0
    assert body.count(b"\nodd{") == 1000
    assert b'problem="sent more than 1000 series"' in body


def test_a_large_body_within_limits() -> None:
    """A body over the limit on bytes is cut at a line, counted and visible; what came before it is merged."""
    line = b'flood{pad="' + b"x" * 80 + b'"} 1\n'
    limits = MergeLimits(max_bytes=1 << 20)
    body, odd = asyncio.run(scrape_beside(floods(line, 8 << 20), limits=limits))
    assert up(body, odd) == 0
    assert 10_000 < body.count(line) <= (1 << 20) // len(line)
    assert f'meshscrape_source_truncations_total{{source="application:{odd}"}} 1'.encode() in body


def test_an_endless_line_costs_no_memory() -> None:
    """A line without an end is left out, not collected."""
    body, odd = asyncio.run(scrape_beside(floods(b"x" * 1000, 4 << 20)))
    assert up(body, odd) == 0
    assert len(body) < 10_000


def test_too_many_families_are_counted() -> None:
    """Families over the limit are left out and counted, the ones before them are whole."""
    many = b"".join(b"# TYPE m%d gauge\nm%d 1\n" % (n, n) for n in range(100))
    body, odd = asyncio.run(scrape_beside(says(many), limits=MergeLimits(max_families=10)))
    assert up(body, odd) == 1
    assert b"m9 1\n" in body
    assert b"m10 1\n" not in body
    assert f'meshscrape_source_dropped_families_total{{source="application:{odd}"}} 90'.encode() in body


@pytest.mark.parametrize("garbage", ["soon", "", "-1", "nan", "inf", "1e9"])
def test_a_garbage_timeout_counts_as_absent(garbage: str) -> None:
    """Nothing that the header may hold breaks a scrape or shortens it to nothing."""
    body, odd = asyncio.run(scrape_beside(says(b"odd 1\n"), {"X-Prometheus-Scrape-Timeout-Seconds": garbage}))
    assert up(body, odd) == 1


def test_https_application(tmp_path: Path) -> None:
    """An application that serves its metrics over https on loopback is read, whatever certificate it has."""
    key = generate_key()
    root = self_signed_root("self.signed", key, datetime.now(UTC), timedelta(hours=1))
    pem = tmp_path / "both.pem"
    pem.write_bytes(key_to_pem(key) + certificates_to_pem((root,)))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pem)

    async def run() -> None:
        address = loopback()
        async with application(says(HEALTHY), address, tls=tls) as port:
            options = MergedOptions((ScrapeSource(port, scheme="https"),), address)
            async with agent(options, address) as url:
                _, body = await read(url)
        assert up(body, port) == 1
        assert HEALTHY in body

    asyncio.run(run())


def test_sources_stop_when_the_scraper_disconnects() -> None:
    """When the scraper goes away in the middle, nobody goes on reading its sources."""
    closed = asyncio.Event()

    async def endless(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(header())
        try:
            while True:
                writer.write(b"endless_total 1\n" * 5000)
                await writer.drain()
        finally:
            closed.set()

    async def run() -> None:
        address = loopback()
        async with application(endless, address) as port:
            options = MergedOptions((ScrapeSource(port),), address, limits=MergeLimits(max_bytes=1 << 40))
            async with agent(options, address) as url:
                async with fetch_stream(url) as response:
                    await anext(aiter(response.body))

                async def source_closed() -> bool:
                    return closed.is_set()

                await eventually_async(source_closed, what="the source's connection being closed")

    asyncio.run(run())
