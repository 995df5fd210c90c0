"""How late the last byte is served after a certificate's end or a removal from the allow list.

The shipped times add up to REVOCATION_BOUND; here they are shortened, and the same sum is the bound.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from meshscrape.envoy.bootstrap import REVOCATION_BOUND, bootstrap
from meshscrape.system.files import write_atomic
from support.agent import SELF, AgentProcess, agent_process
from support.ca import ca_process
from support.mesh import (
    PROMETHEUS_ID,
    SECURE,
    prometheus_manifest,
    running_up,
    workload_manifest,
    write_mesh,
)
from support.options import VARIANTS
from support.polling import eventually
from support.serving import serving
from support.sidecar import SCRAPER, Sidecar, running_sidecar
from support.wire import Wire, alert, ask

pytestmark = pytest.mark.timeout(90)

PATH = "/stats/prometheus"
LIFE = timedelta(seconds=3)
SHORT = {"max_connection_duration": 1.0, "drain_timeout": 0.5, "max_stream_duration": 1.5}
# What a busy machine adds; a leak that lasts as long as a connection likes shows far beyond it.
SLACK = 3.0
# Between two connections of a client, and between two requests on one: without it the clients take all the
# processor time that there is.
PAUSE = 0.01


def managers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The HTTP connection managers of the secure ports."""
    for listener in config["static_resources"]["listeners"]:
        if listener["name"].startswith("secure_"):
            for chain in listener["filter_chains"]:
                yield chain["filters"][-1]["typed_config"]


def times(manager: dict[str, Any]) -> dict[str, float]:
    """The times that make the bound, as the configuration has them."""
    common = manager["common_http_protocol_options"]
    chosen = {**common, "drain_timeout": manager["drain_timeout"]}
    return {name: float(str(chosen[name]).removesuffix("s")) for name in SHORT}


def shorten(config: dict[str, Any]) -> None:
    """The same configuration with shorter times; one that is missing is not added."""
    for manager in managers(config):
        assert sum(times(manager).values()) == REVOCATION_BOUND
        manager["drain_timeout"] = f"{SHORT['drain_timeout']}s"
        common = manager["common_http_protocol_options"]
        common.update({name: f"{SHORT[name]}s" for name in SHORT if name in common})


class _Drip(socketserver.BaseRequestHandler):
    """Answers each request with a body that never ends, one line at a time."""

    def handle(self) -> None:
        self.request.recv(65536)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
        with contextlib.suppress(OSError):
            self.request.sendall(head)
            while True:
                self.request.sendall(b"4\r\na 1\n\r\n")
                time.sleep(0.05)


@contextlib.contextmanager
def dripping_agent(address: str) -> Iterator[None]:
    """What 15092 is in front of, at its worst."""
    server = socketserver.ThreadingTCPServer((address, 15020), _Drip, bind_and_activate=False)
    server.allow_reuse_address = server.daemon_threads = True
    server.server_bind()
    server.server_activate()
    with serving(server):
        yield


def kept_alive(sidecar: Sidecar, context: ssl.SSLContext, served: Callable[[], None]) -> None:
    """One connection as long as it lives, never idle; then another."""
    with Wire(sidecar.pod, 15091, context) as wire:
        while wire.get(PATH).status == 200:
            served()
            time.sleep(PAUSE)


def handshakes(sidecar: Sidecar, context: ssl.SSLContext, served: Callable[[], None]) -> None:
    """A connection for each request."""
    if ask(sidecar.pod, 15091, PATH, context).status == 200:
        served()


def resumption(sidecar: Sidecar, context: ssl.SSLContext, served: Callable[[], None]) -> None:
    """TLS 1.2 sessions, which are offered again in each new connection."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session = None
    while True:
        with (
            socket.create_connection((sidecar.pod, 15091), 5) as raw,
            context.wrap_socket(raw, session=session) as tls,
        ):
            tls.sendall(f"GET {PATH} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n".encode())
            if not tls.recv(65536).startswith(b"HTTP/1.1 200"):
                return
            served()
            session = tls.session
        time.sleep(PAUSE)


def endless_answer(sidecar: Sidecar, context: ssl.SSLContext, served: Callable[[], None]) -> None:
    """One answer that never ends, from just before the certificate's end on; then another."""
    with Wire(sidecar.pod, 15092, context) as wire:
        wire.socket.sendall(f"GET {PATH} HTTP/1.1\r\nhost: pod\r\n\r\n".encode())
        while data := wire.socket.recv(65536):
            if data.startswith(b"HTTP/1.1 200") or data.startswith(b"4\r\na 1"):
                served()


CLIENTS = (kept_alive, handshakes, resumption, endless_answer)


def test_nothing_is_served_later_than_the_bound_after_a_certificates_end(tmp_path: Path) -> None:
    """Four ways to hold on, all at once and again and again: each ends within the bound, with the alert."""
    with running_sidecar(tmp_path, edit=shorten) as sidecar, dripping_agent(sidecar.options.inside_address):
        pair = sidecar.forge.leaf(SCRAPER, valid_until=LIFE)
        end = x509.load_pem_x509_certificate(pair.chain).not_valid_after_utc.timestamp()
        last: dict[str, float] = {}
        stop = threading.Event()

        def hold_on(client: Callable[..., None]) -> None:
            context = pair.client_context()
            while not stop.wait(PAUSE):
                with contextlib.suppress(OSError, ValueError):
                    client(sidecar, context, lambda: last.update({client.__name__: time.time()}))

        threads = [threading.Thread(target=hold_on, args=(client,), daemon=True) for client in CLIENTS]
        for thread in threads:
            thread.start()
        refused = lambda: alert(sidecar.pod, 15091, pair.client_context(), 0.5)  # noqa: E731
        eventually(lambda: refused() == "SSLV3_ALERT_CERTIFICATE_EXPIRED", what="the alert")
        bound = sum(SHORT.values())
        eventually(lambda: time.time() > end + bound + SLACK, what="the bound to be over")
        stop.set()
        for thread in threads:
            thread.join(10)
    assert set(last) == {client.__name__ for client in CLIENTS}, "each was served at first"
    late = {name: round(moment - end, 1) for name, moment in last.items()}
    print(late)
    assert max(late.values()) <= bound + SLACK / 2
    assert max(late.values()) > -1, "somebody was served up to the end"


