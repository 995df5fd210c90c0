"""A sidecar's inbound ports in each mode, and a gateway in front of them."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from meshscrape.envoy.listener_table import ListenerRow, listeners_table
from meshscrape.envoy.options import GatewayRoute, Upstream
from meshscrape.istio.settings import InboundPort
from support.addresses import loopback
from support.forgery import Forge, any_server
from support.polling import eventually
from support.sidecar import SCRAPER, SERVER, Sidecar, echo_server, proxy_options, running_sidecar
from support.targets import Target, tls_target
from support.wire import Answer, Wire, alert, ask

STRICT, PERMISSIVE, DISABLE, DOWN = 9080, 9081, 9082, 9083
GATEWAY = "spiffe://cluster.local/ns/istio-system/sa/ingressgateway"
FORGED = f"By={SERVER};URI={SCRAPER}"


@dataclass(slots=True)
class Mesh:
    sidecar: Sidecar
    gateway: Sidecar

    @property
    def pod(self) -> str:
        return self.sidecar.pod


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    forge = Forge()
    inbound = (
        InboundPort(STRICT, "STRICT", "http"),
        InboundPort(PERMISSIVE, "PERMISSIVE", "http"),
        InboundPort(DISABLE, "DISABLE", "http"),
        InboundPort(DOWN, "STRICT", "http"),
    )
    inner, outer = tmp_path_factory.mktemp("sidecar"), tmp_path_factory.mktemp("gateway")
    with contextlib.ExitStack() as stack:
        options = proxy_options(inner, inbound=inbound)
        sidecar = stack.enter_context(running_sidecar(inner, forge=forge, options=options))
        for port in (STRICT, PERMISSIVE, DISABLE):
            stack.enter_context(echo_server(options.inside_address, port))
        pod = sidecar.pod
        weak = Target(loopback(), body=b"secret 1\n")
        stack.enter_context(tls_target(weak, forge.leaf(SERVER, rsa_bits=2047), forge.root, inner))
        routes = (
            GatewayRoute("/", Upstream("httpbin.default", pod, STRICT, SERVER)),
            GatewayRoute("/wrong", Upstream("wrong.default", pod, PERMISSIVE, f"{SERVER}-canary")),
            GatewayRoute("/down", Upstream("down.default", loopback(), STRICT, SERVER)),
            GatewayRoute("/plain", Upstream("plain.default", pod, DISABLE, SERVER)),
            GatewayRoute("/weak", Upstream("weak.default", weak.address, 15092, SERVER)),
        )
        outside = proxy_options(outer, role="router", routes=routes, gateway_port=8080)
        gateway = stack.enter_context(running_sidecar(outer, forge=forge, options=outside, identity=GATEWAY))
        yield Mesh(sidecar, gateway)


@pytest.fixture(scope="module")
def member(mesh: Mesh) -> ssl.SSLContext:
    return mesh.sidecar.forge.leaf(SCRAPER).client_context()


def seen(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200
    request: dict[str, Any] = json.loads(answer.body)
    return request


@pytest.mark.parametrize("port", [STRICT, PERMISSIVE])
def test_a_workload_of_the_mesh_reaches_the_application(
    mesh: Mesh, member: ssl.SSLContext, port: int
) -> None:
    """Under STRICT and PERMISSIVE alike, mutual TLS leads to the application, with the caller's ID."""
    headers = seen(ask(mesh.pod, port, "/metrics?x=1", member))["headers"]
    assert f"URI={SCRAPER}" in headers["x-forwarded-client-cert"]


@pytest.mark.parametrize("port", [PERMISSIVE, DISABLE])
def test_plaintext_is_accepted_where_it_is_allowed(mesh: Mesh, port: int) -> None:
    """PERMISSIVE and DISABLE take plain HTTP."""
    assert seen(ask(mesh.pod, port, "/get"))["path"] == "/get"


def test_plaintext_is_refused_under_strict(mesh: Mesh) -> None:
    """A plain request on a STRICT port gets no HTTP answer."""
    with Wire(mesh.pod, STRICT) as wire, pytest.raises(OSError) as refused:
        wire.get("/get")
    assert not isinstance(refused.value, TimeoutError)


@pytest.mark.parametrize("port", [STRICT, PERMISSIVE])
def test_tls_without_client_certificate_is_refused(mesh: Mesh, port: int) -> None:
    """TLS without a certificate, or with a stranger's, is refused under PERMISSIVE too."""
    assert alert(mesh.pod, port, any_server()) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert alert(mesh.pod, port, Forge("x").leaf(SCRAPER).client_context()) == "TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.parametrize("name", ["x-forwarded-client-cert", "x_forwarded_client_cert"])
@pytest.mark.parametrize("port", [STRICT, PERMISSIVE, DISABLE])
def test_a_callers_identity_cannot_be_forged(
    mesh: Mesh, member: ssl.SSLContext, port: int, name: str
) -> None:
    """Whatever a client writes into the header, in either spelling, never reaches the application."""
    context = None if port in (PERMISSIVE, DISABLE) else member
    request = f"GET / HTTP/1.1\r\nhost: pod\r\n{name}: {FORGED},URI=forged\r\n\r\n".encode()
    with Wire(mesh.pod, port, context) as wire:
        headers = seen(wire.send(request))["headers"]
    assert "forged" not in str(headers)
    assert ("x-forwarded-client-cert" in headers) == (context is not None)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_applications_get_every_method(mesh: Mesh, member: ssl.SSLContext, method: str) -> None:
    """The limits of metrics ports are not the application's."""
    assert seen(ask(mesh.pod, STRICT, "/anything", member, method))["method"] == method


