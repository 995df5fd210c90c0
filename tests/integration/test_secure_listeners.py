"""The metrics ports of a real Envoy under hostile requests and clients."""

from __future__ import annotations

import json
import ssl
import warnings
from collections.abc import Iterator
from datetime import timedelta

import pytest

from support.forgery import Forge, any_server
from support.polling import eventually
from support.sidecar import SCRAPER, Sidecar, echo_server, running_sidecar
from support.wire import Answer, Wire, alert, ask, ask_http2, request_bytes

HTTP2_REFUSALS = (400, 403, 404, 405, "StreamReset", "ConnectionTerminated", "closed")
OLD = "spiffe://cluster.local/ns/default/sa/old"
STATS = b"envoy_server_live"
ADMIN_SECRETS = (b"static_listeners", b"certificate_chain", b"/quitquitquit", b"envoy_server_", b"LIVE")


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with (
        running_sidecar(tmp_path_factory.mktemp("sidecar")) as running,
        echo_server(running.options.inside_address, running.options.merged_port),
    ):
        yield running


@pytest.fixture(scope="module")
def scraper(sidecar: Sidecar) -> ssl.SSLContext:
    return sidecar.forge.leaf(SCRAPER).client_context()


@pytest.fixture(scope="module")
def scraper_http2(sidecar: Sidecar) -> ssl.SSLContext:
    context = sidecar.forge.leaf(SCRAPER).client_context()
    context.set_alpn_protocols(["h2"])
    return context


def test_the_scraper_gets_envoys_statistics(sidecar: Sidecar, scraper: ssl.SSLContext) -> None:
    """The listed scraper reads the statistics over mutual TLS on 15091."""
    answer = ask(sidecar.pod, 15091, "/stats/prometheus", scraper)
    assert (answer.status, answer.headers["server"]) == (200, "meshscrape")
    assert STATS in answer.body


@pytest.mark.parametrize("path", ["/stats/prometheus", "/metrics"])
def test_the_scraper_gets_the_agents_merged_metrics(
    sidecar: Sidecar, scraper: ssl.SSLContext, path: str
) -> None:
    """15092 leads to the agent, and both of Istio's paths are served."""
    answer = ask(sidecar.pod, 15092, path, scraper)
    assert json.loads(answer.body)["path"] == path


def test_head_and_used_statistics_are_served(sidecar: Sidecar, scraper: ssl.SSLContext) -> None:
    """HEAD is allowed besides GET, and so is Istio's `usedonly`."""
    assert ask(sidecar.pod, 15091, "/stats/prometheus", scraper, "HEAD").status == 200
    everything = ask(sidecar.pod, 15091, "/stats/prometheus", scraper)
    used = ask(sidecar.pod, 15091, "/stats/prometheus?usedonly", scraper)
    assert STATS in used.body
    assert len(used.body) < len(everything.body)


TRAVERSALS = [
    "/config_dump",
    "/stats/prometheus/../../config_dump",
    "/stats/prometheus/../config_dump",
    "/stats/../config_dump",
    "/stats/prometheus/%2e%2e/%2e%2e/config_dump",
    "/stats/prometheus/%2E%2E/%2E./config_dump",
    "/stats/prometheus/.%2e/.%2e/config_dump",
    "/stats/prometheus%2f..%2f..%2fconfig_dump",
    "/stats/prometheus/..%2f..%2fconfig_dump",
    "/stats/prometheus/..%5c..%5cconfig_dump",
    "/stats/prometheus/%252e%252e/%252e%252e/config_dump",
    "/stats/prometheus/..%252f..%252fconfig_dump",
    "/stats/prometheus/%c0%ae%c0%ae/%c0%ae%c0%ae/config_dump",
    "/stats/prometheus\\..\\..\\config_dump",
    "/stats/prometheus/..\\..\\config_dump",
    "//config_dump",
    "/stats/prometheus//..//..//config_dump",
    "/stats/prometheus/..;/..;/config_dump",
    "/stats/prometheus;/../../config_dump",
    "/stats/prometheus;jsessionid=1",
    "/stats/prometheus/",
    "/stats/prometheus/config_dump",
    "/stats/prometheusx",
    "/stats/prometheus%00",
    "/stats/prometheus%3f/../../config_dump",
    "/stats/prometheus#/../../config_dump",
    "/STATS/PROMETHEUS",
    "/stats",
    "/stats?format=json",
    "/stats/recentlookups",
    "/certs",
    "/ready",
    "/healthz/ready",
    "/",
    "*",
    "stats/prometheus",
    "http://pod/config_dump",
    "http://pod/stats/prometheus/../../config_dump",
    "https://admin/certs",
]
QUERIES = [
    "/stats/prometheus?filter=.*",
    "/stats/prometheus?format=json",
    "/stats/prometheus?usedonly&format=html",
    "/stats/prometheus?usedonly#x",
    "/stats/prometheus?text_readouts",
    "/stats/prometheus?/../../config_dump",
    "/stats/prometheus?",
]


