"""The merged metrics of a running agent: its own, Envoy's and the application's, over mutual TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.addresses import loopback
from support.agent import agent_process
from support.ca import ca_process

pytestmark = pytest.mark.timeout(60)

BODY = b"# TYPE orders_total counter\norders_total 7\n"


class _Application(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def application(address: str) -> Iterator[int]:
    """An application with metrics on `address`; yields its port."""
    server = ThreadingHTTPServer((address, 0), _Application)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_one_exposition_has_every_source_and_says_which_is_dead(tmp_path: Path) -> None:
    """The scrape is 200 with the living sources' families; the dead one is visible in the result."""
    inside = loopback()
    with application(inside) as alive, socket.socket() as closed:
        closed.bind((inside, 0))
        dead = closed.getsockname()[1]
        annotations = {"scrape": "true", "targets": [{"port": str(alive)}, {"port": str(dead)}]}
        changes = {
            "MESHSCRAPE_INSIDE_ADDRESS": inside,
            "ISTIO_PROMETHEUS_ANNOTATIONS": json.dumps(annotations),
        }
        with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as agent:
            agent.await_ready()
            status, text = agent.scrape(15092, agent.output)
    assert status == 200
    seen = {
        (sample.name, sample.labels.get("source", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert seen["orders_total", ""] == 7
    assert seen["envoy_server_live", ""] == 1
    assert seen["meshscrape_agent_build_info", ""] == 1
    assert seen["meshscrape_source_up", f"application:{alive}"] == 1
    assert seen["meshscrape_source_up", f"application:{dead}"] == 0


def test_localhost_access_only_closes_the_plaintext_ports(tmp_path: Path) -> None:
    """Under METRICS_LOCALHOST_ACCESS_ONLY the pod's address has no 15090 and no 15020; inside they serve."""
    changes = {"METRICS_LOCALHOST_ACCESS_ONLY": "true"}
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as agent:
        agent.await_ready()
        for port in (15090, 15020):
            with socket.socket() as probe:
                assert probe.connect_ex((agent.pod, port)) != 0
            assert agent.get(agent.inside, port, "/stats/prometheus")[0] == 200
        assert agent.scrape(15092, agent.output)[0] == 200
