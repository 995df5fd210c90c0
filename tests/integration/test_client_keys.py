"""Which kinds of keys a client may have: a real Envoy, every secure port, both versions of TLS."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from meshscrape.istio.settings import InboundPort
from support.forgery import Forge
from support.polling import eventually
from support.sidecar import SCRAPER, Sidecar, echo_server, proxy_options, running_sidecar
from support.wire import ask, ask_http2

STRICT, PERMISSIVE = 9080, 9081
METRICS = {15091: "/stats/prometheus", 15092: "/stats/prometheus"}
APPLICATION = {STRICT: "/get", PERMISSIVE: "/get"}
PORTS = METRICS | APPLICATION
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
REFUSED = (http.client.RemoteDisconnected, ConnectionError, ssl.SSLError)
WEAK = [1024, 1536, 2040, 2041, 2047]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    directory = tmp_path_factory.mktemp("sidecar")
    inbound = (InboundPort(STRICT, "STRICT", "http"), InboundPort(PERMISSIVE, "PERMISSIVE", "http"))
    options = proxy_options(directory, inbound=inbound)
    with ExitStack() as stack:
        for port in (STRICT, PERMISSIVE, options.merged_port):
            stack.enter_context(echo_server(options.inside_address, port))
        yield stack.enter_context(running_sidecar(directory, options=options))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bits", WEAK)
def test_a_client_with_an_rsa_key_below_2048_bits_is_refused(
    sidecar: Sidecar, bits: int, version: ssl.TLSVersion
) -> None:
    """No secure port serves it, although a trusted CA has issued its certificate. Metrics ports say why."""
    context = sidecar.forge.leaf(SCRAPER, rsa_bits=bits).client_context(maximum=version)
    for port, path in METRICS.items():
        answer = ask(sidecar.pod, port, path, context)
        assert answer.status == 403
        assert b"[RSA_key_below_2048_bits]" in answer.body
    for port, path in APPLICATION.items():
        with pytest.raises(REFUSED):
            ask(sidecar.pod, port, path, context)


@pytest.mark.parametrize("bits", WEAK)
def test_metrics_ports_refuse_a_chain_with_a_short_key(sidecar: Sidecar, bits: int) -> None:
    """Every CA that the client sends counts, at each place of the chain."""
    short = sidecar.forge.intermediate("short", bits)
    for pair in (short.leaf(SCRAPER), short.intermediate("long", 2048).leaf(SCRAPER)):
        for port, path in METRICS.items():
            assert ask(sidecar.pod, port, path, pair.client_context()).status == 403


def test_a_chain_of_long_keys_is_served_and_not_passed_on(sidecar: Sidecar) -> None:
    """What the filter reads is not shown to the server behind Envoy."""
    chain = sidecar.forge.intermediate("upper", 2048).intermediate("lower", 4096)
    answer = ask(sidecar.pod, 15092, METRICS[15092], chain.leaf(SCRAPER, rsa_bits=2048).client_context())
    assert answer.status == 200
    assert b"forwarded-client-cert" not in answer.body.lower()
    assert b"x-forwarded" in answer.body.lower()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "key",
    [{}, {"curve": ec.SECP384R1()}, {"rsa_bits": 2048}, {"rsa_bits": 2049}, {"rsa_bits": 4096}],
    ids=["P-256", "P-384", "RSA 2048", "RSA 2049", "RSA 4096"],
)
def test_clients_with_other_keys_are_served(
    sidecar: Sidecar, key: dict[str, Any], version: ssl.TLSVersion
) -> None:
    """Every kind of key that a CA of the mesh certifies opens every secure port."""
    context = sidecar.forge.leaf(SCRAPER, **key).client_context(maximum=version)
    assert {ask(sidecar.pod, port, path, context).status for port, path in PORTS.items()} == {200}


def test_the_key_is_found_at_every_place_in_the_certificate(sidecar: Sidecar) -> None:
    """Names of other lengths move the key within the certificate's base64, by line and by character."""
    for length in range(24):
        pair = sidecar.forge.leaf(SCRAPER, rsa_bits=1024, subject="x" * length)
        assert ask(sidecar.pod, 15091, PORTS[15091], pair.client_context()).status == 403
        with pytest.raises(REFUSED):
            ask(sidecar.pod, STRICT, PORTS[STRICT], pair.client_context())


def test_a_weak_key_is_refused_over_http2(sidecar: Sidecar) -> None:
    """The rule does not depend on the protocol of the request."""
    context = sidecar.forge.leaf(SCRAPER, rsa_bits=1024).client_context()
    context.set_alpn_protocols(["h2"])
    pseudo = {":method": "GET", ":scheme": "https", ":authority": "pod", ":path": "/get"}
    assert ask_http2(sidecar.pod, STRICT, context, pseudo) == "closed"


def test_a_refused_key_is_counted_and_logged_with_the_name_of_its_owner(sidecar: Sidecar) -> None:
    """The client sees a closed connection only, so the log says who must get a new certificate, and why."""
    owner = "spiffe://cluster.local/ns/old/sa/legacy"
    with pytest.raises(REFUSED):
        ask(sidecar.pod, STRICT, "/get", sidecar.forge.leaf(owner, rsa_bits=1024).client_context())
    eventually(lambda: owner in sidecar.envoy.output(), what="the line of the refusal")
    (line,) = [each for each in sidecar.envoy.output().splitlines() if owner in each]
    assert "fewer than 2048 bits" in line
    assert sidecar.envoy.stats("client_keys")["client_keys.rbac.denied"] > 0


def test_an_untrusted_weak_key_is_refused_in_the_handshake(sidecar: Sidecar) -> None:
    """A certificate of another CA gets no further than before."""
    with pytest.raises(REFUSED):
        ask(sidecar.pod, STRICT, "/get", Forge("other").leaf(SCRAPER, rsa_bits=1024).client_context())
    assert ask(sidecar.pod, STRICT, "/get", sidecar.forge.leaf(SCRAPER).client_context()).status == 200