@pytest.mark.parametrize("port", [15090, 15091])
@pytest.mark.parametrize("target", TRAVERSALS + QUERIES)
def test_nothing_but_the_statistics_can_be_reached(
    sidecar: Sidecar, scraper: ssl.SSLContext, port: int, target: str
) -> None:
    """Every spelling of a way out of the exact path ends at Envoy, not in the admin API."""
    _assert_refused(ask(sidecar.pod, port, target, scraper if port == 15091 else None))


@pytest.mark.parametrize("port", [15020, 15092])
@pytest.mark.parametrize("target", [*TRAVERSALS, "/debug", "/metrics/../debug", "/metrics?x=1"])
def test_nothing_but_merged_metrics_reaches_the_agent(
    sidecar: Sidecar, scraper: ssl.SSLContext, port: int, target: str
) -> None:
    """The agent never sees a request for anything but its two paths."""
    _assert_refused(ask(sidecar.pod, port, target, scraper if port == 15092 else None))


@pytest.mark.parametrize("port", [15090, 15020, 15021, 15091, 15092])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"])
def test_only_get_and_head_are_answered(
    sidecar: Sidecar, scraper: ssl.SSLContext, port: int, method: str
) -> None:
    """Other methods are refused on the very path that GET may have."""
    path = "/healthz/ready" if port == 15021 else "/stats/prometheus"
    answer = ask(sidecar.pod, port, path, scraper if port in (15091, 15092) else None, method)
    assert answer.status in (400, 405)
    assert sidecar.envoy.admin("/ready")[0] == 200


@pytest.mark.parametrize(
    "target", ["/quitquitquit", "/stats/prometheus/../../quitquitquit", "//quitquitquit"]
)
@pytest.mark.parametrize("port", [15090, 15091])
def test_envoy_cannot_be_stopped_through_a_metrics_port(
    sidecar: Sidecar, scraper: ssl.SSLContext, port: int, target: str
) -> None:
    """POST of every spelling of `quitquitquit` is refused, and Envoy goes on."""
    answer = ask(sidecar.pod, port, target, scraper if port == 15091 else None, "POST")
    assert answer.status in (400, 404, 405)
    assert sidecar.envoy.admin("/ready")[0] == 200


@pytest.mark.parametrize(
    "request_line",
    [b"CONNECT 127.0.0.1:15000 HTTP/1.1", b"CONNECT admin.sock:1 HTTP/1.1", b"OPTIONS * HTTP/1.1"],
)
@pytest.mark.parametrize("port", [15090, 15091])
def test_a_metrics_port_is_no_proxy(
    sidecar: Sidecar, scraper: ssl.SSLContext, port: int, request_line: bytes
) -> None:
    """CONNECT opens no tunnel, and `OPTIONS *` gets no answer of substance."""
    with Wire(sidecar.pod, port, scraper if port == 15091 else None) as wire:
        answer = wire.send(request_line + b"\r\nhost: pod\r\n\r\n")
    assert answer.status in (400, 403, 404, 405)


GET = {":method": "GET", ":scheme": "https", ":authority": "pod", ":path": "/stats/prometheus"}


def test_http2_is_served(sidecar: Sidecar, scraper_http2: ssl.SSLContext) -> None:
    """Prometheus speaks HTTP/2 where it is offered."""
    assert ask_http2(sidecar.pod, 15091, scraper_http2, GET) == 200