def test_paths_are_normalised_before_the_application_sees_them(mesh: Mesh, member: ssl.SSLContext) -> None:
    """Dot segments and double slashes are resolved; escaped slashes are refused."""
    assert seen(ask(mesh.pod, STRICT, "/a/../b//c/%2e%2e/d", member))["path"] == "/b/d"
    assert ask(mesh.pod, STRICT, "/a%2f..%2fb", member).status == 400


def test_dead_application_gets_a_503_with_the_reason(mesh: Mesh, member: ssl.SSLContext) -> None:
    """The sidecar tells a caller that it is there and the application is not."""
    answer = ask(mesh.pod, DOWN, "/", member)
    assert (answer.status, "application does not answer" in answer.text) == (503, True)


def test_web_sockets_pass_through_gateway_and_sidecar(mesh: Mesh) -> None:
    """An upgrade crosses both hops, mutual TLS included."""
    with Wire(mesh.gateway.pod, 8080) as wire:
        handshake = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        wire.socket.sendall(handshake + b"ping")
        received = b""
        while not received.endswith(b"ping"):
            chunk = wire.socket.recv(4096)
            assert chunk, received
            received += chunk
    assert received.startswith(b"HTTP/1.1 101")


def test_the_gateway_shows_the_workload_its_own_identity(mesh: Mesh) -> None:
    """Users' plain HTTP becomes mutual TLS, and the application sees the gateway as its caller."""
    with Wire(mesh.gateway.pod, 8080) as wire:
        headers = seen(wire.get("/get", x_forwarded_client_cert=FORGED))["headers"]
    assert f"URI={GATEWAY}" in headers["x-forwarded-client-cert"]
    assert SCRAPER not in headers["x-forwarded-client-cert"]


def test_the_gateway_refuses_a_workload_with_another_identity(mesh: Mesh) -> None:
    """A certificate of the mesh with the wrong SPIFFE ID is a 503 whose reason can be read and counted."""
    answer = ask(mesh.gateway.pod, 8080, "/wrong")
    assert answer.status == 503
    assert "SAN" in answer.text
    (failures,) = mesh.gateway.envoy.stats("wrong.default.ssl.fail_verify_san").values()
    assert failures > 0
    eventually(lambda: "fail" in mesh.gateway.envoy.output().lower(), what="the log line")


def test_gateway_passes_on_nothing_from_a_workload_with_a_short_key(mesh: Mesh) -> None:
    """Its RSA key has 2047 bits, its identity and its CA are right."""
    answer = ask(mesh.gateway.pod, 8080, "/weak")
    assert (answer.status, "secret" in answer.text) == (503, False)
    assert "fewer than 2048 bits" in answer.text


@pytest.mark.parametrize("path", ["/down", "/plain"])
def test_the_gateway_never_falls_back_to_plaintext(mesh: Mesh, path: str) -> None:
    """A workload that is not there, or speaks no TLS, is a 503."""
    assert ask(mesh.gateway.pod, 8080, path).status == 503


def test_no_route_of_the_gateway_reaches_its_admin_api(mesh: Mesh) -> None:
    """What a user writes into the path goes to a workload or nowhere."""
    assert seen(ask(mesh.gateway.pod, 8080, "/x/../config_dump"))["path"] == "/config_dump"


def test_a_gateway_has_secure_ports_as_well(mesh: Mesh, member: ssl.SSLContext) -> None:
    """15091 of a gateway lets the scraper in and refuses another workload."""
    assert ask(mesh.gateway.pod, 15091, "/stats/prometheus", member).status == 200
    other = mesh.gateway.forge.leaf(SERVER).client_context()
    assert ask(mesh.gateway.pod, 15091, "/stats/prometheus", other).status == 403


def test_listing_shows_the_running_listeners(mesh: Mesh) -> None:
    """Ports with TLS are told from those without, read from the running Envoy."""
    rows = listeners_table(mesh.sidecar.envoy.config_dump())
    pod = mesh.pod
    assert ListenerRow(pod, 15091, "Trans: tls", "Inline Route: /stats/prometheus") in rows
    assert ListenerRow(pod, 15092, "Trans: tls", "Inline Route: /stats/prometheus, /metrics") in rows
    assert ListenerRow(pod, 15090, "ALL", "Inline Route: /stats/prometheus") in rows
    assert ListenerRow(pod, STRICT, "Trans: tls", "Cluster: inbound|9080||") in rows
    assert ListenerRow(pod, PERMISSIVE, "Trans: tls", "Cluster: inbound|9081||") in rows
    assert ListenerRow(pod, PERMISSIVE, "Trans: raw_buffer", "Cluster: inbound|9081||") in rows
    assert ListenerRow(pod, DISABLE, "ALL", "Cluster: inbound|9082||") in rows
