"""Plaintext that nobody announced, opened beside a running sidecar, is found: that and nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server

from meshscrape.verify.findings import Report
from meshscrape.verify.open_ports import Bounds, connect_scan
from meshscrape.verify.run import VerifyOptions, verify
from support.ca import ca_process
from support.envoy import start_envoy
from support.polling import eventually
from support.serving import serving
from support.subject import Identities, mesh_status, subject

EXPORTER, ADMIN, ORDINARY = 9464, 9901, 8081


class _Ordinary(BaseHTTPRequestHandler):
    """An application that answers every path, with text that could almost be a sample."""

    def do_GET(self) -> None:
        body = b"requests 7\n"
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def exporter(address: str) -> Iterator[None]:
    """A plain exporter, as prometheus_client starts it."""
    registry = CollectorRegistry()
    Counter("orders", "Orders.", registry=registry).inc()
    server, thread = start_http_server(EXPORTER, address, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def ordinary(address: str) -> Iterator[None]:
    """A plain application."""
    server = ThreadingHTTPServer((address, ORDINARY), _Ordinary)
    with serving(server):
        yield


@contextlib.contextmanager
def admin_on_tcp(directory: Path, address: str) -> Iterator[None]:
    """A further Envoy with its admin API on TCP, where Envoy's own examples have it."""
    directory.mkdir()
    where = {"socket_address": {"address": address, "port_value": ADMIN}}
    envoy = start_envoy(directory, {"admin": {"address": where}})
    try:
        eventually(lambda: socket.create_connection((address, ADMIN)).close() is None)
        yield
    finally:
        envoy.stop()


@dataclass(frozen=True, slots=True)
class World:
    """Two sidecars, one with an admin API on TCP beside it."""

    status: dict[str, Any]
    clean: str
    open_admin: str

    def findings(self, **options: Any) -> set[tuple[str, str, str]]:
        """Check, workload and target of every finding of the full matrix but the certificate's end."""
        report = self.report(**options)
        return {(each.check, each.workload, each.target) for each in report.findings}

    def report(self, **options: Any) -> Report:
        """One verification."""
        chosen = VerifyOptions(skip=frozenset({"expired-certificate"}), **options)
        return asyncio.run(verify(self.status, chosen))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A mesh of a sound sidecar and one beside which an admin API is open."""
    directory = tmp_path_factory.mktemp("exposed")
    with ca_process(directory / "ca") as ca, contextlib.ExitStack() as stack:
        identities = Identities(ca, directory / "identities")
        identities.directory.mkdir()
        clean = stack.enter_context(subject(directory / "clean", identities, "clean"))
        holed = stack.enter_context(subject(directory / "holed", identities, "holed"))
        stack.enter_context(admin_on_tcp(directory / "beside", holed["address"]))
        yield World(mesh_status(identities, [clean, holed]), clean["address"], holed["address"])


def test_an_open_admin_api_is_exactly_one_finding(world: World) -> None:
    """On a port that nobody announced; that it serves metrics too is no second finding."""
    assert world.findings() == {("exposed-admin", "default/holed", f"{world.open_admin}:{ADMIN}")}


def test_an_exporter_beside_the_sidecar_is_exactly_one_finding_more(world: World) -> None:
    """Opened while the mesh runs, found in the next run, gone when closed; an application is no finding."""
    before = world.findings()
    with exporter(world.clean), ordinary(world.clean):
        report = world.report()
    found = {(each.check, each.workload, each.target) for each in report.findings}
    assert found - before == {("exposed-metrics", "default/clean", f"{world.clean}:{EXPORTER}")}
    assert any("orders_total" in each.seen or "version=" in each.seen for each in report.findings)
    ordinary_port = [each for each in report.checks if each.target == f"{world.clean}:{ORDINARY}"]
    assert {each.outcome for each in ordinary_port} == {"passed"}
    assert world.findings() == before


def test_scan_by_connecting_finds_the_same_ports(world: World) -> None:
    """The general way, for addresses of other machines, meets the same open ports within its bounds."""
    with exporter(world.clean):
        found = asyncio.run(connect_scan(world.clean, Bounds()))
    assert {EXPORTER, 15091, 15092} <= set(found.own)
    assert ADMIN not in found.own