@pytest.mark.parametrize(
    "target", [*TRAVERSALS, *QUERIES, "", "/stats/prometheus\r\nx: y", "/stats/ prometheus"]
)
def test_nothing_else_can_be_reached_by_http2(
    sidecar: Sidecar, scraper_http2: ssl.SSLContext, target: str
) -> None:
    """The same spellings end at Envoy when another codec carries them."""
    assert ask_http2(sidecar.pod, 15091, scraper_http2, {**GET, ":path": target}) in HTTP2_REFUSALS


@pytest.mark.parametrize(
    "changes",
    [
        {":method": "POST"},
        {":method": "CONNECT"},
        {":method": "CONNECT", ":protocol": "websocket"},
        {":method": "GET\r\nx"},
        {":path": "/quitquitquit", ":method": "POST"},
    ],
    ids=str,
)
def test_other_methods_are_refused_by_http2(
    sidecar: Sidecar, scraper_http2: ssl.SSLContext, changes: dict[str, str]
) -> None:
    """No method but GET and HEAD, no tunnel, plain or extended."""
    assert ask_http2(sidecar.pod, 15091, scraper_http2, {**GET, **changes}) in HTTP2_REFUSALS
    assert sidecar.envoy.admin("/ready")[0] == 200


def test_an_upgrade_is_refused(sidecar: Sidecar, scraper: ssl.SSLContext) -> None:
    """A metrics port switches no protocol."""
    with Wire(sidecar.pod, 15091, scraper) as wire:
        answer = wire.get("/stats/prometheus", connection="upgrade", upgrade="websocket")
    assert answer.status == 403


def test_two_requests_in_one_are_refused(sidecar: Sidecar, scraper: ssl.SSLContext) -> None:
    """A request whose end can be read in two ways smuggles nothing to the admin API."""
    smuggled = request_bytes("/quitquitquit", "POST")
    with Wire(sidecar.pod, 15091, scraper) as wire:
        headers = {"content_length": "4", "transfer_encoding": "chunked"}
        answer = wire.send(request_bytes("/stats/prometheus", **headers) + b"0\r\n\r\n" + smuggled)
    assert answer.status == 400
    assert sidecar.envoy.admin("/ready")[0] == 200


def test_an_oversized_request_is_refused(sidecar: Sidecar, scraper: ssl.SSLContext) -> None:
    """Headers are bounded in size and in number."""
    with Wire(sidecar.pod, 15091, scraper) as wire:
        assert wire.get("/stats/prometheus", x="y" * 9000).status == 431
    with Wire(sidecar.pod, 15091, scraper) as wire:
        assert wire.get("/stats/prometheus", **{f"x{number}": "y" for number in range(60)}).status == 431


def test_plain_http_is_refused_on_the_secure_ports(sidecar: Sidecar) -> None:
    """Bytes that are no TLS get no HTTP answer."""
    for port in (15091, 15092):
        with Wire(sidecar.pod, port) as wire, pytest.raises((ConnectionError, ValueError, OSError)) as seen:
            wire.get("/stats/prometheus")
        assert not isinstance(seen.value, TimeoutError)


def test_a_client_without_a_certificate_is_refused(sidecar: Sidecar) -> None:
    """The handshake ends with the alert that says what is missing."""
    assert alert(sidecar.pod, 15091, any_server()) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert alert(sidecar.pod, 15092, any_server()) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cluster.local", "TLSV1_ALERT_DECRYPT_ERROR"), ("elsewhere", "TLSV1_ALERT_UNKNOWN_CA")],
)
def test_another_ca_is_refused(sidecar: Sidecar, name: str, expected: str) -> None:
    """A certificate with the right SPIFFE ID of another CA is refused, also when the CAs' names are equal."""
    stranger = Forge(name).leaf(SCRAPER).client_context()
    assert alert(sidecar.pod, 15091, stranger) == expected