def test_shipped_times_add_up_to_the_stated_bound() -> None:
    """D is the sum of what the secure ports of every kind of proxy are configured with."""
    for options in VARIANTS.values():
        for manager in managers(bootstrap(options)):
            assert sum(times(manager).values()) == REVOCATION_BOUND


def allowed(agent: AgentProcess, wire: Wire | None = None) -> int:
    """The status of a scrape with the workload's own credentials, on `wire` if it is given."""
    return wire.get(PATH).status if wire else agent.scrape(15091, agent.output)[0]


def context_of(credentials: Path) -> ssl.SSLContext:
    """The TLS context of whoever has this directory of credentials."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(credentials / "root-cert.pem")
    context.load_cert_chain(credentials / "cert-chain.pem", credentials / "key.pem")
    return context


def test_the_allow_lists_file_is_followed(tmp_path: Path) -> None:
    """Removing a scraper refuses it on its open connection too, adding it lets it in; nothing restarts."""
    allow = tmp_path / "scrapers"
    allow.write_text(f"# who may scrape\n{SELF}\n")
    changes = {"MESHSCRAPE_SCRAPERS": "", "MESHSCRAPE_SCRAPERS_FILE": str(allow)}
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as agent:
        agent.await_ready()
        envoy = agent.envoy_pid()
        with Wire(agent.pod, 15091, context_of(agent.output)) as wire:
            assert allowed(agent, wire) == 200
            write_atomic(allow, b"dns:somebody.else\n")
            eventually(lambda: allowed(agent, wire) == 403, what="a refusal on the open connection")
            assert allowed(agent) == 403
            write_atomic(allow, f"dns:somebody.else,{SELF}\n".encode())
            eventually(lambda: allowed(agent, wire) == 200, what="access on the same connection")
        assert agent.envoy_pid() == envoy
        assert agent.metric("meshscrape_agent_scrapers_file_current") == 1


def test_a_bad_allow_list_leaves_the_last_one_in_force_and_is_visible(tmp_path: Path) -> None:
    """A mistake lets nobody in and locks nobody out; it is logged once, measured, and can be corrected."""
    allow = tmp_path / "scrapers"
    allow.write_text(f"{SELF}\n")
    changes = {"MESHSCRAPE_SCRAPERS": "", "MESHSCRAPE_SCRAPERS_FILE": str(allow)}
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as agent:
        agent.await_ready()
        write_atomic(allow, f"{SELF}\nspiffe:*\n".encode())
        eventually(lambda: agent.metric("meshscrape_agent_scrapers_file_current") == 0)
        assert allowed(agent) == 200
        allow.unlink()
        eventually(lambda: "cannot read the allow list" in agent.log())
        assert allowed(agent) == 200
        write_atomic(allow, b"")
        eventually(lambda: allowed(agent) == 403, what="an empty list that lets nobody in")
        assert agent.metric("meshscrape_agent_scrapers_file_current") == 1
        assert agent.log().count(f"{allow}:2: ") == 1


def test_an_agent_does_not_start_with_a_bad_allow_list(tmp_path: Path) -> None:
    """At the start there is no last list that could stay in force."""
    allow = tmp_path / "scrapers"
    allow.write_text("everybody\n")
    changes = {"MESHSCRAPE_SCRAPERS": "", "MESHSCRAPE_SCRAPERS_FILE": str(allow)}
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as agent:
        assert agent.ended() == 2
        assert f"{allow}:1: 'everybody' is not an entry of the allow list" in agent.log()


def test_an_edited_allow_list_of_a_local_mesh_restarts_nothing(tmp_path: Path) -> None:
    """MESHSCRAPE_SCRAPERS of a manifest changes in force while every process keeps its id."""
    manifest = tmp_path / "mesh.yaml"
    other = SECURE[-1].replace("sa/prometheus", "sa/somebody")
    write_mesh(manifest, prometheus_manifest(), workload_manifest("web", metadata=SECURE))
    with running_up(tmp_path / "state", str(manifest), "--quiet") as up:
        up.wait_for_phase()
        up.wait_until_up()
        before = {entry["name"]: entry["pids"] for entry in up.document()["workloads"]}

        def scrape() -> int:
            scraper = Path(up.workload("istio-system/prometheus")["outputCertificates"])
            return ask(up.workload("default/web")["address"], 15091, PATH, context_of(scraper)).status

        assert scrape() == 200
        write_mesh(manifest, prometheus_manifest(), workload_manifest("web", metadata=(*SECURE[:-1], other)))
        eventually(lambda: scrape() == 403, what="a refusal")
        somebody = PROMETHEUS_ID.replace("sa/prometheus", "sa/somebody")
        # The listeners have the list a moment before the status document tells it.
        told = [f"spiffe:{somebody}"]
        eventually(lambda: up.workload("default/web")["scrapers"] == told, what="the new list")
        write_mesh(manifest, prometheus_manifest(), workload_manifest("web", metadata=SECURE))
        eventually(lambda: scrape() == 200, what="access again")
        assert {entry["name"]: entry["pids"] for entry in up.document()["workloads"]} == before