def test_a_failed_handshake_is_logged_with_its_reason(sidecar: Sidecar) -> None:
    """Whoever runs the workload reads why a scraper was refused, which its own alert may not say."""
    expired = sidecar.forge.leaf(OLD, valid_until=-timedelta(minutes=1))
    alert(sidecar.pod, 15091, expired.client_context())

    def logged() -> bool:
        lines = [json.loads(line) for line in sidecar.envoy.output().splitlines() if OLD in line]
        return any("certificate_has_expired" in line["reason"] for line in lines)

    eventually(logged, what="the log line")


@pytest.mark.parametrize(
    ("valid_from", "valid_until"),
    [(timedelta(hours=-2), timedelta(hours=-1)), (timedelta(hours=1), timedelta(hours=2))],
    ids=["expired", "not yet valid"],
)
def test_a_certificate_outside_its_time_is_refused(
    sidecar: Sidecar, valid_from: timedelta, valid_until: timedelta
) -> None:
    """The scraper's own certificate counts only between not-before and not-after."""
    pair = sidecar.forge.leaf(SCRAPER, valid_from=valid_from, valid_until=valid_until)
    seen = alert(sidecar.pod, 15091, pair.client_context())
    assert seen in ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "SSLV3_ALERT_CERTIFICATE_UNKNOWN")


def test_old_tls_is_refused(sidecar: Sidecar) -> None:
    """TLS 1.1 does not get past the hello; TLS 1.2 does."""
    pair = sidecar.forge.leaf(SCRAPER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = pair.client_context(maximum=ssl.TLSVersion.TLSv1_1)
    assert alert(sidecar.pod, 15091, old) == "TLSV1_ALERT_PROTOCOL_VERSION"
    modern = pair.client_context(maximum=ssl.TLSVersion.TLSv1_2)
    assert ask(sidecar.pod, 15091, "/stats/prometheus", modern).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_sessions_are_never_resumed(sidecar: Sidecar, version: ssl.TLSVersion) -> None:
    """A client that offers the session of an earlier connection has to prove itself again."""
    context = sidecar.forge.leaf(SCRAPER).client_context(maximum=version)
    with Wire(sidecar.pod, 15091, context) as wire:
        assert wire.get("/stats/prometheus").status == 200
        assert isinstance(wire.socket, ssl.SSLSocket)
        session = wire.socket.session
    assert session is None or not session.has_ticket
    if session is not None:
        with Wire(sidecar.pod, 15091) as plain, context.wrap_socket(plain.socket, session=session) as again:
            assert not again.session_reused


def test_plaintext_ports_serve_their_metrics(sidecar: Sidecar) -> None:
    """15090, 15020 and 15021 answer on the pod's address, 15090 on the inside address too."""
    assert STATS in ask(sidecar.pod, 15090, "/stats/prometheus").body
    assert STATS in ask(sidecar.options.inside_address, 15090, "/stats/prometheus").body
    assert json.loads(ask(sidecar.pod, 15020, "/metrics").body)["path"] == "/metrics"
    assert json.loads(ask(sidecar.pod, 15021, "/healthz/ready").body)["path"] == "/healthz/ready"


@pytest.mark.parametrize(("port", "path"), [(15021, "/healthz/ready"), (15090, "/stats/prometheus")])
def test_headers_of_a_client_do_not_control_envoy(sidecar: Sidecar, port: int, path: str) -> None:
    """`x-envoy-*` neither names new statistics (each would stay for ever) nor sets a timeout."""
    with Wire(sidecar.pod, port) as wire:
        told = wire.get(path, x_envoy_upstream_alt_stat_name="told", x_envoy_upstream_rq_timeout_ms="1")
    assert told.status == 200
    own = ask(sidecar.pod, 15090, "/stats/prometheus").text
    assert "envoy_cluster_upstream_rq_completed" in own and "told" not in own


def test_refusals_name_the_served_path(sidecar: Sidecar) -> None:
    """A 404 and a 405 explain themselves in plain text."""
    wrong = ask(sidecar.pod, 15090, "/metrics")
    assert "serves /stats/prometheus only" in wrong.text
    assert ask(sidecar.pod, 15090, "/stats/prometheus", None, "POST").headers["allow"] == "GET, HEAD"


def _assert_refused(answer: Answer) -> None:
    assert answer.status in (400, 404)
    assert not any(secret in answer.body for secret in ADMIN_SECRETS)
